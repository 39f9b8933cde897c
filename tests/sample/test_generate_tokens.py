from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax.data.pack.store import Example
from sft_jax.model.attention.reference import TokenPositions
from sft_jax.model.decoder import forward, logits
from sft_jax.model.layers import Compute
from sft_jax.sample.draw import Sampling, draw, filtered
from sft_jax.sample.generate import Generator, make_programs
from sft_jax.sample.score import score_examples

STOP = 257


@pytest.fixture(scope="module")
def prompts():
    random = np.random.default_rng(0)
    return [random.integers(0, 256, n).tolist() for n in (3, 17, 70, 5, 40)]


@pytest.fixture(scope="module")
def generator(tiny):
    """In several batches."""
    return Generator(tiny, Compute(), [STOP], 258, batch_size=2)


@pytest.fixture(scope="module")
def wide_generator(tiny):
    """All prompts in one batch."""
    return Generator(tiny, Compute(), [STOP], 258)


@partial(jax.jit, static_argnums=0)
def _logits(architecture, parameters, tokens, places):
    return logits(architecture, parameters, forward(architecture, Compute(), parameters, tokens, places)[0])


def _greedy(tiny, parameters, prompt, count):
    """Without a cache: the whole text again for each token."""
    ids = list(prompt)
    padded = np.zeros((1, 96), np.int32)
    for _ in range(count):
        n = len(ids)
        padded[0, :n] = ids
        places = TokenPositions(np.arange(96)[None], (np.arange(96) < n)[None].astype(np.int32))
        raw = np.asarray(_logits(tiny, parameters, padded, places))[0, n - 1]
        ids.append(int(raw[:258].argmax()))
        if ids[-1] == STOP:
            break
    return ids[len(prompt) :]


def test_greedy_generation_equals_repeated_whole_forwards(tiny, tiny_parameters, generator, prompts):
    generated = generator(tiny_parameters, prompts, Sampling(max_new_tokens=20))
    for prompt, [one] in zip(prompts, generated, strict=True):
        want = _greedy(tiny, tiny_parameters, prompt, 20)
        assert one.stopped == (want[-1] == STOP)
        assert one.tokens == [token for token in want if token != STOP]


def test_generation_stops_at_the_stop_token_and_says_so(tiny, tiny_parameters, wide_generator, prompts):
    generated = wide_generator(tiny_parameters, prompts, Sampling(max_new_tokens=20))
    seen = next(one.tokens for [one] in generated if len(one.tokens) > 3)
    stop = seen[2]
    stopped = Generator(tiny, Compute(), [stop], 258)(tiny_parameters, prompts, Sampling(max_new_tokens=20))
    ends = [one for [one] in stopped if one.stopped]
    assert ends and all(stop not in one.tokens for [one] in stopped)
    assert any(one.tokens == seen[: seen.index(stop)] for one in ends)


@pytest.mark.slow
def test_a_draw_depends_on_prompt_number_and_seed_not_on_the_batch(tiny, tiny_parameters, generator, prompts):
    sampling = Sampling(max_new_tokens=8, temperature=1.0, seed=4)
    once = generator(tiny_parameters, prompts, sampling, n=2)
    wide = Generator(tiny, Compute(), [STOP], 258, batch_size=16)(tiny_parameters, prompts, sampling, n=2)
    assert [[one.tokens for one in each] for each in once] == [[one.tokens for one in each] for each in wide]
    assert once[0][0].tokens != once[0][1].tokens
    other = generator(tiny_parameters, prompts, Sampling(max_new_tokens=8, temperature=1.0, seed=5), n=2)
    assert once != other


def test_rows_of_the_head_without_a_token_are_never_sampled(tiny, tiny_parameters, wide_generator, prompts):
    """Ids 258 and 259 are the model's own surplus rows: they have probability, and no text."""
    favoured = dict(tiny_parameters)
    hidden_like = favoured["embedding"][:256].mean(0)
    favoured["embedding"] = favoured["embedding"].at[259].set(hidden_like * 1000)
    free = Generator(tiny, Compute(), [STOP], 260)(favoured, prompts, Sampling(max_new_tokens=20))
    assert any(259 in one.tokens for [one] in free)
    held = wide_generator(favoured, prompts, Sampling(max_new_tokens=20))
    assert not any(token >= 258 for [one] in held for token in one.tokens)


def test_top_p_draws_from_the_smallest_set_that_reaches_p():
    probabilities = jnp.asarray([0.5, 0.3, 0.15, 0.05])
    raw = jnp.tile(jnp.log(probabilities), (4000, 1))
    keys = jax.random.split(jax.random.key(0), 4000)
    assert set(np.unique(draw(raw, keys, Sampling(temperature=1.0, top_p=0.6)))) == {0, 1}
    assert set(np.unique(draw(raw, keys, Sampling(temperature=1.0)))) == {0, 1, 2, 3}
    assert set(np.unique(draw(raw, keys, Sampling(temperature=0.0)))) == {0}
    shares = np.bincount(draw(raw, keys, Sampling(temperature=1.0)), minlength=4) / 4000
    np.testing.assert_allclose(shares, probabilities, atol=0.03)


