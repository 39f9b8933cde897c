"""Estimates against published throughput: two figures that the assumptions were fitted to, and others."""

import pytest

from sft_jax.plan.planned import plan_analytic, plan_compiled
from tests.plan.published import CASES, FITTED, request_of


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", FITTED)
def test_the_compiled_plan_is_within_a_quarter_of_what_was_published(name):
    pytest.importorskip("libtpu", reason="libtpu exists for Linux on x86-64 alone")
    case, plan = CASES[name], plan_compiled(request_of(CASES[name]))
    assert plan.method == "compiled" and plan.fits
    assert plan.tokens_per_second_per_chip == pytest.approx(case.tokens_per_second_per_chip, rel=0.25)


@pytest.mark.parametrize("name", CASES)
def test_the_closed_form_is_near_what_was_published(name):
    case, plan = CASES[name], plan_analytic(request_of(CASES[name]))
    assert plan.tokens_per_second_per_chip == pytest.approx(case.tokens_per_second_per_chip, rel=0.25)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("8b v6e-256", "8b v6e-8"),
        ("8b v6e-8", "70b v6e-64"),
        ("70b ironwood-64", "llama2-70b v5p-512"),
        ("70b ironwood-64", "70b v6e-64"),
    ],
)
def test_ratios_between_models_chips_and_sizes_are_predicted(one, other):
    def ratio(of):
        return of(one) / of(other)

    published = ratio(lambda name: CASES[name].tokens_per_second_per_chip)
    predicted = ratio(lambda name: plan_analytic(request_of(CASES[name])).tokens_per_second_per_chip)
    assert predicted == pytest.approx(published, rel=0.25)
