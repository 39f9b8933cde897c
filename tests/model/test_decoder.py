from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax.errors import BadInput
from sft_jax.model.architecture import Architecture, LayerSpec, shortest_period
from sft_jax.model.attention.reference import TokenPositions
from sft_jax.model.decoder import (
    abstract_parameters,
    forward,
    forward_step,
    head_kernel,
    initialise,
    logits,
    make_caches,
    unstacked,
    values_of,
)
from sft_jax.model.layers import Compute

FULL, WINDOW, NOPE = LayerSpec(), LayerSpec(window=4), LayerSpec(rope=None)


@pytest.fixture(scope="module")
def mixed() -> Architecture:
    """Every switch on: two kinds of layers, five layers (so a remainder), biases, QK norm, soft-caps, untied."""
    return Architecture(
        vocab=50, embed=16, mlp=24, layers=(WINDOW, NOPE, WINDOW, NOPE, WINDOW),
        heads=4, kv_heads=2, head_dim=4, max_positions=64,
        qkv_bias=True, output_bias=True, mlp_bias=True, qk_norm=True, attention_softcap=5.0, logit_softcap=3.0,
    )  # fmt: skip


def _tokens(rows=2, time=12, vocab=50):
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, vocab, (rows, time)), jnp.int32)
    return tokens, TokenPositions(jnp.tile(jnp.arange(time), (rows, 1)), jnp.ones((rows, time), jnp.int32))


def _random(architecture, seed=0):
    parameters = jax.jit(initialise, static_argnums=(0, 1))(architecture, seed)
    return {name: np.asarray(value * 10 + 0.1 * (value.ndim < 3), np.float64) for name, value in parameters.items()}


@pytest.fixture
def float64():
    """What must be the same mathematics is compared in float64: float32 would need a tolerance for its rounding."""
    with jax.enable_x64(True):
        yield Compute(dtype="float64")


def test_initial_parameters_have_the_abstract_shapes_and_every_dimension_a_logical_axis(mixed):
    shapes, axes = abstract_parameters(mixed)
    made = jax.jit(initialise, static_argnums=(0, 1))(mixed, 0)
    assert {n: (v.shape, v.dtype) for n, v in made.items()} == {n: (s.shape, s.dtype) for n, s in shapes.items()}
    assert all(len(axes[name]) == len(shape.shape) for name, shape in shapes.items())
    assert axes["layers.1:4:2.attention.query.kernel"] == ("layers", "embed", "heads", "head_dim")
    assert shapes["layers.1:4:2.attention.query.kernel"].shape[0] == 2
    assert shapes["layers.4.mlp.down.kernel"].shape == (24, 16)


@pytest.mark.slow
def test_scanned_periods_equal_the_layers_one_by_one(mixed, float64):
    parameters = _random(mixed)
    tokens, places = _tokens()
    scanned = forward(mixed, float64, parameters, tokens, places)[0]
    looped = forward(mixed, replace(float64, scan_layers=False), parameters, tokens, places)[0]
    np.testing.assert_allclose(scanned, looped, atol=1e-10)
    # The kinds matter: all windows, or RoPE everywhere, is another model.
    for kind in (WINDOW, FULL):
        layers = tuple(kind if spec == NOPE else spec for spec in mixed.layers)
        other, cut = replace(mixed, layers=layers, cuts=(4,)), replace(mixed, cuts=(4,))
        if kind == FULL:  # stacked alike, so the same arrays fit
            assert {n: s.shape for n, s in abstract_parameters(other)[0].items()} == {
                n: s.shape for n, s in abstract_parameters(cut)[0].items()
            }
            assert jnp.abs(forward(other, float64, parameters, tokens, places)[0] - scanned).max() > 1e-3


def _stacked(a, compute, values):
    return a, values


@pytest.mark.parametrize("stepped", [_stacked, unstacked])
@pytest.mark.parametrize("layers", [pytest.param(5, marks=pytest.mark.slow), 2])
def test_generation_with_a_cache_equals_the_whole_forward(layers, stepped, mixed, float64):
    """Prefill 7 tokens, then 5 one at a time into the cache: the same hidden states as all 12 at once; with two
    periods and a layer beyond them, with one period, and with every layer apart."""
    mixed = replace(mixed, layers=mixed.layers[:layers])
    parameters = _random(mixed)
    tokens, places = _tokens()
    read = jax.jit(partial(forward, mixed, float64), static_argnames="keep_kv")
    whole = read(parameters, tokens, places)[0]
    first = TokenPositions(places.positions[:, :7], places.segments[:, :7])
    hidden, kv = read(parameters, tokens[:, :7], first, keep_kv=True)
    np.testing.assert_allclose(hidden, whole[:, :7], atol=1e-10)
    arranged, values = stepped(mixed, float64, values_of(mixed, parameters))
    step = jax.jit(partial(forward_step, arranged, float64))
    caches = make_caches(arranged, *kv, 5)
    cached = TokenPositions(*(jnp.pad(x, ((0, 0), (0, 5))) for x in first))
    for t in range(7, 12):
        mine = TokenPositions(places.positions[:, t : t + 1], places.segments[:, t : t + 1])
        cached = TokenPositions(*(old.at[:, t].set(x[:, 0]) for old, x in zip(cached, mine, strict=True)))
        hidden, caches = step(values, tokens[:, t : t + 1], mine, caches, cached, jnp.int32(t))
        np.testing.assert_allclose(hidden[:, 0], whole[:, t], atol=1e-10)


def test_bfloat16_compute_stays_near_float32_and_keeps_float32_logits(mixed):
    parameters = jax.jit(initialise, static_argnums=(0, 1))(mixed, 0)
    tokens, places = _tokens()
    hidden, _ = jax.jit(partial(forward, mixed, Compute(dtype="bfloat16")))(parameters, tokens, places)
    assert hidden.dtype == jnp.bfloat16
    raw = logits(mixed, parameters, hidden)
    assert raw.dtype == jnp.float32
    exact = logits(mixed, parameters, jax.jit(partial(forward, mixed, Compute()))(parameters, tokens, places)[0])
    assert float(jnp.abs(raw - exact).max()) < 0.05


def test_a_tied_head_is_the_embedding_and_an_untied_one_is_not(mixed, tiny, tiny_parameters):
    assert head_kernel(tiny, tiny_parameters) is tiny_parameters["embedding"]
    assert "head" in abstract_parameters(mixed)[0] and "head" not in abstract_parameters(tiny)[0]


def test_the_shortest_period_is_found_with_a_cut_last_repetition():
    assert shortest_period((FULL,) * 5) == (FULL,)
    assert shortest_period((WINDOW, WINDOW, FULL, WINDOW, WINDOW)) == (WINDOW, WINDOW, FULL)
    assert shortest_period((FULL, WINDOW, WINDOW)) == (FULL, WINDOW, WINDOW)


def test_sizes_that_do_not_fit_are_refused(tiny):
    with pytest.raises(BadInput, match="5 query heads"):
        Architecture(**{**vars(tiny), "heads": 5})
    with pytest.raises(BadInput, match="vocab_rows 3 < vocab 260"):
        Architecture(**{**vars(tiny), "vocab_rows": 3})
