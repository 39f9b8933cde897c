"""Processes that measure, one after the other: each has the card to itself, and its failure is its own.

A child appends one JSON object a case to a file as it goes, so that what it finished is known however it ends.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Row = dict[str, Any]

ROOT = Path(__file__).parents[1]
LAST_LINES = 40
"""Of what a child wrote that failed."""
FAILURES = ("failed", "overran")
"""States of a case or section that make the check fail. The others: done, skipped, out_of_memory."""


def run_child(module: str, arguments: Mapping[str, Any], limit: float, folder: Path, **environment: str) -> list[Row]:
    """The rows of `python -m module`, which ends after `limit` seconds at the latest.

    Where it did not end by itself with status 0, a last row says so.
    """
    number = len(list(folder.glob("*.jsonl")))
    results, log = folder / f"{number:02}-{module}.jsonl", folder / f"{number:02}-{module}.log"
    results.touch()
    request = json.dumps({**arguments, "seconds": limit})
    command = [sys.executable, "-m", module, "--request", request, "--results", str(results)]
    with log.open("wb") as messages:
        # A session of its own: torch's compiler has worker processes, which must end with it.
        child = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **environment}, stdout=messages, stderr=messages,
            start_new_session=True,
        )  # fmt: skip
        try:
            status = child.wait(limit)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            _end(child)
    rows = _read(results)
    if status is None:
        rows.append({"status": "overran", "why": f"{module} had not finished after {limit:.0f} s"})
    elif status:
        said = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
        rows.append({"status": "failed", "why": f"{module} ended with status {status}", "traceback": "\n".join(said)})
    return rows


def _end(child: subprocess.Popen) -> None:
    """The child and what it started."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    child.wait()


def _read(results: Path) -> list[Row]:
    rows = []
    for line in results.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break  # the last line of a child that was ended while it wrote
    return rows


class Results:
    """A child's side: its request, its time, and the file that its rows go to."""

    def __init__(self) -> None:
        parser = argparse.ArgumentParser()
        parser.add_argument("--request", type=json.loads, required=True)
        parser.add_argument("--results", type=Path, required=True)
        options = parser.parse_args()
        self.request: dict[str, Any] = options.request
        self._file = options.results.open("a", encoding="utf-8")
        self._end = time.monotonic() + self.request["seconds"]

    def write(self, row: Row) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def case(self, about: Row, measure: Callable[[], Row], needs: float = 0.0) -> None:
        """Measure one case and write its row; one that fails leaves the others to be measured.

        Args:
          about: what tells the case from others; it is part of the row.
          needs: seconds that must be left, or the case is skipped.
        """
        left = self._end - time.monotonic()
        if left < needs:
            self.write({**about, "status": "skipped", "why": f"{left:.0f} s left"})
            return
        started = time.monotonic()
        try:
            row = {"status": "done", **measure()}
        except Exception as error:  # whatever it is, it is this case's result
            row = {"status": "failed", "why": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
            if any(sign in row["why"] for sign in ("RESOURCE_EXHAUSTED", "OutOfMemoryError")):
                row["status"] = "out_of_memory"
        self.write({**about, **row, "case_seconds": round(time.monotonic() - started, 2)})
