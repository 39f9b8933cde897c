"""Batched generation: one jitted prefill and one jitted decode loop over a KV cache, which stops at end of turn.

Prompts are padded on the right and the cache's slots carry their own positions and segment, so rows of different
lengths write each new token into the same slot: one update in place for the whole batch.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sft_jax.model.architecture import Architecture
from sft_jax.model.attention import MASKED, Places
from sft_jax.model.decoder import Compute, forward, logits
from sft_jax.parallel.rules import rows_whole, shard, whole_batches

PROMPT_BUCKET = 64
"""Prompts of a batch are padded to a multiple of this, so that few shapes are compiled."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    """0 takes the most probable token."""
    top_p: float = 1.0
    """Draw from the smallest set of tokens whose probability reaches top_p (Holtzman et al. 2020)."""
    seed: int = 0


@dataclass(frozen=True)
class Generated:
    """One completion."""

    tokens: list[int]
    """Without the stop token."""
    stopped: bool
    """Ended with a stop token rather than by max_new_tokens."""


def draw(raw_BV: jax.Array, keys_B: jax.Array, temperature: float, top_p: float) -> jax.Array:
    """Next tokens int32 [B] from float32 logits [B, V]."""
    if temperature == 0:
        return jnp.argmax(raw_BV, axis=-1).astype(jnp.int32)
    scaled = raw_BV / temperature
    if top_p < 1:
        ordered = jnp.sort(scaled, axis=-1, descending=True)
        reached = jnp.cumsum(jax.nn.softmax(ordered, axis=-1), axis=-1)
        # The token that crosses top_p still belongs to the set.
        last = jnp.sum(reached < top_p, axis=-1, keepdims=True)
        scaled = jnp.where(scaled < jnp.take_along_axis(ordered, last, axis=-1), MASKED, scaled)
    return jax.vmap(jax.random.categorical)(keys_B, scaled).astype(jnp.int32)


def _pad_cache(kv: Any, extra: int) -> Any:
    """Append `extra` empty slots to keys and values [..., B, S, K, H]."""
    return jax.tree.map(lambda x: jnp.pad(x, [(0, 0)] * (x.ndim - 3) + [(0, extra), (0, 0), (0, 0)]), kv)


def _write(kv: Any, new: Any, slot: jax.Array) -> Any:
    """Put one token's keys and values [..., B, 1, K, H] into `slot`."""
    return jax.tree.map(lambda old, x: jax.lax.dynamic_update_slice_in_dim(old, x, slot, old.ndim - 3), kv, new)


