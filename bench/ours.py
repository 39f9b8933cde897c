"""Section c: one of our training steps, in a process of its own so that its peak of memory is its own."""

import time
from pathlib import Path

import jax
import numpy as np

from bench.cases import StepCase
from bench.child import Results, Row
from bench.program import architecture_in, model_flops, open_run, peak_flops
from bench.rows import make_rows

WARM_UP = 2
RATE = 1e-5


def measure(case: StepCase) -> Row:
    """Tokens a second, MFU, seconds of a step and peak memory of AdamW on every weight.

    Compute in bfloat16, weights and moments in float32.
    """
    architecture, device = architecture_in(Path(case.model)), jax.devices()[0]
    rows = make_rows(case.rows, case.length, architecture.vocab, case.packed)
    with open_run(architecture, rows, dtype="bfloat16", remat=case.remat, rate=RATE, device=device) as run:
        first = jax.device_get(run.advance())
        for _ in range(WARM_UP - 1):
            jax.block_until_ready(run.advance())
        started = time.perf_counter()
        for _ in range(case.steps):
            metrics = run.advance()
        last = jax.device_get(metrics)
        seconds = (time.perf_counter() - started) / case.steps
        compile_seconds = run.compile_seconds
    losses = [float(sums["loss_sum"] / sums["weight_sum"]) for sums in (first, last)]
    counts = {name: float(first[name]) for name in ("tokens", "target_tokens", "pairs")}
    flops, peak = model_flops(architecture, **counts), peak_flops(device.device_kind)
    memory = device.memory_stats() or {}
    return {
        "status": "done" if np.isfinite(losses).all() else "failed",
        "losses": losses,
        "step_seconds": seconds,
        "tokens_per_second": counts["tokens"] / seconds,
        **counts,
        "flops": flops,
        "mfu": flops / seconds / peak if peak else None,
        "peak_bytes": memory.get("peak_bytes_in_use"),
        "compile_seconds": compile_seconds,
    }


def main() -> None:
    results = Results()
    about = results.request["case"]
    results.case(about, lambda: measure(StepCase(**about)))


if __name__ == "__main__":
    main()
