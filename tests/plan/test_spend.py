"""Chip-hours and money of a run, from its plan."""

import pytest

from sft_jax.experiments.plan_configs import read_plans
from sft_jax.plan.spend import spend


class Plan:
    chips, step_seconds, tokens_per_second_per_chip = 16, 2.0, 5000.0


def test_hours_count_every_chip_and_money_is_hours_times_the_price():
    found = spend(Plan, 1800, 1.5)  # type: ignore[arg-type]
    assert found["wall_hours"] == 1.0 and found["chip_hours"] == 16.0 and found["cost"] == 24.0
    assert found["chip_hours_per_billion_tokens"] == pytest.approx(55.5556, rel=1e-5)
    assert found["cost_per_billion_tokens"] == pytest.approx(83.3333, rel=1e-5)


def test_without_steps_or_price_nothing_is_made_up():
    assert set(spend(Plan, 0, 0.0)) == {"chip_hours_per_billion_tokens"}  # type: ignore[arg-type]


def test_a_billion_tokens_agree_with_the_steps_that_make_them():
    plan = read_plans()["configs/llama31_8b.py"]["plan"]

    class Kept:
        chips = plan["chips"]
        step_seconds = plan["step_seconds"]
        tokens_per_second_per_chip = plan["tokens_per_second_per_chip"]

    steps = 1000
    found = spend(Kept, steps, 0.0)  # type: ignore[arg-type]
    tokens = steps * plan["tokens_per_step"]
    assert found["chip_hours"] == pytest.approx(found["chip_hours_per_billion_tokens"] * tokens / 1e9, rel=1e-6)
