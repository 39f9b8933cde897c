"""Per-token KL divergence of a policy from the frozen reference, and its usual estimators.

KL(policy || reference) at a position is sum over v of p(v) (log p(v) - log q(v)); p is the policy, q the reference. The
estimators use only the observed token, with r = q / p: k1 = -log r, k2 = (log r)^2 / 2, k3 = (r - 1) - log r (Schulman
2020, "Approximating KL divergence"). On tokens sampled from the policy their mean equals (k1, k3) or approximates (k2)
the KL; on other text they have no such meaning.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sft_jax.data.pack.store import Example
from sft_jax.model.architecture import Architecture
from sft_jax.model.decoder import cap_and_mask, head_kernel
from sft_jax.model.layers import Compute
from sft_jax.parallel.rules import Layout
from sft_jax.sample.score import target_batch, target_states

CHUNK = 512
"""Positions per chunk over all rows: no buffer exceeds 2 x CHUNK x V."""


class Policy(NamedTuple):
    """A decoder with its weights, laid out on a mesh."""

    architecture: Architecture
    parameters: Mapping[str, jax.Array]


class Divergence(NamedTuple):
    """Per target of a document, float32 [targets]."""

    kl: np.ndarray
    """Exact, over the whole vocabulary."""
    k1: np.ndarray
    k2: np.ndarray
    k3: np.ndarray
    log_p: np.ndarray
    """log p of the target under the policy."""
    log_q: np.ndarray
    """log p of the target under the reference."""
    weights: np.ndarray


def token_divergences(log_p_BMV: jax.Array, log_q_BMV: jax.Array, targets_BM: jax.Array) -> tuple[jax.Array, ...]:
    """(kl, k1, k2, k3, log p, log q), float32 [B, M] each, from normalised log-probabilities [B, M, V].

    Equal inputs give exactly 0. Can also be used inside your own training step.
    """
    kl = (jnp.exp(log_p_BMV) * (log_p_BMV - log_q_BMV)).sum(axis=-1)
    log_p, log_q = (jnp.take_along_axis(x, targets_BM[..., None], axis=-1)[..., 0] for x in (log_p_BMV, log_q_BMV))
    log_r = log_q - log_p
    return kl, -log_r, jnp.square(log_r) / 2, jnp.expm1(log_r) - log_r, log_p, log_q


@functools.lru_cache(maxsize=8)
def _make_hidden(architecture: Architecture, compute: Compute):
    """Jitted: (parameters, tokens [B, T], lengths [B], index [B, M]) -> hidden states [B, M, D] at `index`."""
    return jax.jit(functools.partial(target_states, architecture, compute))


@functools.lru_cache(maxsize=8)
def _make_log_probabilities(architecture: Architecture, layout: Layout):
    """Jitted: (parameters, hidden [B, C, D]) -> log-probabilities float32 [B, C, V].

    Policy and reference run through the same program in turn. In a joint program the compiler may round them
    differently, and the KL of a model with itself would not be 0.
    """

    def log_probabilities(parameters, hidden):
        kernel = head_kernel(architecture, parameters).astype(hidden.dtype)
        raw = jnp.einsum("BMD,VD->BMV", hidden, kernel, preferred_element_type=jnp.float32)
        log_p = jax.nn.log_softmax(cap_and_mask(architecture, raw), axis=-1)
        return layout.shard(log_p, "act_batch", "act_targets", "vocab", name="log_probabilities")

    return jax.jit(log_probabilities)


@functools.partial(jax.jit, static_argnums=0)
def _divergences(layout: Layout, log_p, log_q, targets):
    return tuple(layout.shard(x, None, None) for x in token_divergences(log_p, log_q, targets))  # on every process


def divergences(
    policy: Policy, reference: Policy, compute: Compute, examples: Sequence[Example], batch_size: int = 8
) -> Iterator[Divergence]:
    """Yield the divergences at each example's targets (tokens with a nonzero weight).

    Both models must be on the mesh of `compute.layout`. The heads are applied to target positions only, in chunks.

    Raises:
      ValueError: the vocabularies differ in size.
    """
    if policy.architecture.vocab != reference.architecture.vocab:
        raise ValueError(f"vocabularies of {policy.architecture.vocab} and {reference.architecture.vocab} tokens")
    layout = compute.layout
    batch_size = layout.round_up_batch(batch_size)
    models = [
        (
            model.parameters,
            _make_hidden(model.architecture, compute),
            _make_log_probabilities(model.architecture, layout),
        )
        for model in (policy, reference)
    ]
    for start in range(0, len(examples), batch_size):
        batch = [examples[number] for number in range(start, min(start + batch_size, len(examples)))]
        tokens, lengths, index, targets = target_batch(layout, batch, batch_size)
        states = [hidden(parameters, tokens, lengths, index) for parameters, hidden, _ in models]
        step = -(-max(1, CHUNK // batch_size) // layout.parts("act_targets")) * layout.parts("act_targets")
        parts = []
        for first in range(0, index.shape[1], step):
            log_p, log_q = (
                log_probabilities(parameters, state[:, first : first + step])
                for state, (parameters, _, log_probabilities) in zip(states, models, strict=True)
            )
            parts.append(_divergences(layout, log_p, log_q, targets[:, first : first + step]))
        whole = [np.concatenate([np.asarray(part[k]) for part in parts], axis=1) for k in range(6)]
        for row, example in enumerate(batch):
            weights = example.weights[example.weights != 0]
            kl, k1, k2, k3, log_p, log_q = (column[row, : len(weights)] for column in whole)
            yield Divergence(kl, k1, k2, k3, log_p, log_q, weights)


def mean(found: Sequence[Divergence]) -> dict[str, float]:
    """Weighted means per target of `kl, k1, k2, k3`, and `tokens`, the number of targets.

    Raises:
      ValueError: there are no targets.
    """
    weights = np.concatenate([np.zeros(0), *(one.weights for one in found)])
    if not weights.sum():
        raise ValueError("no token has a weight, so the mean divergence is undefined")
    means = {}
    for name in ("kl", "k1", "k2", "k3"):
        values = np.concatenate([getattr(one, name) for one in found]).astype(np.float64)
        means[name] = float(np.average(values, weights=weights))
    return {**means, "tokens": int(np.count_nonzero(weights))}
