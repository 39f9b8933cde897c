"""Every layout computes the same loss and gradients as one device, on ragged packed rows."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from sft_jax.config import Sharding
from sft_jax.errors import BadInput
from sft_jax.model.architecture import LayerSpec
from sft_jax.model.decoder import initialise
from sft_jax.model.layers import Compute

WHOLE_KV = Sharding(kv_heads="none")
RING = Compute(context_attention="ring")
DOUBLE = Compute(dtype="float64")


@pytest.fixture(scope="module")
def one_device(tiny, tiny_parameters, make_batches, mesh_of, sums_and_gradients):
    return sums_and_gradients(tiny, tiny_parameters, make_batches(), mesh_of())


@pytest.fixture(scope="module")
def in_float64(tiny, make_batches, mesh_of, sums_and_gradients):
    """(architecture, parameters, their sums and gradients on one device): a window and an untied head besides."""
    layers = (LayerSpec(window=11), LayerSpec(), LayerSpec(window=11))
    windows = replace(tiny, tied=False, layers=layers, attention_softcap=4.0)
    with jax.enable_x64(True):
        made = jax.jit(initialise, static_argnums=(0, 1))(windows, 3)
        doubles = {name: np.asarray(value * (5 if value.ndim > 2 else 1), np.float64) for name, value in made.items()}
        return windows, doubles, sums_and_gradients(windows, doubles, make_batches(), mesh_of(), DOUBLE)


@pytest.mark.parametrize(
    ("sizes", "accumulation", "compute", "rules"),
    [
        ({}, 8, None, None),
        ({"data": 8}, 1, None, None),
        ({"fsdp": 8}, 1, None, None),
        ({"tensor": 2}, 2, None, None),
        ({"tensor": 4}, 1, None, WHOLE_KV),  # fewer key heads than shards
        ({"context": 8}, 1, None, None),
        pytest.param({"context": 8}, 2, RING, None, marks=pytest.mark.slow),
        ({"data": 2, "fsdp": 4}, 1, None, None),
        pytest.param({"data": 4, "tensor": 2}, 2, None, None, marks=pytest.mark.slow),
        pytest.param({"data": 2, "context": 4}, 1, RING, None, marks=pytest.mark.slow),
        ({"fsdp": 4, "tensor": 2}, 1, None, None),
        ({"fsdp": 2, "context": 4}, 4, None, None),
        ({"tensor": 2, "context": 4}, 1, RING, None),
        pytest.param({"tensor": 4, "context": 2}, 1, None, WHOLE_KV, marks=pytest.mark.slow),
        pytest.param({"data": 2, "fsdp": 2, "tensor": 2}, 2, None, None, marks=pytest.mark.slow),
        pytest.param({"fsdp": 2, "tensor": 2, "context": 2}, 1, RING, None, marks=pytest.mark.slow),
    ],
)
def test_layouts_agree_with_one_device(
    one_device, tiny, tiny_parameters, make_batches, mesh_of, sums_and_gradients, assert_same,
    sizes, accumulation, compute, rules,
):  # fmt: skip
    batches = make_batches(accumulation=accumulation)
    other = sums_and_gradients(tiny, tiny_parameters, batches, mesh_of(**sizes), compute, rules)
    assert_same(other, one_device)
    for name in ("correct", "entropy", "tokens", "target_tokens", "pairs"):
        np.testing.assert_allclose(other[0][2][name], one_device[0][2][name], rtol=1e-5)


@pytest.mark.parametrize(
    ("sizes", "compute", "rules"),
    [
        ({"fsdp": 4}, None, None),
        pytest.param({"data": 2, "fsdp": 2, "tensor": 2}, None, None, marks=pytest.mark.slow),
        pytest.param({"fsdp": 2, "context": 4}, None, None, marks=pytest.mark.slow),
        ({"tensor": 2, "context": 4}, RING, None),
        # The head's work divided by tensor instead of its vocabulary; parameters over everything.
        ({"data": 2, "fsdp": 2, "tensor": 2}, None, Sharding(vocab="none", act_targets="tensor", embed="fsdp+data")),
        pytest.param(
            {"fsdp": 2, "context": 4},
            None,
            Sharding(act_targets="none", embed="context+fsdp", layers="none"),
            marks=pytest.mark.slow,
        ),
        # Eight parts of 260 vocabulary rows, which are padded to 264; heads whole, or divided in themselves.
        ({"tensor": 4, "expert": 2}, None, Sharding(vocab="tensor+expert", heads="none", kv_heads="none")),
        pytest.param(
            {"data": 4, "tensor": 2},
            None,
            Sharding(heads="none", kv_heads="none", head_dim="tensor"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_in_float64_layouts_change_nothing_beyond_1e_10(
    in_float64, make_batches, mesh_of, sums_and_gradients, assert_same, sizes, compute, rules
):
    """What is not the same mathematics cannot hide in rounding."""
    windows, doubles, one = in_float64
    with jax.enable_x64(True):
        compute = replace(compute or Compute(), dtype="float64")
        other = sums_and_gradients(windows, doubles, make_batches(), mesh_of(**sizes), compute, rules)
        assert other[0][0].dtype == np.float64
        assert_same(other, one, 1e-10, 1e-10)


def test_key_heads_divided_otherwise_than_query_heads_are_refused(
    tiny, tiny_parameters, make_batches, mesh_of, sums_and_gradients
):
    rules = Sharding(heads="none")
    with pytest.raises(BadInput, match="key heads must be sharded like their query heads"):
        sums_and_gradients(tiny, tiny_parameters, make_batches(), mesh_of(tensor=2), rules=rules)
