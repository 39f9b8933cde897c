import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax.model.architecture import Rope
from sft_jax.model.attention.reference import TokenPositions, reference, visible
from sft_jax.model.rope import rope_angles, rope_frequencies, rotate


def test_the_reference_is_softmax_attention_of_each_document_by_itself(attention_inputs):
    q, k, v, places = attention_inputs()
    out = reference(q, k, v, places, places)
    start, end = 42, 99  # one document of row 0, by hand, head 3 (which shares key head 1)
    scores = np.asarray(q[0, start:end, 3] @ k[0, start:end, 1].T) / np.sqrt(8)
    scores[np.triu_indices(end - start, 1)] = -np.inf
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    np.testing.assert_allclose(out[0, start:end, 3], weights @ np.asarray(v[0, start:end, 1]), atol=1e-5)


def test_a_window_of_n_sees_the_token_itself_and_n_minus_one_before_it():
    places = TokenPositions(jnp.arange(6)[None], jnp.ones((1, 6), jnp.int32))
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
