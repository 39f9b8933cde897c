import json

from sft_jax.config import RunConfig, to_json
from sft_jax.report.page import chart, write_page


def test_the_page_has_the_curves_the_numbers_and_the_config(tmp_path):
    rows = [
        {
            "step": step, "loss": 2.0 / step, "accuracy": 0.5, "grad_norm": 1.0, "learning_rate": 1e-4, "tokens": 100,
            "target_tokens": 20, "step_seconds": 1.5, "tokens_per_second": 66.0,
        }
        for step in (1, 2, 3)
    ]  # fmt: skip
    rows += [{"step": 3, "eval/loss": 0.75, "eval/accuracy": 0.6, "eval/target_tokens": 9, "eval/exact": 0.375}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "config.json").write_text(to_json(RunConfig(workdir="<b>")))
    page = write_page(tmp_path).read_text()
    assert page.count("<svg") == 6 and "http" not in page.replace("http://www.w3.org", "")
    assert "<td>trained tokens</td><td>60</td>" in page and "0.7500" in page
    assert "Answers to held-out prompts: exact" in page and ">0.375<" in page and "prompts: loss" not in page
    assert "&lt;b&gt;" in page and "<b>" not in page


def test_a_chart_spans_its_smallest_and_largest_value():
    svg = chart([(1, 2.0), (5, 4.0)], [(3, 8.0)], "loss")
    assert ">8<" in svg and ">2<" in svg and ">step 1<" in svg and ">5<" in svg
    assert svg.count("<circle") == 1
