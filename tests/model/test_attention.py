import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax.model.architecture import Rope
from sft_jax.model.attention import Places, blockwise, reference, rope_angles, rope_frequencies, rotate, visible


def _inputs(time=150, batch=2, heads=4, kv_heads=2, head_dim=8):
    random = np.random.default_rng(0)
    q, k, v = (
        jnp.asarray(random.normal(size=(batch, time, n, head_dim)), jnp.float32) for n in (heads, kv_heads, kv_heads)
    )
    cuts = [[0, 40, 41, 100, 130], [0, 70, 90, 120, 149]]
    segments = np.zeros((batch, time), np.int32)
    positions = np.zeros((batch, time), np.int32)
    for row, starts in enumerate(cuts):
        for number, (start, end) in enumerate(zip(starts, [*starts[1:], time], strict=True), 1):
            segments[row, start:end] = number if number < len(starts) else 0  # the last stretch is padding
            positions[row, start:end] = np.arange(end - start)
    return q, k, v, Places(jnp.asarray(positions), jnp.asarray(segments))


@pytest.mark.parametrize("options", [{}, {"window": 9}, {"softcap": 1.5}])
def test_blockwise_equals_the_reference_forward_and_backward(options):
    q, k, v, places = _inputs()

    def loss(attend):
        return lambda q, k, v: (attend(q, k, v, places, places, **options) ** 2 * jnp.arange(8)).sum()

    np.testing.assert_allclose(
        blockwise(q, k, v, places, places, **options), reference(q, k, v, places, places, **options), atol=2e-6
    )
    got = jax.jit(jax.grad(loss(blockwise), (0, 1, 2)))(q, k, v)
    want = jax.jit(jax.grad(loss(reference), (0, 1, 2)))(q, k, v)
    for ours, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-4)


def test_the_reference_is_softmax_attention_of_each_document_by_itself():
    q, k, v, places = _inputs()
    out = reference(q, k, v, places, places)
    start, end = 41, 100  # one document of row 0, by hand, head 3 (which shares key head 1)
    scores = np.asarray(q[0, start:end, 3] @ k[0, start:end, 1].T) / np.sqrt(8)
    scores[np.triu_indices(end - start, 1)] = -np.inf
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    np.testing.assert_allclose(out[0, start:end, 3], weights @ np.asarray(v[0, start:end, 1]), atol=1e-5)


def test_a_window_of_n_sees_the_token_itself_and_n_minus_one_before_it():
    places = Places(jnp.arange(6)[None], jnp.ones((1, 6), jnp.int32))
    assert visible(places, places, 3)[0, 4].tolist() == [False, False, True, True, True, False]


def test_rope_depends_on_distance_alone():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 2, 1, 8)), jnp.float32)

    def product(first, second):
        at = rotate(x, *rope_angles(Rope(), 8, jnp.asarray([[first, second]])))
        return float((at[0, 0] * at[0, 1]).sum())

    assert product(3, 10) == pytest.approx(product(103, 110), abs=1e-4)
    assert product(3, 10) != pytest.approx(product(3, 11), abs=1e-3)


def test_llama3_scaling_divides_low_frequencies_and_keeps_high_ones():
    plain = rope_frequencies(Rope(theta=500_000.0), 128)
    scaled = rope_frequencies(
        Rope(theta=500_000.0, kind="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0), 128
    )
    np.testing.assert_allclose(scaled[:20], plain[:20], rtol=1e-6)
    np.testing.assert_allclose(scaled[-10:], plain[-10:] / 8, rtol=1e-6)
    assert ((scaled < plain) & (scaled > plain / 8)).any()
    np.testing.assert_allclose(
        rope_frequencies(Rope(kind="linear", factor=4.0), 8), rope_frequencies(Rope(), 8) / 4, rtol=1e-6
    )
