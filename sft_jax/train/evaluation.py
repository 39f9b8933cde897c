"""Held-out loss during training; the device works on one batch while the host reads the one before."""

from collections.abc import Callable

from sft_jax.config import RunConfig
from sft_jax.data.pack.batches import Batches
from sft_jax.train.checkpoint import to_host
from sft_jax.train.feed import feed
from sft_jax.train.metrics import MetricsRow, evaluation_row
from sft_jax.train.program import TrainProgram, make_evaluate
from sft_jax.train.sharding import batch_shapes_of
from sft_jax.train.step import Parameters, TrainState


def make_held_out(
    source: Batches, config: RunConfig, program: TrainProgram, frozen: Parameters, preempted: Callable[[], bool]
) -> Callable[[TrainState, int, bool], MetricsRow | None]:
    """(state, step, may it be given up) -> the held-out metrics of `state`; every process takes part.

    Args:
      preempted: polled once per batch; None is returned where it is true and the evaluation may be given up.
    """
    shapes = batch_shapes_of(source)
    sums_of = make_evaluate(program, config, shapes)

    def evaluate(state: TrainState, step: int, may_give_up: bool) -> MetricsRow | None:
        found, pending = [], None
        for _, batch, _ in feed(source, range(source.steps_for(1)), shapes, program.batch_layout):
            dispatched = sums_of(state.trainable, frozen, batch)
            if pending is not None:
                found.append(to_host(pending))
            pending = dispatched
            if preempted() and may_give_up:
                return None
        return evaluation_row([*found, to_host(pending)], step)

    return evaluate