def test_a_prompt_without_room_for_a_token_is_refused(tiny_parameters, generator):
    with pytest.raises(ValueError, match="512 tokens"):
        generator(tiny_parameters, [[1] * 512], Sampling(max_new_tokens=1))


def test_nothing_waits_for_the_rows_that_fill_a_batch_up(tiny, tiny_parameters, generator, prompts):
    """The loop ends when the real rows have stopped: an empty row has made no token by then."""
    [[one]] = generator(tiny_parameters, prompts[:1], Sampling(max_new_tokens=20))
    stop = one.tokens[2]
    programs = make_programs(tiny, Compute(), Sampling(max_new_tokens=20), (stop,), 258)
    tokens = np.zeros((2, 64), np.int32)
    tokens[0, : len(prompts[0])] = prompts[0]
    lengths, keys = np.array([len(prompts[0]), 0], np.int32), jax.random.split(jax.random.key(0), 2)
    state = programs.prefill(tiny_parameters, tokens, lengths, np.arange(2, dtype=np.int32), lengths, keys)
    state = programs.decode(tiny_parameters, state, lengths, keys, 20)
    out, made = state.out, state.made
    count = one.tokens.index(stop) + 1
    assert made.tolist() == [count, 1]
    assert not np.asarray(out)[:, count:].any()


def _kept(**options) -> set[int]:
    raw = jnp.log(jnp.asarray([[0.5, 0.3, 0.15, 0.05]]))
    return set(np.flatnonzero(np.isfinite(filtered(raw, Sampling(temperature=1.0, **options)))[0]).tolist())


def test_top_k_top_p_and_min_p_each_keep_their_set():
    assert _kept() == {0, 1, 2, 3}
    assert _kept(top_k=2) == {0, 1} and _kept(top_k=9) == {0, 1, 2, 3}
    assert _kept(min_p=0.29) == {0, 1, 2} and _kept(min_p=0.61) == {0}
    assert _kept(top_k=3, top_p=0.83) == {0, 1}  # of the three, renormalised: 0.53, 0.32, 0.16
    assert _kept(top_p=0.83) == {0, 1, 2}


def test_log_probabilities_are_those_of_scoring_the_whole_text(tiny, tiny_parameters, prompts):
    """Also where the draw is filtered and hot: they are the model's own."""
    sampling = Sampling(max_new_tokens=12, temperature=1.5, top_k=40, seed=3)
    stops = range(0, 256, 12)  # some rows draw one of them
    generated = Generator(tiny, Compute(), stops, 258, batch_size=10)(tiny_parameters, prompts, sampling, n=2)
    flat = [(prompt, one) for prompt, each in zip(prompts, generated, strict=True) for one in each]
    assert {one.finish for _, one in flat} == {"stop", "length"}
    documents = []
    for prompt, one in flat:
        assert len(one.ids) == len(one.logprobs) == len(one.tokens) + one.stopped
        ids = np.array([*prompt, *one.ids], np.int32)
        documents.append(Example("x", "f", 1, ids, np.zeros(len(ids), np.float32)))
    scores = score_examples(tiny, Compute(), tiny_parameters, documents, 4)
    for (prompt, one), log_p in zip(flat, scores, strict=True):
        np.testing.assert_allclose(one.logprobs, log_p[len(prompt) - 1 :], atol=1e-4)


@pytest.mark.slow
def test_completions_of_one_prompt_share_its_reading_and_change_nothing(tiny, tiny_parameters, prompts):
    sampling = Sampling(max_new_tokens=6, temperature=1.0, seed=7)
    together = Generator(tiny, Compute(), [STOP], 258, batch_size=5)(tiny_parameters, prompts, sampling, n=3)
    for number in range(3):
        alone = Generator(tiny, Compute(), [STOP], 258, batch_size=2)(tiny_parameters, prompts, sampling, n=number + 1)
        assert [each[number].tokens for each in alone] == [each[number].tokens for each in together]


@pytest.mark.slow
def test_a_completion_ends_before_a_stop_string_also_across_tokens_and_pieces(tiny, tiny_parameters, prompts):
    def decode(ids: list[int]) -> str:
        return "".join(chr(0x100 + token) for token in ids)

    def generator(stops=()):
        return Generator(tiny, Compute(), list(stops), 258, batch_size=4, decode=decode)

    free = generator()(tiny_parameters, prompts, Sampling(max_new_tokens=40))
    texts = [decode(one.tokens) for [one] in free]
    stop = texts[0][18:20]  # two tokens, in the second piece
    cut = generator()(tiny_parameters, prompts, Sampling(max_new_tokens=40, stop=(stop, "never")))
    for text, [before], [one] in zip(texts, free, cut, strict=True):
        if (place := text.find(stop)) < 0:
            assert one.finish == "length" and one.tokens == before.tokens and one.text is None
            continue
        assert one.text == text[:place] and one.stopped and one.finish == "stop_string"
        assert one.ids == before.ids[: place + 2]
        assert one.logprobs == pytest.approx(before.logprobs[: place + 2], abs=1e-5)
    assert cut[0][0].finish == "stop_string"
