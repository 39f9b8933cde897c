import io

import numpy as np
import pytest
from rich.console import Console

from sft_jax.ceiling.page import ceiling_page, ceiling_tables
from sft_jax.ceiling.scaling import measure_scaling
from sft_jax.ceiling.verdict import measure_quality, reach_verdict
from sft_jax.evaluate.as_json import plain


@pytest.fixture
def result() -> dict:
    """As `measure_ceiling` returns it, of made-up losses and scores."""
    random = np.random.default_rng(0)
    sizes = [100, 200, 400]
    nll = [0.5 + 8 * n**-0.5 + random.normal(0, 0.02, (2, 50)) for n in sizes]
    scaling = measure_scaling(sizes, nll, np.ones(50), resamples=50)
    right = (random.random(40) < 0.5).astype(float)
    quality = measure_quality(right, right, (random.random((40, 4)) < 0.5).astype(float))
    sample = {"prompt": "2 < 3?", "demonstration": "<yes>", "greedy": "no", "sampled": ["yes", "[b]no[/b]"]}
    return plain(
        {
            "config": "runs/mine", "verdict": reach_verdict(scaling, quality), "scaling": scaling, "quality": quality,
            "score": "exact", "samples": [sample],
        }
    )  # fmt: skip


def test_the_page_has_the_verdict_its_evidence_both_plots_and_the_samples(result):
    page = ceiling_page(result)
    assert f"<h1>{result['verdict']['answer'].capitalize()}</h1>" in page and result["verdict"]["words"] in page
    assert page.count("<li>") == len(result["verdict"]["evidence"]) + 2
    assert page.count("<svg") == 2 and "http" not in page
    assert "<td>2 &lt; 3?</td><td>&lt;yes&gt;</td><td>no</td>" in page
    assert f"demonstrations 400: measured, held out {result['scaling']['losses'][-1]['value']:.4g} [" in page


def test_without_scores_there_is_one_plot(result):
    page = ceiling_page({**result, "quality": None, "score": "", "samples": []})
    assert page.count("<svg") == 1 and "What imitation leaves" not in page and "prompts</h2>" not in page


def test_the_terminal_has_the_curve_the_scores_and_the_verdict(result):
    out = io.StringIO()
    Console(file=out, width=200).print(ceiling_tables(result))
    text = out.getvalue()
    assert "best of 4" in text and f"{result['scaling']['losses'][0]['value']:.4f}" in text
    assert f"{result['verdict']['answer']}: {result['verdict']['words']}" in text
