"""Shipped configs beside the best layout that the search finds: `python -m tests.plan.searched [CONFIG ...]`.

The search does not know the config's own layout. `--minutes 5` bounds each search. Prints the table of
docs/verification.md.
"""

import sys
import time

from sft_jax.experiments.plan_configs import read_plans, shipped
from sft_jax.plan.search import flags, search


def main(arguments: list[str]) -> None:
    minutes = 9.0
    if "--minutes" in arguments:
        place = arguments.index("--minutes")
        minutes = float(arguments[place + 1])
        arguments = arguments[:place] + arguments[place + 2 :]
    every, plans = shipped(), read_plans()
    names = arguments or [name for name, request in every.items() if not request.topology.is_gpu]
    for name in names:
        started = time.monotonic()
        found = search(every[name], False, 60 * minutes, lambda line: print(f"  {line}", file=sys.stderr, flush=True))
        seconds, own, best = time.monotonic() - started, plans[name]["plan"]["tokens_per_second_per_chip"], found[0]
        print(
            f"| {name} | {own:,.0f} | {best.tokens_per_second_per_chip:,.0f} "
            f"({best.tokens_per_second_per_chip / own:.2f} x) | `{flags(best)}` | {len(found)} in {seconds:.0f} s |",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
