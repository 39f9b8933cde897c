"""Kinds of leaves: int8 kernels, kernels with an adapter, experts; in the decoder, on meshes, in files."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax.config import Sharding
from sft_jax.model.attention.reference import TokenPositions
from sft_jax.model.decoder import abstract_parameters, forward, leaves
from sft_jax.model.layers import Compute, contract
from sft_jax.model.leaves import (
    ArrayLeaf,
    Int8,
    LowRank,
    LowRankLeaf,
    effective_kernel,
    flattened,
    part_name,
    project,
)
from sft_jax.parallel.rules import shardings

EXPERTS = ArrayLeaf((4, 8, 16), ("experts", "embed", "mlp"), "EBD,EDF->EBF")
QUERY = ArrayLeaf((3, 8, 4, 2), ("layers", "embed", "heads", "head_dim"), "BTD,DNH->BTNH")
OUTPUT = ArrayLeaf((4, 2, 8), ("heads", "head_dim", "embed"), "BTNH,NHD->BTD")


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def arrays_of(leaf, kernel):
    """Every part: what the kernel fills, and random adapters."""
    filled = leaf.store(kernel)
    return {
        suffix: filled[suffix] if suffix in filled else draw(*part.shape, seed=len(suffix) + i)
        for i, (suffix, part) in enumerate(leaf.parts.items())
    }


@pytest.mark.parametrize("array", [EXPERTS, QUERY, OUTPUT], ids=["experts", "query", "output"])
@pytest.mark.parametrize("kinds", [(), (Int8(),), (LowRank(2, 6.0),), (Int8(), LowRank(2, 6.0))], ids=str)
def test_a_product_is_that_with_the_effective_kernel(array, kinds):
    leaf = array
    for kind in kinds:
        leaf = kind.leaf(leaf)
    arrays = arrays_of(leaf, draw(*array.shape))
    assert {suffix: (value.shape, str(value.dtype)) for suffix, value in arrays.items()} == {
        suffix: (part.shape, part.dtype) for suffix, part in leaf.parts.items()
    }
    assert all(len(part.axes) == len(part.shape) for part in leaf.parts.values())
    kernel, whole = leaf.kernel(arrays), effective_kernel(leaf.kernel(arrays), array.equation)
    assert whole.shape == array.shape
    if array.stacked:  # what a scan over layers passes on
        kernel, whole = jax.tree.map(lambda x: x[1], kernel), whole[1]
    x = {EXPERTS: draw(4, 5, 8), QUERY: draw(2, 5, 8), OUTPUT: draw(2, 5, 4, 2)}[array]
    expected = jnp.einsum(array.equation, x, whole)
    np.testing.assert_allclose(project(contract, array.equation, x, kernel), expected, rtol=1e-4, atol=1e-4)


def test_int8_is_within_half_a_step_of_its_scale_per_output():
    kernel = draw(4, 8, 16)
    leaf = Int8().leaf(EXPERTS)
    stored = leaf.store(np.asarray(kernel))
    assert stored["values"].dtype == np.int8 and stored["scales"].shape == (4, 1, 16)
    restored = effective_kernel(leaf.kernel(stored), EXPERTS.equation)
    assert (np.abs(restored - kernel) <= stored["scales"] / 2 + 1e-6).all()
    assert leaf.parts["values"].bytes + leaf.parts["scales"].bytes < 0.4 * EXPERTS.parts[""].bytes
    assert not leaf.store(np.zeros(EXPERTS.shape))["values"].any()


def test_experts_shard_and_their_adapters_with_them(mesh_of):
    leaf = LowRankLeaf(EXPERTS, 2, 2.0)
    parts = leaf.parts
    assert parts["lora_a"].axes == ("experts", "embed", None) and parts["lora_b"].axes == ("experts", None, "mlp")
    shapes, axes = ({k: getattr(part, what) for k, part in parts.items()} for what in ("shape", "axes"))
    found = shardings(shapes, axes, mesh_of(expert=2, fsdp=2, tensor=2), Sharding())
    shards = {k: where.shard_shape(shapes[k]) for k, where in found.items()}
    assert shards == {"": (2, 4, 8), "lora_a": (2, 4, 2), "lora_b": (2, 2, 8)}


def test_a_flat_kernel_gives_the_same_product_for_one_token():
    for array, x in ((QUERY, draw(3, 1, 8)), (OUTPUT, draw(3, 1, 4, 2))):
        for leaf in (array, LowRankLeaf(array, 2, 2.0)):
            kernel = leaf.kernel(arrays_of(leaf, draw(*array.shape)))
            one = jax.tree.map(lambda x: x[0], kernel) if array.stacked else kernel
            expected = project(contract, array.equation, x, one)
            flat = flattened(one, array.equation, "float32")
            np.testing.assert_allclose(project(contract, array.equation, x, flat), expected, rtol=1e-5, atol=1e-5)


def hidden(architecture, parameters):
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, 250, (2, 12)), jnp.int32)
    where = TokenPositions(jnp.tile(jnp.arange(12), (2, 1)), jnp.ones((2, 12), jnp.int32))
    return np.asarray(forward(architecture, Compute(), parameters, tokens, where)[0])


def with_parts(architecture, parameters):
    """The arrays of a decoder with other leaves, from those of the plain one; adapters as training begins them."""
    made = {}
    for name, leaf in leaves(architecture).items():
        filled = leaf.store(np.asarray(parameters[name]))
        for suffix in leaf.parts:
            value = filled[suffix] if suffix in filled else leaf.initial(suffix, jax.random.key(0))
            made[part_name(name, suffix)] = value
    assert made.keys() == abstract_parameters(architecture)[0].keys()
    return made


def test_a_new_adapter_changes_no_bit(tiny, tiny_parameters):
    adapted = replace(tiny, storage=(("*.kernel", LowRank(4, 8.0)),))
    parameters = with_parts(adapted, tiny_parameters)
    np.testing.assert_array_equal(hidden(adapted, parameters), hidden(tiny, tiny_parameters))
    trained = {k: v + 0.1 if k.endswith("lora_b") else v for k, v in parameters.items()}
    assert np.abs(hidden(adapted, trained) - hidden(tiny, tiny_parameters)).max() > 1e-3


def test_an_adapter_is_never_a_matrix_of_the_kernels_size(tiny, tiny_parameters):
    """Read from the compiled program: the product of A and B has no buffer, forward or backward."""
    wide = replace(tiny, mlp=320, layers=tiny.layers[:1], storage=(("*mlp*.kernel", LowRank(2, 2.0)),))
    abstract, _ = abstract_parameters(wide)
    adapters = {k: v for k, v in abstract.items() if "lora" in k}
    frozen = {k: v for k, v in abstract.items() if k not in adapters}
    tokens = jax.ShapeDtypeStruct((1, 24), jnp.int32)

    def loss(adapters, frozen, tokens, where):
        return forward(wide, Compute(), {**adapters, **frozen}, tokens, where)[0].sum()

    lowered = jax.jit(jax.grad(loss)).lower(adapters, frozen, tokens, TokenPositions(tokens, tokens))
    text = lowered.compile().as_text()
    entry = text[text.index("ENTRY") :]
    made = [line for line in entry.splitlines() if " parameter(" not in line]
    assert any("f32[2,320]" in line or "f32[320,2]" in line for line in made), "the adapter's own gradient"
    assert not [line for line in made if "= f32[32,320]" in line or "= f32[320,32]" in line]


def test_int8_kernels_stay_near_the_model(tiny, tiny_parameters):
    stored = replace(tiny, storage=(("*.kernel", Int8()),))
    got, expected = hidden(stored, with_parts(stored, tiny_parameters)), hidden(tiny, tiny_parameters)
    assert 0 < np.abs(got - expected).max() < 0.1 * np.abs(expected).max()
