from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from sft_jax.model.architecture import (
    Architecture,
    Group,
    LayerSpec,
    grouped,
    model_flops,
    row_pairs,
    split_name,
    stack_name,
)
from sft_jax.model.attention.reference import TokenPositions
from sft_jax.model.decoder import abstract_parameters, forward
from sft_jax.model.layers import Compute

FULL, WINDOW = LayerSpec(), LayerSpec(window=8)


@pytest.mark.parametrize(
    ("layers", "groups"),
    [
        ((FULL,) * 5, [Group(0, (FULL,), 5)]),
        ((WINDOW, FULL) * 2, [Group(0, (WINDOW, FULL), 2)]),
        ((WINDOW, FULL, WINDOW, FULL, WINDOW), [Group(0, (WINDOW, FULL), 2), Group(4, (WINDOW,), 1)]),
        # Where nothing repeats, equal neighbours do: two layers to compile instead of eight.
        ((FULL,) * 4 + (WINDOW,) * 4, [Group(0, (FULL,), 4), Group(4, (WINDOW,), 4)]),
        # Two windows and a full layer, three times: a period of three, or six runs.
        ((WINDOW, WINDOW, FULL) * 3, [Group(0, (WINDOW, WINDOW, FULL), 3)]),
    ],
)
def test_layers_are_looped_over_the_shortest_period_or_over_runs_of_equal_ones(layers, groups):
    assert list(grouped(layers, 0)) == groups
    covered = [layer for group in groups for i in range(len(group.specs)) for layer in group.layers(i)]
    assert sorted(covered) == list(range(len(layers)))


def test_a_cut_ends_a_stack(tiny):
    cut = replace(tiny, cuts=(1,))
    assert [group.repeats for group in cut.groups] == [1, 2]
    names = {name for name in abstract_parameters(cut)[0] if name.endswith("mlp.up.kernel")}
    assert names == {"layers.0.mlp.up.kernel", "layers.1:3.mlp.up.kernel"}
    assert cut.plain == tiny.plain


@pytest.mark.parametrize("layers", [range(7, 8), range(0, 30), range(1, 10, 2)])
def test_the_name_of_a_stack_tells_its_layers(layers):
    assert split_name(f"{stack_name(layers)}.mlp.up.kernel") == (layers, "mlp.up.kernel")
    assert split_name("embedding") == (None, "embedding")


def test_windows_make_fewer_pairs(tiny):
    windowed = replace(tiny, layers=(LayerSpec(window=4), FULL, FULL))
    seen = sum(1 for q in range(10) for k in range(10) if 0 <= q - k < 4)
    assert row_pairs(tiny, 10) == 3 * 55 and row_pairs(windowed, 10) == 2 * 55 + seen
    assert model_flops(windowed, 10, 1, row_pairs(windowed, 10)) < model_flops(tiny, 10, 1, row_pairs(tiny, 10))


def temporaries(layers: tuple[LayerSpec, ...], scan: bool = True) -> int:
    """Bytes of temporaries of the compiled gradient of eight layers, each of them rematerialised."""
    a = Architecture(
        vocab=64, embed=64, mlp=256, layers=layers, heads=4, kv_heads=4, head_dim=16, max_positions=512, tied=True
    )
    compute = Compute(remat="full", scan_layers=scan, attention="reference")
    tokens = jax.ShapeDtypeStruct((16, 128), jnp.int32)

    def loss(parameters, tokens, where):
        return forward(a, compute, parameters, tokens, where)[0].sum()

    lowered = jax.jit(jax.grad(loss)).lower(abstract_parameters(a)[0], tokens, TokenPositions(tokens, tokens))
    return lowered.compile().memory_analysis().temp_size_in_bytes


def test_remat_wraps_one_layer_whatever_the_period():
    """Eight layers keep eight layer inputs; a policy around a period would keep all that is inside it: 2.8 and 5 times
    as much. (In a batch of two rows the kernels of four layers, which a period takes out of their stacks together, are
    a third of all there is: 1.28 times.)"""
    four = tuple(LayerSpec(window=w) for w in (8, 9, 10, 11)) * 2
    found = {
        "period 1": temporaries((FULL,) * 8),
        "period 4": temporaries(four),
        "4 full, 4 windowed": temporaries((FULL,) * 4 + (WINDOW,) * 4),
    }
    assert max(found.values()) <= 1.1 * min(found.values()), found


def test_unrolled_layers_are_rematerialised_too():
    """Without a barrier the compiler finds the recomputation equal to the forward pass and keeps everything."""
    scanned, unrolled = temporaries((FULL,) * 8), temporaries((FULL,) * 8, scan=False)
    assert unrolled <= 1.1 * scanned, (unrolled, scanned)
