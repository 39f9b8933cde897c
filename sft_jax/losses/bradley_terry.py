"""The Bradley-Terry loss of a reward model: the preferred of two answers to a prompt should score higher."""

import jax
import jax.numpy as jnp

from sft_jax.data.pack.batches import Batch
from sft_jax.losses.cross_entropy import gather_targets
from sft_jax.losses.objective import Objective, counts_of
from sft_jax.model.architecture import Architecture
from sft_jax.model.attention.reference import TokenPositions
from sft_jax.model.decoder import Parameters, forward
from sft_jax.model.layers import Compute


def rewards_at(parameters: Parameters, hidden_BMD: jax.Array) -> jax.Array:
    """float32 rewards [B, M]: hidden states times the scalar head."""
    score = parameters["score"].astype(hidden_BMD.dtype)
    wide = jnp.promote_types(hidden_BMD.dtype, jnp.float32)
    return jnp.einsum("BMD,OD->BMO", hidden_BMD, score, preferred_element_type=wide)[..., 0]


def reward_objective(architecture: Architecture, compute: Compute) -> Objective:
    """-weight * log sigmoid(r_chosen - r_rejected - margin), summed over the pairs of one micro-batch (Bradley & Terry
    1952; Ouyang et al. 2022, eq. 1; the margin as in Touvron et al. 2023, eq. 2).

    Slots 2k and 2k + 1 of a batch hold pair k: `target_index` is the last token of each answer, and `target_weights`
    are the pair's weight and its weight plus the margin (`data/pack/batches.fill_pairs`).

    Returns:
      An objective like `cross_entropy_objective`. metric_sums: `correct` (chosen scores higher), `entropy` (of the
      modelled preference) and `reward_margin` (r_chosen - r_rejected), all weighted, and those of `counts_of` (two
      targets per pair).
    """

    def objective(trainable, frozen, batch: Batch, rng=None):
        del rng
        parameters = {**trainable, **frozen}
        where = TokenPositions(batch.positions, batch.segment_ids)
        hidden, _ = forward(architecture, compute, parameters, batch.tokens, where)
        with jax.named_scope("head"):
            both = rewards_at(parameters, gather_targets(compute.layout, hidden, batch.target_index))
        rows, slots = both.shape
        # M may be odd when it equals the length of short rows; the last slot is then unused.
        both, weights = (x[:, : slots // 2 * 2].reshape(rows, -1, 2) for x in (both, batch.target_weights))
        weight, margin = weights[..., 0], weights[..., 1] - weights[..., 0]
        difference = both[..., 0] - both[..., 1]
        above = difference - margin
        log_p, log_not = jax.nn.log_sigmoid(above), jax.nn.log_sigmoid(-above)
        entropy = -(jnp.exp(log_p) * log_p + jnp.exp(log_not) * log_not)
        metrics = {
            "correct": (weight * (difference > 0)).sum(),
            "entropy": (weight * entropy).sum(),
            "reward_margin": (weight * difference).sum(),
            **counts_of(architecture, batch),
        }
        return -(weight * log_p).sum(), weight.sum(), metrics

    return objective
