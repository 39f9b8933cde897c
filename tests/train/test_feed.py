import numpy as np
import pytest

from sft_jax.config import Sharding
from sft_jax.train.feed import feed
from sft_jax.train.sharding import batch_shapes_of, batch_shardings


class Broken:
    """A source that fails at step 2."""

    def __init__(self, source):
        self.source = source

    def batch(self, step, row_slice):
        if step == 2:
            raise OSError("disk gone")
        return self.source.batch(step, row_slice)


def test_batches_come_in_order_and_whole(make_batches, mesh_of):
    source = make_batches(accumulation=2)
    shapes, shardings = batch_shapes_of(source), batch_shardings(mesh_of(data=2, fsdp=2), Sharding())
    steps = []
    for step, batch, waited in feed(source, range(3, 6), shapes, shardings):
        steps.append(step)
        assert waited >= 0
        for ours, host in zip(batch, source.batch(step, slice(0, 4)), strict=True):
            np.testing.assert_array_equal(np.asarray(ours), host)
            assert ours.sharding.shard_shape(ours.shape)[:2] == (2, 1)
    assert steps == [3, 4, 5]


def test_an_error_of_the_source_ends_the_run(make_batches, mesh_of):
    source = make_batches()
    shapes, shardings = batch_shapes_of(source), batch_shardings(mesh_of(), Sharding())
    seen = []
    with pytest.raises(OSError, match="disk gone"):
        for step, _, _ in feed(Broken(source), range(6), shapes, shardings):  # type: ignore[arg-type]
            seen.append(step)
    assert seen == [0, 1]
