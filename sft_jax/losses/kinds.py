"""The losses, by name. To add one, put its settings in `config/kinds.py` and add a function here that returns its
objective."""

from sft_jax.config import LOSSES, Loss, RunConfig
from sft_jax.config.kinds import CrossEntropy, Reward
from sft_jax.errors import BadInput
from sft_jax.losses.bradley_terry import reward_objective
from sft_jax.losses.cross_entropy import cross_entropy_objective
from sft_jax.losses.objective import Objective
from sft_jax.model.architecture import Architecture
from sft_jax.model.layers import Compute


def objective_of(config: Loss, architecture: Architecture, compute: Compute, chunk: int) -> Objective:
    """The configured objective.

    Args:
      chunk: target positions per row that go through the head at once.

    Raises:
      BadInput: an unknown loss.
    """
    return LOSSES.make(config.kind, config, architecture, compute, chunk)


@LOSSES.maker("cross_entropy")
def cross_entropy(own: CrossEntropy, architecture: Architecture, compute: Compute, chunk: int) -> Objective:
    return cross_entropy_objective(architecture, compute, chunk)


@LOSSES.maker("reward")
def reward(own: Reward, architecture: Architecture, compute: Compute, chunk: int) -> Objective:
    return reward_objective(architecture, compute)


def check_head(config: RunConfig, architecture: Architecture) -> None:
    """Raises BadInput if the model does not have the head that the loss needs."""
    scalar = LOSSES.settings_type(config.loss.kind).scalar_head
    if scalar and not architecture.reward:
        raise BadInput(
            f'loss.kind is "{config.loss.kind}", but {config.model.path} is a language model. Add a scalar head '
            f"first: sft-jax reward-init {config.model.path} --out DIR, then --model.path DIR."
        )
    if architecture.reward and not scalar:
        raise BadInput(
            f"{config.model.path} is a reward model and predicts no tokens. Set --loss.kind reward, or use a "
            "language model."
        )
