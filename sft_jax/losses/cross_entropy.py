"""Weighted cross-entropy on the demonstrated tokens, and SFT as an objective.

The head is applied to the [b, M] target positions only, in chunks: no buffer with a vocabulary axis exceeds chunk x V.
Each chunk's gradient is computed with its loss in the forward pass, so logits are computed once and never stored.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from sft_jax.data.pack.batches import Batch
from sft_jax.losses.objective import Objective, counts_of
from sft_jax.model.architecture import Architecture
from sft_jax.model.attention.reference import TokenPositions
from sft_jax.model.decoder import cap_and_mask, forward, head_kernel
from sft_jax.model.layers import Compute
from sft_jax.model.precision import accumulator
from sft_jax.parallel.rules import ONE_DEVICE, Layout


class Head(NamedTuple):
    """Settings of the head, without its kernel; hashable, so static under `jax.jit`."""

    architecture: Architecture
    chunk: int
    """Target positions per row and chunk, on each device that holds a shard of the row's targets."""
    layout: Layout = ONE_DEVICE


class ChunkSums(NamedTuple):
    """float32 scalars: weight * nll, weight * (argmax == target), weight * entropy of the prediction."""

    loss: jax.Array
    correct: jax.Array
    entropy: jax.Array


def _chunk(head: Head, kernel_VD, hidden_BMD, targets_BM, weights_BM, with_gradients: bool):
    """Sums of one chunk and, for a unit loss cotangent, the gradients of the kernel and the hidden states."""
    wide = accumulator(hidden_BMD)
    raw = jnp.einsum("BMD,VD->BMV", hidden_BMD, kernel_VD, preferred_element_type=wide)
    raw = head.layout.shard(raw, "act_batch", "act_targets", "vocab", name="logits")
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
    # Reduce-scatter per chunk, in the compute dtype like every other kernel's gradient: the full [V, D] is the largest
    # array of a step, and accumulated over chunks it would be float32.
    d_kernel = jnp.einsum("BMV,BMD->VD", d_logits, hidden_BMD)
    d_kernel = head.layout.shard(d_kernel, "vocab", "embed", name="head_gradient").astype(wide)
    return sums, (d_kernel, d_hidden.astype(hidden_BMD.dtype))


def _split(head: Head, x_BM: jax.Array) -> jax.Array:
    """[B, M, ...] -> [chunks, B, positions, ...], padded; each chunk takes equally many positions from every device."""
    rows, capacity, *rest = x_BM.shape
    parts = head.layout.parts("act_targets")
    x = x_BM.reshape(rows, parts, capacity // parts, *rest)
    size = min(head.chunk, x.shape[2])
    x = jnp.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % size)) + ((0, 0),) * len(rest))
    x = x.reshape(rows, parts, -1, size, *rest)
    return jnp.moveaxis(x, 2, 0).reshape(x.shape[2], rows, parts * size, *rest)


