"""The loop with an update that trains nothing: what is reported and saved when a run ends before its last step."""

from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import pytest

from sft_jax.config import Optimizer, Sharding
from sft_jax.errors import Preempted
from sft_jax.train.checkpoint import open_checkpoints
from sft_jax.train.loop import Hooks, Intervals, Loop
from sft_jax.train.optimizers import make_optimizer
from sft_jax.train.sharding import batch_shardings
from sft_jax.train.step import initial_state

SUMS = {
    "loss_sum": 2.0, "weight_sum": 1.0, "correct": 1.0, "entropy": 1.0, "tokens": 9.0, "target_tokens": 1.0,
    "pairs": 9.0, "grad_norm": 1.0, "learning_rate": 0.1, "finite": True,
}  # fmt: skip


@pytest.fixture
def run(tmp_path, tiny, make_batches, mesh_of):
    """(evaluate, schedule, preempted) -> (rows reported, steps saved), or what `run` raised with them attached."""

    def run(evaluate, schedule, preempted=lambda: False):
        source = make_batches()
        state = initial_state({"embedding": jnp.zeros((4, 2))}, make_optimizer(Optimizer()))
        rows: list[dict] = []
        manager = open_checkpoints(tmp_path, keep_last=9, keep_every=0)

        def update(state, frozen, batch):
            return state._replace(step=state.step + 1), {name: jnp.asarray(value) for name, value in SUMS.items()}

        layout = batch_shardings(mesh_of(), Sharding())
        program: Any = SimpleNamespace(update=update, batch_layout=layout, architecture=tiny)
        loop = Loop(program, state, {}, source, manager, {}, schedule, Hooks(rows.append, evaluate, preempted))
        error = None
        try:
            loop.run(schedule.steps)
            loop.wait()
        except (Preempted, OSError) as raised:
            error = raised
        # Before the manager is closed, which would finish a save by itself.
        saved = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit())
        manager.close()
        return [row["step"] for row in rows if "loss" in row], saved, error

    return run


def test_a_run_reports_every_step_and_saves_when_it_is_due(run):
    evaluated = []
    rows, saved, error = run(lambda state, step, give_up: evaluated.append((step, give_up)) or {}, Intervals(5, 2, 2))
    assert (rows, saved, error) == ([1, 2, 3, 4, 5], [2, 4, 5], None)
    assert evaluated == [(2, True), (4, True), (5, False)]


def test_an_evaluation_that_preemption_interrupts_is_given_up_for_the_checkpoint(run):
    rows, saved, error = run(lambda state, step, give_up: None if step == 2 else {}, Intervals(5, 2, 0))
    assert isinstance(error, Preempted)
    assert (rows, saved) == ([1, 2], [2])


def test_preemption_saves_the_step_that_was_made(run):
    polls = iter([False, False, True])
    rows, saved, error = run(lambda *_: {}, Intervals(5, 3, 0), lambda: next(polls))
    assert isinstance(error, Preempted) and "step 3 of 5" in str(error)
    assert (rows, saved) == ([1, 2, 3], [3])


def test_a_failure_leaves_the_save_that_was_under_way_committed(run):
    def evaluate(state, step, give_up):
        if step == 3:
            raise OSError("disk gone")
        return {}

    rows, saved, error = run(evaluate, Intervals(5, 3, 2))
    assert isinstance(error, OSError)
    assert (rows, saved) == ([1, 2, 3], [2])
