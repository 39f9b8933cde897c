"""The sums and gradients of one batch, as the tests of train/ compute them."""

from tests.train.conftest import assert_same, sums_and_gradients  # noqa: F401  (fixtures)
