import io

from rich.console import Console

from sft_jax.report.evaluation import evaluation_tables


def _text(report: dict) -> str:
    out = io.StringIO()
    Console(file=out, width=200, soft_wrap=True, highlight=False).print(evaluation_tables(report))
    return out.getvalue()


def _interval(value: float) -> dict:
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 7}


def _measured(loss: float) -> dict:
    by_source = {"a[b].jsonl": _interval(loss), "c.jsonl": _interval(2 * loss)}
    held_out = {"loss": _interval(loss), "perplexity": 2.5, "by_turn": {}, "by_source": by_source}
    return {"held_out": held_out, "scores": {"exact": _interval(0.5)}}


def test_a_model_alone_has_its_loss_by_source_and_its_scores():
    text = _text({"model": "m", "data": {"model": _measured(0.75)}})
    assert "loss per trained token" in text and "0.75 [0.65, 0.85] n=7" in text
    assert "loss source a[b].jsonl" in text and "exact" in text and "difference" not in text


def test_beside_another_model_are_the_difference_and_the_kl_between_them():
    about = {
        "model": _measured(0.75), "against": _measured(1.25), "difference": {"loss": _interval(-0.5)},
        "kl": {"kl": 0.125, "tokens": 1200},
    }  # fmt: skip
    text = _text({"model": "m", "against": "runs/[old]", "data": about})
    assert "1.25 [1.15, 1.35] n=7" in text and "-0.5 [-0.6, -0.4] n=7" in text
    assert "KL to runs/[old]: 0.1250 nats per token, over 1,200 tokens" in text
