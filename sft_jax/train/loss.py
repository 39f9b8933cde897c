"""Masked cross-entropy on the demonstrated tokens alone, and SFT as an objective over the step.

Only the [b, M] target positions meet the head, in chunks: no buffer with a vocabulary axis exceeds chunk x V. The
gradient of a chunk is computed with its loss, in the forward pass, so logits are made once and never kept.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sft_jax.data.batches import Batch
from sft_jax.model.architecture import Architecture
from sft_jax.model.attention import Places
from sft_jax.model.decoder import Compute, cap_and_mask, forward, head_kernel
from sft_jax.parallel.rules import shard

Objective = Callable[..., tuple[jax.Array, jax.Array, Mapping[str, jax.Array]]]
"""(trainable, frozen, batch, rng) -> (loss_sum, weight_sum, metric_sums), all float32 sums, nothing divided."""


class Head(NamedTuple):
    """What turns hidden states into logits, besides the kernel; hashable, so static under `jax.jit`."""

    architecture: Architecture
    chunk: int
    """Target positions of each row that meet the head at once."""


class ChunkSums(NamedTuple):
    """float32 scalars: weight * nll, weight * (arg max is the target), weight * entropy of the prediction."""

    loss: jax.Array
    correct: jax.Array
    entropy: jax.Array


def _chunk(head: Head, kernel_VD, hidden_BMD, targets_BM, weights_BM, with_gradients: bool):
    """Sums of one chunk and, for unit cotangent of the loss, the gradients of kernel and hidden states."""
    wide = jnp.promote_types(hidden_BMD.dtype, jnp.float32)
    raw = jnp.einsum("BMD,VD->BMV", hidden_BMD, kernel_VD, preferred_element_type=wide)
    raw = shard(raw, "act_batch", "act_targets", "vocab")
    logits = cap_and_mask(head.architecture, raw)
    top = logits.max(axis=-1, keepdims=True)
    exponentials = jnp.exp(logits - top)
    total = exponentials.sum(axis=-1, keepdims=True)
    log_total = (top + jnp.log(total))[..., 0]
    # A comparison instead of a gather: it fuses into the reductions and stays local when the vocabulary is sharded.
    is_target = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 2) == targets_BM[..., None]
    target_logit = jnp.where(is_target, logits, 0.0).sum(axis=-1)
    probabilities = exponentials / total
    entropy = log_total - (probabilities * logits).sum(axis=-1)
    correct = target_logit >= top[..., 0]
    sums = ChunkSums(
        loss=(weights_BM * (log_total - target_logit)).sum(),
        correct=(weights_BM * correct).sum(),
        entropy=(weights_BM * entropy).sum(),
    )
    if not with_gradients:
        return sums, None
    d_logits = weights_BM[..., None] * (probabilities - is_target)
    cap = head.architecture.logit_softcap
    if cap is not None:
        d_logits = d_logits * (1 - jnp.square(jnp.tanh(raw / cap)))
    d_logits = d_logits.astype(hidden_BMD.dtype)
    d_hidden = jnp.einsum("BMV,VD->BMD", d_logits, kernel_VD, preferred_element_type=wide)
    d_kernel = jnp.einsum("BMV,BMD->VD", d_logits, hidden_BMD, preferred_element_type=wide)
    return sums, (d_kernel, d_hidden.astype(hidden_BMD.dtype))


def _over_chunks(head: Head, kernel_VD, hidden_BMD, targets_BM, weights_BM, with_gradients: bool):
    rows, capacity, _ = hidden_BMD.shape
    size = min(head.chunk, capacity)
    count = -(-capacity // size)
    padding = count * size - capacity

    def split(x):
        x = jnp.pad(x, ((0, 0), (0, padding)) + ((0, 0),) * (x.ndim - 2))
        return x.reshape(rows, count, size, *x.shape[2:]).swapaxes(0, 1)

    def one(carry, chunk):
        hidden, targets, weights = chunk
        sums, gradients = _chunk(head, kernel_VD, hidden, targets, weights, with_gradients)
        d_kernel, d_hidden = gradients if gradients is not None else (None, None)
        return jax.tree.map(jnp.add, carry, (sums, d_kernel)), d_hidden

    wide = jnp.promote_types(hidden_BMD.dtype, jnp.float32)
    zero = ChunkSums(*(jnp.zeros((), wide),) * 3)
    start = (zero, jnp.zeros(kernel_VD.shape, wide) if with_gradients else None)
    chunks = (split(hidden_BMD), split(targets_BM), split(weights_BM))
    if count == 1:
        (sums, d_kernel), d_hidden = one(start, jax.tree.map(lambda x: x[0], chunks))
    else:
        (sums, d_kernel), d_hidden = jax.lax.scan(one, start, chunks)
        if d_hidden is not None:
            d_hidden = d_hidden.swapaxes(0, 1).reshape(rows, count * size, -1)[:, :capacity]
    return sums, (d_kernel, d_hidden)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def cross_entropy_sums(head: Head, kernel_VD, hidden_BMD, targets_BM, weights_BM) -> ChunkSums:
    """Weighted sums over all targets: loss, accuracy and entropy numerators (float32 scalars).

    Args:
      head: architecture (soft-cap, vocabulary) and the chunk length along M.
      kernel_VD: [V, D] in the compute dtype.
      hidden_BMD: [B, M, D] hidden states at the target positions, compute dtype.
      targets_BM: int32 [B, M].
      weights_BM: float32 [B, M]; 0 for padding.

    Only `loss` is differentiable; `correct` and `entropy` are metrics and have zero gradient.
    """
    return _over_chunks(head, kernel_VD, hidden_BMD, targets_BM, weights_BM, with_gradients=False)[0]


def _forward_rule(head, kernel_VD, hidden_BMD, targets_BM, weights_BM):
    sums, gradients = _over_chunks(head, kernel_VD, hidden_BMD, targets_BM, weights_BM, with_gradients=True)
    # An empty slice carries the kernel's dtype to the backward pass.
    return sums, (gradients, kernel_VD[:0])


def _backward_rule(head, saved, cotangent: ChunkSums):
    del head
    (d_kernel, d_hidden), kernel_like = saved
    scale = cotangent.loss
    return (scale * d_kernel).astype(kernel_like.dtype), (scale * d_hidden).astype(d_hidden.dtype), None, None


cross_entropy_sums.defvjp(_forward_rule, _backward_rule)


def gather_targets(hidden_BTD: jax.Array, target_index_BM: jax.Array) -> jax.Array:
    """Hidden states [B, M, D] at the target positions; adds no collective when only the batch is sharded."""
    picked = jnp.take_along_axis(hidden_BTD, target_index_BM[..., None], axis=1)
    return shard(picked, "act_batch", "act_targets", "act_embed")


def sft_objective(architecture: Architecture, compute: Compute, chunk: int) -> Objective:
    """-sum(weight * log p(target | context)) over the demonstrated tokens of one micro-batch.

    Args:
      chunk: target positions of each row that meet the head at once.

    Returns:
      An objective whose batch is a `Batch` without the leading micro-batch axis. metric_sums: `correct` and `entropy`
      (weighted), `tokens`, `target_tokens` (counts), `pairs` (query-key pairs within documents, for FLOP counts).
    """
    head = Head(architecture, chunk)

    def objective(trainable, frozen, batch: Batch, rng=None):
        del rng  # no dropout: demonstrations are few and imitation is wanted
        parameters = {**trainable, **frozen}
        places = Places(batch.positions, batch.segment_ids)
        hidden, _ = forward(architecture, compute, parameters, batch.tokens, places)
        kernel = head_kernel(architecture, parameters).astype(hidden.dtype)
        picked = gather_targets(hidden, batch.target_index)
        with jax.named_scope("head"):
            sums: ChunkSums = cross_entropy_sums(  # type: ignore[assignment]
                head, kernel, picked, batch.target_tokens, batch.target_weights
            )
        filled = batch.segment_ids > 0
        metrics = {
            "correct": sums.correct,
            "entropy": sums.entropy,
            "tokens": filled.sum(dtype=jnp.float32),
            "target_tokens": (batch.target_weights > 0).sum(dtype=jnp.float32),
            "pairs": jnp.where(filled, batch.positions + 1, 0).sum(dtype=jnp.float32),
        }
        return sums.loss, batch.target_weights.sum(), metrics

    return objective


def token_log_probabilities(head: Head, kernel_VD, hidden_BMD, targets_BM) -> jax.Array:
    """log p(target) at each position, float32 [B, M], in chunks: no buffer exceeds chunk x V."""

    def one(_, chunk):
        hidden, targets = chunk
        raw = jnp.einsum("BMD,VD->BMV", hidden, kernel_VD, preferred_element_type=jnp.float32)
        log_p = jax.nn.log_softmax(cap_and_mask(head.architecture, raw), axis=-1)
        return None, jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]

    rows, capacity, _ = hidden_BMD.shape
    size = min(head.chunk, capacity)
    padding = -capacity % size

    def split(x):
        x = jnp.pad(x, ((0, 0), (0, padding)) + ((0, 0),) * (x.ndim - 2))
        return x.reshape(rows, -1, size, *x.shape[2:]).swapaxes(0, 1)

    _, log_p = jax.lax.scan(one, None, (split(hidden_BMD), split(targets_BM)))
    return log_p.swapaxes(0, 1).reshape(rows, -1)[:, :capacity]
