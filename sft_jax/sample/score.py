"""log p of every token of given examples, under a model."""

from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from sft_jax.data.store import Example
from sft_jax.errors import BadInput
from sft_jax.model.architecture import Architecture
from sft_jax.model.attention import Places
from sft_jax.model.decoder import Compute, forward, head_kernel
from sft_jax.parallel.rules import shard, whole_batches
from sft_jax.train.loss import Head, token_log_probabilities

LENGTH_BUCKET = 128


def make_score(architecture: Architecture, compute: Compute, chunk: int):
    """The jitted (parameters, tokens int32 [B, T], lengths int32 [B]) -> log p(token t + 1 | ..t), float32 [B, T-1]."""
    head = Head(architecture, chunk)

    def score(parameters: Mapping[str, jax.Array], tokens: jax.Array, lengths: jax.Array) -> jax.Array:
        index = jnp.arange(tokens.shape[1])
        places = Places(jnp.broadcast_to(index, tokens.shape), (index < lengths[:, None]).astype(jnp.int32))
        hidden, _ = forward(architecture, compute, parameters, tokens, places)
        kernel = head_kernel(architecture, parameters).astype(hidden.dtype)
        # The last position predicts nothing; it is computed because T divides over the devices and T - 1 does not.
        log_p = token_log_probabilities(head, kernel, hidden, jnp.roll(tokens, -1, axis=1))[:, :-1]
        return shard(log_p, None, None, name="log_probabilities")  # whole on every process

    return jax.jit(score)


def check_lengths(examples: Sequence[Example], architecture: Architecture, model: str) -> None:
    """Refuse examples that the model has no positions for.

    Raises:
      BadInput: names the first one, its length and the limit.
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
    """For each example in order: float32 [len(tokens) - 1], the log-probability of each token after the first."""
    batch_size = whole_batches(batch_size)
    score = make_score(architecture, compute, chunk=max(1, 512 // batch_size))
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        lengths = np.ones(batch_size, np.int32)
        lengths[: len(batch)] = [len(example.tokens) for example in batch]
        width = max(2, -(-int(lengths.max()) // LENGTH_BUCKET) * LENGTH_BUCKET)
        tokens = np.zeros((batch_size, width), np.int32)
        for row, example in enumerate(batch):
            tokens[row, : lengths[row]] = example.tokens
        log_p = np.asarray(score(parameters, tokens, lengths))
        for row in range(len(batch)):
            yield log_p[row, : lengths[row] - 1]
