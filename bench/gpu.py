"""One command for a machine with one GPU: are the kernels right, and how fast is a step, beside torch's?

    python3 -m bench.gpu [--seconds 480] [--out runs/gpu-check]        (or: make gpu-check)
    python3 -m bench.gpu --tiny                                        the same code on a CPU, in a minute

It writes gpu.json and gpu.md into the folder after every case. The status is 1 where a section failed, 2 where there is
nothing to measure on.
"""

import argparse
import datetime
import importlib.util
import json
import os
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bench.cases import TINY_CONFIG, Cases, StepCase, full, tiny
from bench.child import FAILURES, ROOT, Row, run_child
from bench.page import page

# Neither JAX nor torch is imported here: this process must hold no memory of the card.

SECONDS = 480.0
LIMITS = {"attention": 120.0, "parity": 60.0, "ours": 90.0, "torch": 120.0}
"""Seconds that a section, or a step of one side, may take at most on a GPU."""
LEAST = 30.0
"""Seconds that must be left for a step to be worth starting."""
FRACTION = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"}
"""Of the card's memory, for a step that has the card to itself; JAX takes 0.75 by itself."""


class Check:
    """What has been measured so far, the time that is left, and the files that both go to."""

    def __init__(self, seconds: float, is_tiny: bool, out: Path, folder: Path):
        self.end, self.started = time.monotonic() + seconds, time.monotonic()
        self.out, self.folder = out, folder
        self.environment = _for_tiny(folder) if is_tiny else {}
        made = datetime.datetime.now(datetime.UTC).date().isoformat()
        self.result: dict[str, Any] = {"made": made, "tiny": is_tiny, "machine": {}, "sections": {}}

    @property
    def left(self) -> float:
        return self.end - time.monotonic()

    def child(self, module: str, arguments: Row, limit: float, **environment: str) -> list[Row]:
        """As `run_child`; what the end of the check cuts short, before its own limit, is skipped and no failure."""
        left = max(1.0, self.left)
        # The tiny form runs beside other work on few cores: there, time tells nothing.
        limit = left if self.result["tiny"] else min(limit, left)
        rows = run_child(module, arguments, limit, self.folder, **self.environment, **environment)
        if rows[-1:] and rows[-1]["status"] == "overran" and limit == left:
            rows[-1]["status"] = "skipped"
        return rows

    def add(self, section: str, rows: list[Row]) -> None:
        """Keep a section's rows, and write everything anew."""
        kept = self.result["sections"].setdefault(section, {"cases": []})
        kept["cases"] += rows
        states = [row["status"] for row in kept["cases"]]
        kept["status"] = "failed" if any(state in FAILURES for state in states) else "done"
        self.write()
        for row in rows:
            why = f": {row['why']}" if "why" in row else ""
            print(f"{time.monotonic() - self.started:5.0f} s  {section}: {_told(row)}{row['status']}{why}", flush=True)

    def write(self) -> None:
        self.result["seconds"] = round(time.monotonic() - self.started, 1)
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "gpu.json").write_text(json.dumps(self.result, indent=1) + "\n", encoding="utf-8")
        (self.out / "gpu.md").write_text(page(self.result), encoding="utf-8")

    @property
    def failed(self) -> bool:
        return any(section["status"] == "failed" for section in self.result["sections"].values())


