"""Held-out loss during training; the host reads one batch's sums while the device computes the next."""

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
    """Returns (state, step, may_abort) -> held-out metrics of `state`; every process must call it.

    Args:
      preempted: polled once per batch; if it is true and `may_abort` is set, the evaluation stops and returns None.
    """
    shapes = batch_shapes_of(source)
    sums_of = make_evaluate(program, config, shapes)

    def evaluate(state: TrainState, step: int, may_abort: bool) -> MetricsRow | None:
        found, pending = [], None
        for _, batch, _ in feed(source, range(source.steps_for(1)), shapes, program.batch_layout):
            dispatched = sums_of(state.trainable, frozen, batch)
            if pending is not None:
                found.append(to_host(pending))
            pending = dispatched
            if preempted() and may_abort:
                return None
        return evaluation_row([*found, to_host(pending)], step)

    return evaluate
