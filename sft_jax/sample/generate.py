"""Batched generation with a KV cache: one jitted prefill, then a jitted decode loop that stops at end of turn.

Prompts are right-padded, and every cache slot stores its position and segment. So rows of different lengths write each
new token to the same slot: one in-place update for the whole batch.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sft_jax.data.chat.tokenizer import vocabulary_size
from sft_jax.model.architecture import Architecture
from sft_jax.model.attention.reference import TokenPositions
from sft_jax.model.cache import Caches
from sft_jax.model.decoder import forward, forward_step, logits, make_caches, unstacked, values_of
from sft_jax.model.layers import Compute
from sft_jax.sample.draw import Sampling, draw
from sft_jax.weights.pretrained import Pretrained

PROMPT_BUCKET = 64
"""Prompts are padded to a multiple of this, so that few shapes are compiled."""
STOP_CHECK_INTERVAL = 16
"""Tokens between checks for stop strings, which run on the host."""

Finish = Literal["stop", "stop_string", "length"]


@dataclass(frozen=True)
class Generated:
    """One completion."""

    tokens: list[int]
    """Without the stop token."""
    stopped: bool
    """Ended with a stop token or a stop string rather than by max_new_tokens."""
    logprobs: list[float]
    """log p of each token under the unmodified model (temperature 1, full vocabulary), including the stop token if one
    ended the completion."""
    finish: Finish
    ids: list[int]
    """Including the stop token; as long as `logprobs`."""
    text: str | None = None
    """Text before the stop string, if one was found; otherwise None: decode `tokens`."""


class State(NamedTuple):
    """A batch between two calls of the decode loop."""

    count: jax.Array
    """int32: tokens generated so far, the same for every row."""
    finished: jax.Array
    """bool [B]."""
    token: jax.Array
    """int32 [B]: the last token."""
    out: jax.Array
    """int32 [B, max_new_tokens]."""
    log_p: jax.Array
    """float32 [B, max_new_tokens]: log p of the tokens in `out`."""
    made: jax.Array
    """int32 [B]: number of tokens of each row, including the stop token."""
    caches: Caches
    where: TokenPositions
    """[B, S]: positions and segments of the cache slots."""


class Programs(NamedTuple):
    """The two jitted halves of generation."""

    prefill: Callable[..., State]
    """(parameters, prompts int32 [U, P], prompt lengths int32 [U], and per row: prompt index int32 [B], prompt length
    int32 [B], key [B]) -> state with the first token. Each prompt is processed once, however many rows continue it.
    Rows of length 0 pad the batch and count as finished."""
    decode: Callable[..., State]
    """(parameters, state, lengths, keys, until) -> state after `until` tokens, or when all rows have finished; donates
    the state."""


@functools.lru_cache(maxsize=16)
def make_programs(
    architecture: Architecture, compute: Compute, sampling: Sampling, stop_ids: tuple[int, ...], sampled_vocab: int
) -> Programs:
    """The jitted prefill and decode loop for these sampling settings, cached.

    Args:
      sampled_vocab: ids from here on (rows of the head without a token in the tokenizer) are never sampled.
    """
    stops = np.array(stop_ids, np.int32)
    limit = sampling.max_new_tokens
    compute = replace(compute, layout=compute.layout.without_length_sharding)
    on_cpu = compute.layout.platform == "cpu"

    def stepped(parameters):
        """(architecture, compute, values) for the decode loop."""
        values = values_of(architecture, parameters)
        arranged = unstacked(architecture, compute, values) if on_cpu else (architecture, values)
        return arranged[0], compute, arranged[1]

    def next_token(parameters, hidden_BD, keys, count):
        raw = logits(architecture, parameters, hidden_BD)
        allowed = jnp.where(jnp.arange(raw.shape[-1]) < sampled_vocab, raw, -jnp.inf)
        token = draw(allowed, jax.vmap(jax.random.fold_in, (0, None))(keys, count), sampling)
        log_p = jnp.take_along_axis(raw, token[:, None], axis=-1)[:, 0] - jax.nn.logsumexp(raw, axis=-1)
        return token, log_p

    def prefill(parameters: Mapping[str, jax.Array], prompts, prompt_lengths, prompt_of, lengths, keys) -> State:
        (rows,), width = prompt_of.shape, prompts.shape[1]
        index = jnp.arange(width)
        filled = (index < prompt_lengths[:, None]).astype(jnp.int32)
        where = TokenPositions(jnp.broadcast_to(index, prompts.shape), filled)
        hidden, kv = forward(architecture, compute, parameters, prompts, where, keep_kv=True)
        last = jnp.take_along_axis(hidden, jnp.maximum(prompt_lengths - 1, 0)[:, None, None], axis=1)[:, 0]
        # All completions of a prompt share its keys, values and last hidden state.
        first, log_p = next_token(parameters, last[prompt_of], keys, 0)
        of_rows = jax.tree.map(lambda x: jnp.take(x, prompt_of, axis=1), kv)
        return State(
            jnp.int32(1),
            jnp.isin(first, stops) | (lengths == 0),
            first,
            jnp.zeros((rows, limit), jnp.int32).at[:, 0].set(first),
            jnp.zeros((rows, limit), jnp.float32).at[:, 0].set(log_p),
            jnp.ones(rows, jnp.int32),
            make_caches(stepped(parameters)[0], of_rows[0], of_rows[1], limit),
            TokenPositions(*(jnp.pad(x[prompt_of], ((0, 0), (0, limit))) for x in where)),
        )

    def decode(parameters: Mapping[str, jax.Array], state: State, lengths, keys, until) -> State:
        rows = lengths.shape[0]
        width = state.where.positions.shape[1] - limit
        decoder = stepped(parameters)

        def unfinished(state: State):
            return (state.count < until) & ~state.finished.all()

        def step(state: State) -> State:
            count = state.count
            mine = TokenPositions(jnp.maximum(lengths + count - 1, 0)[:, None], jnp.ones((rows, 1), jnp.int32))
            slot = width + count - 1
            slots = TokenPositions(
                *(jax.lax.dynamic_update_slice(old, x, (0, slot)) for old, x in zip(state.where, mine, strict=True))
            )
            hidden, caches = forward_step(*decoder, state.token[:, None], mine, state.caches, slots, slot)
            token, log_p = next_token(parameters, hidden[:, 0], keys, count)
            return State(
                count + 1,
                state.finished | jnp.isin(token, stops),
                token,
                jax.lax.dynamic_update_slice(state.out, token[:, None], (0, count)),
                jax.lax.dynamic_update_slice(state.log_p, log_p[:, None], (0, count)),
                state.made + ~state.finished,
                caches,
                slots,
            )

        state = jax.lax.while_loop(unfinished, step, state)
        whole = {
            name: compute.layout.shard(getattr(state, name), *axes) for name, axes in _REPLICATED.items()
        }  # on every process
        return state._replace(**whole)

    return Programs(jax.jit(prefill), jax.jit(decode, donate_argnums=1))


_REPLICATED = {"out": (None, None), "log_p": (None, None), "made": (None,), "finished": (None,)}


class Generator:
    """Generates completions for any number of prompts in batches of a fixed size; caches compiled functions."""

    def __init__(
        self,
        architecture: Architecture,
        compute: Compute,
        stop_ids: Sequence[int],
        sampled_vocab: int,
        batch_size: int = 32,
        decode: Callable[[list[int]], str] | None = None,
    ):
        """
        Args:
          decode: token ids -> text without special tokens; needed only for stop strings.
        """
        self._architecture, self._compute, self._sampled_vocab = architecture, compute, sampled_vocab
        self._limit = architecture.max_positions
        self._stop_ids = tuple(stop_ids)
        self._batch_size = compute.layout.round_up_batch(batch_size)
        self._decode = decode

    def __call__(
        self,
        parameters: Mapping[str, jax.Array],
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        n: int = 1,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[list[Generated]]:
        """n completions of every prompt, in order.

        A completion depends on its prompt's index in `prompts`, its own index and the seed, not on the batching.

        Raises:
          ValueError: an empty prompt, or one that leaves no room for a new token.
        """
        for index, prompt in enumerate(prompts):
            if not 1 <= len(prompt) <= self._limit - 1:
                raise ValueError(f"prompt {index} has {len(prompt)} tokens, expected 1..{self._limit - 1}")
        # Sort so that rows of a batch have similar lengths and completions of one prompt are adjacent.
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        jobs = [(index, number) for index in order for number in range(n)]
        distinct = self._compute.layout.round_up_batch(min(self._batch_size, -(-(self._batch_size - 1) // n) + 1))
        results: dict[tuple[int, int], Generated] = {}
        for start in range(0, len(jobs), self._batch_size):
            batch = jobs[start : start + self._batch_size]
            for job, generated in zip(batch, self._run(parameters, prompts, batch, sampling, distinct), strict=True):
                results[job] = generated
            progress(len(results), len(jobs))
        return [[results[index, number] for number in range(n)] for index in range(len(prompts))]

    def _run(self, parameters, prompts, batch, sampling: Sampling, distinct: int) -> list[Generated]:
        """Completions of one batch with at most `distinct` prompts."""
        used = list(dict.fromkeys(index for index, _ in batch))
        prompt_lengths = np.zeros(distinct, np.int32)
        prompt_lengths[: len(used)] = [len(prompts[index]) for index in used]
        width = -(-int(prompt_lengths.max()) // PROMPT_BUCKET) * PROMPT_BUCKET
        tokens = np.zeros((distinct, width), np.int32)
        for row, index in enumerate(used):
            tokens[row, : prompt_lengths[row]] = prompts[index]
        prompt_of, lengths = np.zeros(self._batch_size, np.int32), np.zeros(self._batch_size, np.int32)
        prompt_of[: len(batch)] = [used.index(index) for index, _ in batch]
        lengths[: len(batch)] = prompt_lengths[prompt_of[: len(batch)]]  # the others are padding
        root = jax.random.key(sampling.seed)
        numbers = [*batch, *[(0, 0)] * (self._batch_size - len(batch))]
        keys = jnp.stack([jax.random.fold_in(jax.random.fold_in(root, index), number) for index, number in numbers])
        # The programs depend neither on the seed nor on stop strings, which are checked on the host.
        drawn = replace(sampling, seed=0, stop=())
        programs = make_programs(self._architecture, self._compute, drawn, self._stop_ids, self._sampled_vocab)
        state = programs.prefill(parameters, tokens, prompt_lengths, prompt_of, lengths, keys)
        until = 1
        while True:
            until = min(
                sampling.max_new_tokens, until + STOP_CHECK_INTERVAL if sampling.stop else sampling.max_new_tokens
            )
            state = programs.decode(parameters, state, lengths, keys, np.int32(until))
            out, log_p, made, finished = (np.asarray(x) for x in (state.out, state.log_p, state.made, state.finished))
            found = [self._generated(out[row], log_p[row], int(made[row]), sampling) for row in range(len(batch))]
            ended = np.array([one.finish == "stop_string" for one in found] + [False] * (len(finished) - len(found)))
            if until >= sampling.max_new_tokens or (finished | ended).all():
                return found
            if ended.any():  # stop decoding these rows
                state = state._replace(finished=jnp.asarray(finished | ended))

    def _generated(self, out: np.ndarray, log_p: np.ndarray, made: int, sampling: Sampling) -> Generated:
        ids, logprobs = out[:made].tolist(), log_p[:made].tolist()
        stopped = ids[-1] in self._stop_ids
        tokens = ids[:-1] if stopped else ids
        if sampling.stop and (cut := self._first_stop(tokens, sampling.stop)):
            count, text = cut
            return Generated(ids[:count], True, logprobs[:count], "stop_string", ids[:count], text)
        return Generated(tokens, stopped, logprobs, "stop" if stopped else "length", ids)

    def _first_stop(self, tokens: list[int], stop: Sequence[str]) -> tuple[int, str] | None:
        """(number of tokens through the one that completes a stop string, text before it); None if none occurs."""
        assert self._decode is not None, "stop strings need `decode`"
        text = self._decode(tokens)
        places = [place for place in (text.find(one) for one in stop) if place >= 0]
        if not places:
            return None
        low, high = 1, len(tokens)
        while low < high:  # binary search for the token that completes a stop string
            middle = (low + high) // 2
            part = self._decode(tokens[:middle])
            low, high = (low, middle) if any(one in part for one in stop) else (middle + 1, high)
        return low, text[: min(places)]


def generator_of(pretrained: Pretrained, architecture: Architecture, compute: Compute, batch_size: int) -> Generator:
    """A generator for a model with its own tokenizer and stop tokens."""
    tokenizer = pretrained.tokenizer

    def decode(ids: list[int]) -> str:
        return tokenizer.decode(ids, skip_special_tokens=True)

    return Generator(
        architecture, compute, pretrained.stop_ids, vocabulary_size(tokenizer), batch_size=batch_size, decode=decode
    )