def _for_tiny(folder: Path) -> dict[str, str]:
    """Compiling is most of what tiny programs cost: nothing is optimised, nothing is compiled twice.

    Torch gets one thread: the others would spin for work that one of them does at once.
    """
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()
    cache = {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return {"XLA_FLAGS": flags, "OMP_NUM_THREADS": "1", **cache}


def _told(row: Row) -> str:
    """A case in few words."""
    names = ("model", "side", "implementation", "dtype", "rows", "length", "packed", "window", "softcap", "remat")
    words = [f"{name} {row[name]}" for name in names if row.get(name) is not None]
    if "errors" in row:
        words.append(f"largest error {max(row['errors'].values()):.1e}")
    if "tflops" in row:
        words.append(f"{row['seconds'] * 1e3:.2f} ms")
    if "tokens_per_second" in row:
        words.append(f"{row['tokens_per_second']:,.0f} tokens/s")
    return ", ".join(words) + (": " if words else "")


def measure_attention(check: Check, cases: Cases) -> None:
    request = {"cases": [asdict(case) for case in cases.attention]}
    check.add("attention", check.child("bench.attention", request, LIMITS["attention"]))


def measure_parity(check: Check, cases: Cases) -> None:
    # Both devices in one process: JAX would start the CPU's by itself, unless the environment names the GPU's alone.
    platforms = "cpu" if check.result["machine"]["platform"] == "cpu" else "cuda,cpu"
    request = {"case": asdict(cases.parity)}
    check.add("parity", check.child("bench.parity", request, LIMITS["parity"], JAX_PLATFORMS=platforms))


def measure_steps(check: Check, cases: Cases) -> None:
    for case in cases.pairs:
        ours = _one_side(check, "ours", case)
        theirs = _one_side(check, "torch", replace(case, rows=ours.get("rows", case.rows)))
        if "flops" in ours and theirs.get("rows") == ours["rows"] and "step_seconds" in theirs:
            peak = check.result["machine"]["peak_flops"]
            theirs["mfu"] = ours["flops"] / theirs["step_seconds"] / peak if peak else None
            theirs["ours_over_torch"] = theirs["step_seconds"] / ours["step_seconds"]
            check.write()
    for case in cases.alone:
        _one_side(check, "ours", case)


def _one_side(check: Check, side: str, case: StepCase) -> Row:
    """The row of a step, with half the rows until it fits the card."""
    about = {"side": side, **asdict(case), "model": Path(case.model).name}
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if side == "torch" and missing:
        row = {**about, "status": "skipped", "why": f"{' and '.join(missing)} not installed"}
    elif check.left < LEAST and not check.result["tiny"]:
        row = {**about, "status": "skipped", "why": f"{max(0.0, check.left):.0f} s left"}
    else:
        module = "bench.ours" if side == "ours" else "bench.plain_torch"
        backend = "aot_eager" if check.result["tiny"] else "inductor"  # the latter needs a C++ compiler on CPUs
        rows = check.child(module, {"case": asdict(case), "backend": backend}, LIMITS[side], **FRACTION)
        # A child that measured and then failed has two rows; the later one has the state.
        row = {**{key: value for part in rows for key, value in part.items()}, **about}
    check.add("steps", [row])
    if row["status"] == "out_of_memory" and case.rows > 1:
        return _one_side(check, side, replace(case, rows=case.rows // 2))
    return row


def _tiny_model(folder: Path) -> str:
    (folder / "tiny").mkdir()
    (folder / "tiny/config.json").write_text(json.dumps(TINY_CONFIG), encoding="utf-8")
    return str(folder / "tiny")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, on whatever device there is")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for everything together")
    parser.add_argument("--out", type=Path, default=ROOT / "runs/gpu-check", help="folder for gpu.json and gpu.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cases = tiny(_tiny_model(folder)) if options.tiny else full()
        check = Check(options.seconds, options.tiny, options.out, folder)
        machine = check.child("bench.machine", {}, options.seconds)[-1]
        check.result["machine"] = machine
        check.write()
        if machine["status"] != "done":
            print(machine["why"] + "\n" + machine.get("traceback", ""), file=sys.stderr)
            return 2
        print(f"{machine['card'] or machine['device']}: {machine['versions']}", flush=True)
        for line in machine["too_old"]:
            print(f"other than pyproject.toml allows: {line}", flush=True)
        if machine["platform"] != "gpu" and not options.tiny:
            print(f"no GPU: JAX found {machine['device']}. --tiny runs on any device.", file=sys.stderr)
            return 2
        measure_attention(check, cases)
        measure_parity(check, cases)
        measure_steps(check, cases)
    print(page(check.result))
    print(f"wrote {check.out / 'gpu.json'} and {check.out / 'gpu.md'}")
    return 1 if check.failed else 0


if __name__ == "__main__":
    sys.exit(main())
