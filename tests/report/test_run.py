import json
import re

from sft_jax.config import RunConfig, to_json
from sft_jax.report.plots import MAX_POINTS
from sft_jax.report.run import run_page


def _row(step: int, loss: float | None) -> dict:
    return {
        "step": step, "loss": loss, "accuracy": 0.5, "grad_norm": 1.0, "learning_rate": 1e-4, "tokens": 100,
        "target_tokens": 20, "step_seconds": 1.5, "tokens_per_second": 66.0, "mfu": None,
    }  # fmt: skip


def _page(tmp_path, rows) -> str:
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "config.json").write_text(to_json(RunConfig(workdir="<b>")))
    return run_page(tmp_path)


def test_the_page_has_the_curves_the_numbers_and_the_config(tmp_path):
    rows = [_row(step, 2.0 / step) for step in (1, 2, 3)]
    rows += [{"step": 3, "eval/loss": 0.75, "eval/accuracy": 0.6, "eval/target_tokens": 9, "eval/exact": 0.375}]
    page = _page(tmp_path, rows)
    assert page.count("<svg") == 6 and "http" not in page
    assert '<th scope="row">trained tokens</th><td>60</td>' in page and "0.7500" in page
    assert ">Answers to held-out prompts: exact</text>" in page and "prompts: loss" not in page
    assert re.search(r"step 3: training 0\.6667; held out 0\.75\b", page) and "step 3: held out 0.375" in page
    assert "&lt;b&gt;" in page and "<b>" not in page


def test_a_run_that_has_measured_nothing_yet_has_a_page(tmp_path):
    assert _page(tmp_path, []).count("<svg") == 0
    page = _page(tmp_path, [_row(1, None)])
    assert ">Gradient norm</text>" in page and "Loss per trained token" not in page


def test_the_page_of_a_long_run_stays_small_and_says_how_steps_are_drawn_together(tmp_path):
    rows = [_row(step, 1.0 + step % 2) for step in range(1, 20 * MAX_POINTS + 1)]
    page = _page(tmp_path, rows)
    assert len(page) < 300_000
    assert "the mean of up to 20 steps" in page and "step 1 to 20: training 1.5 [1, 2]" in page