def make_generate(
    architecture: Architecture, compute: Compute, sampling: Sampling, stop_ids: Sequence[int], sampled_vocab: int
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """The jitted (parameters, prompts [B, P], lengths [B], keys [B]) -> (tokens [B, max_new_tokens], counts [B]).

    counts: tokens generated, the stop token included. Rows of length 0 fill the batch up; nothing waits for them.

    Args:
      sampled_vocab: ids from here on are never sampled (rows of the head that no token of the tokenizer has).
    """
    stops = jnp.array(stop_ids, jnp.int32)

    def next_token(parameters, hidden_BD, keys, count):
        raw = logits(architecture, parameters, hidden_BD)
        raw = jnp.where(jnp.arange(raw.shape[-1]) < sampled_vocab, raw, MASKED)
        return draw(raw, jax.vmap(jax.random.fold_in, (0, None))(keys, count), sampling.temperature, sampling.top_p)

    @rows_whole()
    def generate(parameters: Mapping[str, jax.Array], prompts: jax.Array, lengths: jax.Array, keys: jax.Array):
        rows, width = prompts.shape
        slots = width + sampling.max_new_tokens
        index = jnp.arange(width)
        filled = (index < lengths[:, None]).astype(jnp.int32)
        places = Places(jnp.broadcast_to(index, prompts.shape), filled)
        hidden, kv = forward(architecture, compute, parameters, prompts, places, keep_kv=True)
        last = jnp.take_along_axis(hidden, jnp.maximum(lengths - 1, 0)[:, None, None], axis=1)[:, 0]
        first = next_token(parameters, last, keys, 0)

        def unfinished(carry):
            count, finished, *_ = carry
            return (count < sampling.max_new_tokens) & ~finished.all()

        def step(carry):
            count, finished, token, out, made, kv, cached = carry
            mine = Places(jnp.maximum(lengths + count - 1, 0)[:, None], jnp.ones((rows, 1), jnp.int32))
            hidden, new = forward(
                architecture, compute, parameters, token[:, None], mine, cache=(kv, cached), keep_kv=True
            )
            slot = width + count - 1
            kv = _write(kv, new, slot)
            cached = Places(
                *(jax.lax.dynamic_update_slice(old, x, (0, slot)) for old, x in zip(cached, mine, strict=True))
            )
            token = next_token(parameters, hidden[:, 0], keys, count)
            out = jax.lax.dynamic_update_slice(out, token[:, None], (0, count))
            made = made + ~finished
            return count + 1, finished | jnp.isin(token, stops), token, out, made, kv, cached

        out = jnp.zeros((rows, sampling.max_new_tokens), jnp.int32).at[:, 0].set(first)
        cached = Places(*(jnp.pad(x, ((0, 0), (0, slots - width))) for x in places))
        start = (
            1,
            jnp.isin(first, stops) | (lengths == 0),
            first,
            out,
            jnp.ones(rows, jnp.int32),
            _pad_cache(kv, slots - width),
            cached,
        )
        _, _, _, out, made, _, _ = jax.lax.while_loop(unfinished, step, start)
        return shard(out, None, None), shard(made, None)  # whole on every process

    return jax.jit(generate)


class Generator:
    """Generates for any number of prompts in batches of one size; compiled functions are kept between calls."""

    def __init__(
        self,
        architecture: Architecture,
        compute: Compute,
        stop_ids: Sequence[int],
        sampled_vocab: int,
        batch_size: int = 32,
    ):
        self._make = functools.cache(
            lambda sampling: make_generate(architecture, compute, sampling, stop_ids, sampled_vocab)
        )
        self._limit = architecture.max_positions
        self._stop_ids = set(stop_ids)
        self._batch_size = whole_batches(batch_size)

    def __call__(
        self, parameters: Mapping[str, jax.Array], prompts: Sequence[Sequence[int]], sampling: Sampling, n: int = 1
    ) -> list[list[Generated]]:
        """n completions of every prompt, in order.

        A completion depends on its prompt's place in `prompts`, its number and the seed, not on the batches.

        Raises:
          ValueError: an empty prompt, or one that leaves no position for a new token.
        """
        jobs = [(index, number) for index in range(len(prompts)) for number in range(n)]
        jobs.sort(key=lambda job: len(prompts[job[0]]))  # rows of one batch have like lengths
        results: dict[tuple[int, int], Generated] = {}
        for start in range(0, len(jobs), self._batch_size):
            batch = jobs[start : start + self._batch_size]
            for job, generated in zip(batch, self._run(parameters, prompts, batch, sampling), strict=True):
                results[job] = generated
        return [[results[index, number] for number in range(n)] for index in range(len(prompts))]

    def _run(self, parameters, prompts, batch, sampling: Sampling) -> list[Generated]:
        lengths = np.zeros(self._batch_size, np.int32)  # rows of length 0 fill the last batch up
        lengths[: len(batch)] = [len(prompts[index]) for index, _ in batch]
        width = -(-int(lengths.max()) // PROMPT_BUCKET) * PROMPT_BUCKET
        for index, _ in batch:
            if not 1 <= len(prompts[index]) <= self._limit - 1:
                raise ValueError(f"prompt {index} has {len(prompts[index])} tokens, expected 1..{self._limit - 1}")
        tokens = np.zeros((self._batch_size, width), np.int32)
        for row, (index, _) in enumerate(batch):
            tokens[row, : lengths[row]] = prompts[index]
        root = jax.random.key(sampling.seed)
        numbers = [*batch, *[(0, 0)] * (self._batch_size - len(batch))]
        keys = jnp.stack([jax.random.fold_in(jax.random.fold_in(root, index), number) for index, number in numbers])
        out, made = self._make(sampling)(parameters, tokens, lengths, keys)
        out, made = np.asarray(out), np.asarray(made)
        generated = []
        for row in range(len(batch)):
            ids = out[row, : made[row]].tolist()
            stopped = ids[-1] in self._stop_ids
            generated.append(Generated(ids[:-1] if stopped else ids, stopped))
        return generated
