"""Operations counted in the jaxpr, against 6N and the attention's own formula."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from sft_jax.config import Mesh
from sft_jax.model.architecture import LayerSpec, model_flops
from sft_jax.plan.flops import executed_flops

LENGTH, ROWS = 128, 8


def _layer_and_head(a):
    """Parameters of all layers, and of the head: what each token is multiplied with."""
    attention = a.embed * a.head_dim * 2 * (a.heads + a.kv_heads)
    return a.depth * (attention + 3 * a.embed * a.mlp), a.embed * a.padded_to(8).rows


@pytest.mark.parametrize("mesh", [Mesh(fsdp=1), Mesh(fsdp=2, tensor=2, context=2)])
def test_without_recomputation_the_count_is_that_of_the_model_and_hidden_pairs(traced_on, small, mesh):
    """Plain attention computes every pair of a row, hidden or not."""
    found = executed_flops(traced_on(mesh, attention="reference", remat="none"))
    tokens = ROWS * LENGTH
    exact = model_flops(small, tokens, tokens, small.depth * ROWS * LENGTH * LENGTH)
    # The vocabulary's rows are padded to a multiple of the tensor axis.
    padding = 6 * tokens * small.embed * (small.padded_to(mesh.tensor).rows - small.vocab)
    assert found.total() == exact + padding


def test_full_remat_computes_the_layers_once_more_but_for_their_last_product(traced_on, small):
    mesh, tokens = Mesh(fsdp=1), ROWS * LENGTH
    none, full = (
        executed_flops(traced_on(mesh, attention="reference", remat=remat)).total() for remat in ("none", "full")
    )
    layers = model_flops(small, tokens, 0, small.depth * ROWS * LENGTH * LENGTH) / 3
    down = 2 * small.depth * small.embed * small.mlp * tokens
    assert full - none == layers - down


def test_the_layers_one_by_one_count_as_the_scan_does(traced_on):
    one = executed_flops(traced_on(Mesh(fsdp=1), attention="reference"))
    assert executed_flops(traced_on(Mesh(fsdp=1), attention="reference", scan_layers=False)) == one


@pytest.mark.parametrize("context", [1, 4])
def test_kernels_count_the_blocks_that_they_do_not_skip(context, traced_on, small, tpus_of):
    """Rows of 4 x 4 blocks of 512, of which 10 are visible; also where the queries are divided over devices."""
    length, devices = 2048, tpus_of("v5e:2x2")
    mesh = Mesh(fsdp=4 // context, context=context)
    found = executed_flops(traced_on(mesh, devices, length=length, targets=length, remat="full", dtype="bfloat16"))
    block = 2 * 512 * 512 * small.head_dim
    once = small.depth * ROWS * small.heads * 10 * block
    by_phase = {name.split("_")[2]: value for name, value in found.items() if name.startswith("splash")}
    # Full remat runs the forward kernel once more.
    assert by_phase == {"fwd": 2 * 2 * once, "dkv": 4 * once, "dq": 3 * once}


def test_a_window_counts_the_blocks_it_reaches(traced_on, small, tpus_of):
    windowed = replace(small, layers=(LayerSpec(window=600),) * small.depth)
    options = {"length": 4096, "targets": 4096, "dtype": "bfloat16", "architecture": windowed}
    found = executed_flops(traced_on(Mesh(fsdp=4), tpus_of("v5e:2x2"), **options))
    block = 2 * 512 * 512 * small.head_dim
    # 600 positions back reach three blocks of 512; the first two blocks of queries see fewer.
    assert found["splash_mha_dq_segmented_no_residuals"] == small.depth * ROWS * small.heads * 3 * 8 * 3 * block


def test_a_loop_of_unknown_length_with_products_is_refused():
    def loop(x):
        return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ x, x)

    with pytest.raises(ValueError, match="unknown length"):
        executed_flops(jax.jit(loop).trace(jnp.ones((4, 4))))


def test_the_largest_branch_counts():
    def either(x, flag):
        return jax.lax.cond(flag, lambda x: x @ x, lambda x: x @ x @ x, x)

    assert executed_flops(jax.jit(either).trace(jnp.ones((4, 4)), True)).total() == 2 * 2 * 4**3
