"""Chip-hours of a run, and their cost if a price per chip-hour is given."""

from sft_jax.plan.planned import Planned


def spend(plan: Planned, steps: int, price: float) -> dict[str, float]:
    """Chip-hours, and their cost in the currency of `price`. Excludes start-up, evaluation and waiting.

    Args:
      steps: steps of the run; 0 if they depend on the data, and then only a billion tokens (with padding) are costed.
      price: price per chip-hour; 0 omits the cost.
    """
    hours = {"chip_hours_per_billion_tokens": 1e9 / plan.tokens_per_second_per_chip / 3600}
    if steps:
        hours["chip_hours"] = steps * plan.step_seconds * plan.chips / 3600
        hours["wall_hours"] = steps * plan.step_seconds / 3600
    money = {}
    if price:
        money["cost_per_billion_tokens"] = hours["chip_hours_per_billion_tokens"] * price
        if steps:
            money["cost"] = hours["chip_hours"] * price
    return {**hours, **money}
