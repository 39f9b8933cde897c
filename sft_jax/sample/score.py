"""Log-probability of every token of given examples under a model."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sft_jax.data.pack.store import Example
from sft_jax.errors import BadInput
from sft_jax.losses.cross_entropy import Head, gather_targets, token_log_probabilities
from sft_jax.model.architecture import Architecture
from sft_jax.model.attention.reference import TokenPositions
from sft_jax.model.decoder import forward, head_kernel
from sft_jax.model.layers import Compute
from sft_jax.parallel.rules import Layout

LENGTH_BUCKET = 128
TARGET_BUCKET = 32
"""Lengths and target counts are padded to multiples of these, so that few shapes are compiled."""


def padded_length(length: int) -> int:
    """Round up to a multiple of LENGTH_BUCKET, or for short documents to a power of two from 16."""
    if length > LENGTH_BUCKET // 2:
        return -(-length // LENGTH_BUCKET) * LENGTH_BUCKET
    return max(16, 1 << (length - 1).bit_length())


def document_states(architecture: Architecture, compute: Compute, parameters, tokens, lengths) -> jax.Array:
    """Hidden states [B, T, D] with one document per row: the first `lengths` [B] of tokens int32 [B, T]."""
    positions = jnp.arange(tokens.shape[1])
    where = TokenPositions(jnp.broadcast_to(positions, tokens.shape), (positions < lengths[:, None]).astype(jnp.int32))
    return forward(architecture, compute, parameters, tokens, where)[0]


@functools.lru_cache(maxsize=8)
def make_score(architecture: Architecture, compute: Compute, chunk: int):
    """Jitted: (parameters, tokens int32 [B, T], lengths int32 [B]) -> log p(token t + 1 | ..t), float32 [B, T-1]."""
    head = Head(architecture, chunk, compute.layout)

    def score(parameters: Mapping[str, jax.Array], tokens: jax.Array, lengths: jax.Array) -> jax.Array:
        hidden = document_states(architecture, compute, parameters, tokens, lengths)
        kernel = head_kernel(architecture, parameters).astype(hidden.dtype)
        # The last position predicts nothing; it is computed because T is divisible over the devices and T - 1 is not.
        log_p = token_log_probabilities(head, kernel, hidden, jnp.roll(tokens, -1, axis=1))[:, :-1]
        return compute.layout.shard(log_p, None, None, name="log_probabilities")  # whole on every process

    return jax.jit(score)


def token_batch(documents: Sequence[np.ndarray], rows: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens int32 [B, T], lengths int32 [B]) of at most B = `rows` documents; padding rows have length 1."""
    lengths = np.ones(rows, np.int32)
    lengths[: len(documents)] = [len(document) for document in documents]
    tokens = np.zeros((rows, padded_length(int(lengths.max()))), np.int32)
    for row, document in enumerate(documents):
        tokens[row, : len(document)] = document
    return tokens, lengths


def check_lengths(examples: Sequence[Example], architecture: Architecture, model: str) -> None:
    """Check that no example is longer than the model's maximum.

    Raises:
      BadInput: names the first one that is, its length and the limit.
    """
    limit = architecture.max_positions
    for example in examples:
        if len(example.tokens) > limit:
            raise BadInput(f"{example.where}: {len(example.tokens):,} tokens, but {model} has {limit:,} positions")


def score_examples(
    architecture: Architecture,
    compute: Compute,
    parameters: Mapping[str, jax.Array],
    examples: Sequence[Example],
    batch_size: int = 8,
) -> Iterator[np.ndarray]:
    """Yield, for each example, float32 [len(tokens) - 1]: the log-probability of each token after the first."""
    batch_size = compute.layout.round_up_batch(batch_size)
    score = make_score(architecture, compute, chunk=max(1, 512 // batch_size))
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        tokens, lengths = token_batch([example.tokens for example in batch], batch_size)
        log_p = np.asarray(score(parameters, tokens, lengths))
        for row in range(len(batch)):
            yield log_p[row, : lengths[row] - 1]


class TargetBatch(NamedTuple):
    """Documents and their targets (tokens with a nonzero weight), padded with zeros; int32."""

    tokens: np.ndarray
    """[B, T]."""
    lengths: np.ndarray
    """[B]; 1 for padding rows."""
    index: np.ndarray
    """[B, M]: position whose hidden state predicts the target."""
    targets: np.ndarray
    """[B, M]."""


def target_batch(layout: Layout, batch: Sequence[Example], rows: int) -> TargetBatch:
    """One batch of at most `rows` documents."""
    tokens, lengths = token_batch([example.tokens for example in batch], rows)
    unit = TARGET_BUCKET * layout.parts("act_targets")
    capacity = max(1, -(-max(example.targets for example in batch) // unit)) * unit
    index, targets = np.zeros((rows, capacity), np.int32), np.zeros((rows, capacity), np.int32)
    for row, example in enumerate(batch):
        trained = np.flatnonzero(example.weights)
        index[row, : len(trained)] = trained - 1  # a document's first token never has a weight
        targets[row, : len(trained)] = example.tokens[trained]
    return TargetBatch(tokens, lengths, index, targets)


def target_states(architecture: Architecture, compute: Compute, parameters, tokens, lengths, index) -> jax.Array:
    """Hidden states [B, M, D] at `index`."""
    return gather_targets(compute.layout, document_states(architecture, compute, parameters, tokens, lengths), index)


@functools.lru_cache(maxsize=8)
def _make_target_scores(architecture: Architecture, compute: Compute, chunk: int):
    def scores(parameters, batch: TargetBatch) -> jax.Array:
        tokens, lengths, index, targets = batch
        states = target_states(architecture, compute, parameters, tokens, lengths, index)
        kernel = head_kernel(architecture, parameters).astype(states.dtype)
        log_p = token_log_probabilities(Head(architecture, chunk, compute.layout), kernel, states, targets)
        return compute.layout.shard(log_p, None, None, name="log_probabilities")  # whole on every process

    return jax.jit(scores)


def score_targets(
    architecture: Architecture,
    compute: Compute,
    parameters: Mapping[str, jax.Array],
    examples: Sequence[Example],
    batch_size: int = 8,
) -> Iterator[np.ndarray]:
    """Yield, for each example, float32 [targets]: log p of its targets. The head is applied to targets only."""
    batch_size = compute.layout.round_up_batch(batch_size)
    score = _make_target_scores(architecture, compute, max(1, 512 // batch_size))
    for start in range(0, len(examples), batch_size):
        batch = [examples[number] for number in range(start, min(start + batch_size, len(examples)))]
        log_p = np.asarray(score(parameters, target_batch(compute.layout, batch, batch_size)))
        for row, example in enumerate(batch):
            yield log_p[row, : example.targets]
