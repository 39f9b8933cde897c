"""A child that measures one case, fails at the next, and ends as it is told: by itself, by a crash, or not at all."""

import os
import time

from bench.child import Results


def fail():
    raise ValueError("no such kernel")


def main() -> None:
    results = Results()
    results.case({"name": "first"}, lambda: {"seconds": 1.0})
    results.case({"name": "second"}, fail)
    results.case({"name": "third"}, lambda: {"seconds": 2.0}, needs=results.request["needs"])
    if results.request["end"] == "crash":
        os.abort()
    if results.request["end"] == "never":
        time.sleep(60)


if __name__ == "__main__":
    main()
