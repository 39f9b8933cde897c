"""What a run takes of the chips' time, and of money where a chip-hour has a price."""

from sft_jax.plan.planned import Planned


def spend(plan: Planned, steps: int, price: float) -> dict[str, float]:
    """Chip-hours, and their price in the same currency as `price`. Start-up, evaluation and waiting are not in them.

    Args:
      steps: of the run; 0 where only its data tell, and then a billion tokens (padding too) are all that is told.
      price: of one chip-hour; 0 tells no money.
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
