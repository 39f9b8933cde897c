import io

from rich.console import Console

from sft_jax.report.terminal import Stages, TrainingProgress, clock, count_progress


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


def test_a_stage_is_said_when_it_begins_and_its_seconds_when_it_took_some(monkeypatch):
    out, now = io.StringIO(), iter([0.0, 0.4, 10.0, 12.34, 20.0, 20.0])
    monkeypatch.setattr("sft_jax.report.terminal.time.monotonic", lambda: next(now))
    stages = Stages(Console(file=out, width=200))
    with stages("reading [/b] data"):
        assert out.getvalue() == "reading [/b] data ...\n"
    with stages("compiling"):
        pass
    assert out.getvalue().splitlines() == ["reading [/b] data ...", "compiling ...", "compiling: 2.3 s"]
    with Stages(Console(file=out), lambda: False)("elsewhere"):
        pass
    assert "elsewhere" not in out.getvalue()


def test_progress_counts_at_intervals_and_not_at_the_end(monkeypatch):
    out, now = io.StringIO(), iter([0.0, 1.0, 6.0, 7.0, 20.0])
    monkeypatch.setattr("sft_jax.report.terminal.time.monotonic", lambda: next(now))
    show = count_progress(Console(file=out, width=200), "completions")
    for done in (1, 2, 3, 4):
        show(done, 4)
    assert out.getvalue().splitlines() == ["2 of 4 completions"]


def test_a_step_without_targets_is_shown_as_such():
    out = io.StringIO()
    with TrainingProgress(Console(file=out, width=200), 0, 2) as progress:
        progress.show({**_row(1), "loss": None})
    assert "loss no target" in out.getvalue()


def test_seconds_read_as_a_clock():
    assert [clock(s) for s in (5, 75.2, 3600)] == ["0:05", "1:15", "1:00:00"]