def _join(head: Head, x: jax.Array, capacity: int) -> jax.Array:
    """Inverse of `_split`: [chunks, B, positions, ...] -> [B, M, ...]."""
    chunks, rows, _, *rest = x.shape
    parts = head.layout.parts("act_targets")
    x = jnp.moveaxis(x.reshape(chunks, rows, parts, -1, *rest), 0, 2)
    return x.reshape(rows, parts, -1, *rest)[:, :, : capacity // parts].reshape(rows, capacity, *rest)


def _over_chunks(head: Head, kernel_VD, hidden_BMD, targets_BM, weights_BM, with_gradients: bool):
    def one(carry, chunk):
        hidden, targets, weights = chunk
        sums, gradients = _chunk(head, kernel_VD, hidden, targets, weights, with_gradients)
        d_kernel, d_hidden = gradients if gradients is not None else (None, None)
        return jax.tree.map(jnp.add, carry, (sums, d_kernel)), d_hidden

    wide = accumulator(hidden_BMD)
    zero = ChunkSums(*(jnp.zeros((), wide),) * 3)
    kernel_VD = head.layout.shard(kernel_VD, "vocab", None, name="head_kernel")  # gathered once, not in every chunk
    start = (zero, jnp.zeros(kernel_VD.shape, wide) if with_gradients else None)
    chunks = tuple(_split(head, x) for x in (hidden_BMD, targets_BM, weights_BM))
    if len(chunks[0]) == 1:
        (sums, d_kernel), d_hidden = one(start, jax.tree.map(lambda x: x[0], chunks))
        d_hidden = d_hidden if d_hidden is None else d_hidden[None]
    else:
        (sums, d_kernel), d_hidden = jax.lax.scan(one, start, chunks)
    return sums, (d_kernel, d_hidden if d_hidden is None else _join(head, d_hidden, hidden_BMD.shape[1]))


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


def gather_targets(layout: Layout, hidden_BTD: jax.Array, target_index_BM: jax.Array) -> jax.Array:
    """Hidden states [B, M, D] at the target positions; adds no collective if only the batch is sharded.

    If rows are sharded, each device gathers the targets in its shard, with zeros elsewhere. A reduce-scatter over M
    then gives every device an equal share of the head's work.
    """
    rows = layout.sharding_axes("act_length")
    if not rows:
        picked = jnp.take_along_axis(hidden_BTD, target_index_BM[..., None], axis=1)
        return layout.shard(picked, "act_batch", "act_targets", "act_embed", name="target_hidden")
    scattered = layout.sharding_axes("act_targets") == rows

    def on_shard(hidden, index):
        mine = index - jax.lax.axis_index(rows) * hidden.shape[1]
        held = (mine >= 0) & (mine < hidden.shape[1])
        picked = jnp.take_along_axis(hidden, jnp.where(held, mine, 0)[..., None], axis=1)
        picked = jnp.where(held[..., None], picked, 0)
        if scattered:
            return jax.lax.psum_scatter(picked, rows, scatter_dimension=1, tiled=True)
        return jax.lax.psum(picked, rows)

    batch = layout.sharding_axes("act_batch")
    picked = jax.shard_map(
        on_shard,
        mesh=layout.mesh,  # type: ignore[arg-type]
        in_specs=(PartitionSpec(batch, rows), PartitionSpec(batch)),
        out_specs=PartitionSpec(batch, rows if scattered else None),
        axis_names={*batch, *rows},
    )(hidden_BTD, target_index_BM)
    return layout.shard(picked, "act_batch", "act_targets", "act_embed", name="target_hidden")


def cross_entropy_objective(architecture: Architecture, compute: Compute, chunk: int) -> Objective:
    """-sum(weight * log p(target | context)) over the demonstrated tokens of one micro-batch.

    Args:
      chunk: target positions per row that go through the head at once.

    Returns:
      An objective whose batch is a `Batch` without the leading micro-batch axis. metric_sums: `correct` and `entropy`
      (weighted), and those of `counts_of`.
    """
    head = Head(architecture, chunk, compute.layout)

    def objective(trainable, frozen, batch: Batch, rng=None):
        del rng  # no dropout
        parameters = {**trainable, **frozen}
        where = TokenPositions(batch.positions, batch.segment_ids)
        hidden, _ = forward(architecture, compute, parameters, batch.tokens, where)
        kernel = head_kernel(architecture, parameters).astype(hidden.dtype)
        with jax.named_scope("targets"):
            picked = gather_targets(compute.layout, hidden, batch.target_index)
        with jax.named_scope("head"):
            sums: ChunkSums = cross_entropy_sums(  # type: ignore[assignment]
                head, kernel, picked, batch.target_tokens, batch.target_weights
            )
        metrics = {"correct": sums.correct, "entropy": sums.entropy, **counts_of(architecture, batch)}
        return sums.loss, batch.target_weights.sum(), metrics

    return objective


def token_log_probabilities(head: Head, kernel_VD, hidden_BMD, targets_BM) -> jax.Array:
    """log p(target) at each position, float32 [B, M], in chunks: no buffer exceeds chunk x V."""

    def one(_, chunk):
        hidden, targets = chunk
        raw = jnp.einsum("BMD,VD->BMV", hidden, kernel_VD, preferred_element_type=jnp.float32)
        log_p = jax.nn.log_softmax(cap_and_mask(head.architecture, raw), axis=-1)
        return None, jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]

    _, log_p = jax.lax.scan(one, None, (_split(head, hidden_BMD), _split(head, targets_BM)))
    return _join(head, log_p, targets_BM.shape[1])
