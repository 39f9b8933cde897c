"""Section b: the same model and batch on the accelerator and on the CPU, step by step, in one process."""

import contextlib
from typing import Any

import jax
import numpy as np

from bench.cases import ParityCase
from bench.child import Results, Row
from bench.program import architecture_from, open_run, random_parameters
from bench.rows import make_rows

STEPS = 5
TOLERANCE = {"float32": {"loss": 1e-4, "grad_norm": 1e-3}, "bfloat16": {"loss": 1e-2, "grad_norm": 5e-2}}
"""Largest relative difference in any step."""


def trained(case: ParityCase, dtype: str, device: Any, parameters: Any) -> dict[str, list[float]]:
    """Loss and gradient norm of every step on one device."""
    architecture = architecture_from(case.config)
    rows = make_rows(case.rows, case.length, architecture.vocab, packed=True)
    found: dict[str, list[float]] = {"loss": [], "grad_norm": []}
    # bfloat16 products have one precision only.
    precision = jax.default_matmul_precision("highest") if dtype == "float32" else contextlib.nullcontext()
    with (
        precision,
        open_run(architecture, rows, dtype=dtype, remat="none", rate=1e-3, device=device, parameters=parameters) as run,
    ):
        for _ in range(STEPS):
            metrics = jax.device_get(run.advance())
            found["loss"].append(float(metrics["loss_sum"] / metrics["weight_sum"]))
            found["grad_norm"].append(float(metrics["grad_norm"]))
    return found


def compare(case: ParityCase, dtype: str) -> Row:
    cpu, device = jax.devices("cpu")[0], jax.devices()[0]
    parameters = random_parameters(architecture_from(case.config), cpu)
    ours, theirs = (trained(case, dtype, where, parameters) for where in (device, cpu))
    differences = {name: _difference(ours[name], theirs[name]) for name in ours}
    passed = all(differences[name] <= most for name, most in TOLERANCE[dtype].items())
    return {
        "status": "done" if passed else "failed",
        "devices": [device.device_kind, cpu.device_kind],
        "differences": differences,
        "tolerance": TOLERANCE[dtype],
        "device": ours,
        "cpu": theirs,
    }


def _difference(ours: list[float], theirs: list[float]) -> float:
    """The largest of any step, relative; NaN where one is."""
    one, other = np.array(ours), np.array(theirs)
    return float(np.max(np.abs(one - other) / np.abs(other)))


def main() -> None:
    results = Results()
    case = ParityCase(**results.request["case"])
    for dtype in TOLERANCE:
        results.case({"dtype": dtype, "steps": STEPS}, lambda dtype=dtype: compare(case, dtype))


if __name__ == "__main__":
    main()
