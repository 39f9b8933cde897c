import io

from rich.console import Console

from sft_jax.report.terminal import TrainingProgress, clock


def _row(step, seconds=2.0):
    return {"step": step, "loss": 1.25, "tokens_per_second": 1234.4, "step_seconds": seconds}


def test_a_log_gets_rate_and_time_left_without_the_compilation():
    out = io.StringIO()
    with TrainingProgress(Console(file=out, width=200), 0, 100) as progress:
        progress.show(_row(1, seconds=60.0))
        progress.show(_row(2))
        row = {"step": 2, "eval/loss": 0.5, "eval/accuracy": 0.75, "eval/target_tokens": 1000, "eval/exact": 0.25}
        progress.show(row)
        progress.show(_row(100))
    lines = out.getvalue().splitlines()
    assert "step 1/100" in lines[0] and "? left" in lines[0]
    # 2 seconds a step, 98 steps to go: the minute of the first step was compilation.
    assert "1,234 tokens/s" in lines[1] and "3:16 left" in lines[1]
    assert lines[2].endswith("held-out loss 0.5000, accuracy 75.0% over 1,000 tokens, exact 0.25")


def test_a_step_without_targets_is_shown_as_such():
    out = io.StringIO()
    with TrainingProgress(Console(file=out, width=200), 0, 2) as progress:
        progress.show({**_row(1), "loss": None})
    assert "loss no target" in out.getvalue()


def test_seconds_read_as_a_clock():
    assert [clock(s) for s in (5, 75.2, 3600)] == ["0:05", "1:15", "1:00:00"]
