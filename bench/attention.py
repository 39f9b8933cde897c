"""Section a: attention's implementations against the reference, and their time beside the one that JAX has.

`python -m bench.gpu` starts it as a process of its own.
"""

import dataclasses
import functools
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bench.cases import AttentionCase
from bench.child import Results, Row
from bench.program import attention
from bench.rows import make_rows

TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
"""Largest error of an output or gradient, relative to its largest element."""

NEEDS, LONG_NEEDS = 20.0, 40.0
"""Seconds that must be left for a case to start; the latter for blockwise over long rows, which compiles slowly."""

CALLS, WINDOWS = 20, 3
"""Timed calls in a row, and how often; the median counts."""


def inputs(case: AttentionCase) -> list[jax.Array]:
    """q, k, v and the cotangent of the output, drawn from a normal distribution."""
    draw = np.random.default_rng(0)
    counts = (case.heads, case.kv_heads, case.kv_heads, case.heads)
    shapes = [(case.rows, case.length, count, case.head_dim) for count in counts]
    return [jnp.asarray(draw.normal(size=shape), case.dtype) for shape in shapes]


def function_of(case: AttentionCase) -> Any:
    """Compiled: (q, k, v, cotangent) -> (output, dq, dk, dv)."""
    if case.implementation == "anchor":

        def forward(q, k, v):
            # cuDNN's kernel is for GPUs; elsewhere the tiny form goes through XLA's.
            kind = "cudnn" if jax.default_backend() == "gpu" else "xla"
            return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation=kind)

    else:
        rows = make_rows(case.rows, case.length, 2, case.packed)
        forward = attention(case.implementation, rows, case.window, case.softcap)

    @jax.jit
    def both(q, k, v, cotangent):
        out, backward = jax.vjp(forward, q, k, v)
        return out, *backward(cotangent)

    return both


@functools.lru_cache(maxsize=2)
def expected(case: AttentionCase) -> list[np.ndarray]:
    """What the reference makes in float32 of the inputs as their dtype rounds them."""
    with jax.default_matmul_precision("highest"):
        return [np.asarray(x) for x in function_of(case)(*(x.astype(jnp.float32) for x in inputs(case)))]


def compare(case: AttentionCase) -> Row:
    """Errors relative to the largest element, against the reference in float32 on the same rounded inputs."""
    exact = expected(dataclasses.replace(case, implementation="reference"))
    with jax.default_matmul_precision("highest"):
        found = function_of(case)(*inputs(case))
    errors = {}
    for name, one, other in zip(("out", "dq", "dk", "dv"), found, exact, strict=True):
        errors[name] = float(np.abs(np.asarray(one, np.float32) - other).max() / np.abs(other).max())
    # A comparison that NaN fails, too.
    passed = all(error <= TOLERANCE[case.dtype] for error in errors.values())
    return {"status": "done" if passed else "failed", "errors": errors, "tolerance": TOLERANCE[case.dtype]}


def measure(case: AttentionCase) -> Row:
    """Seconds of a forward and a backward pass, and the products of pairs that see each other a second."""
    given, both = inputs(case), function_of(case)
    started = time.perf_counter()
    jax.block_until_ready(both(*given))
    first = time.perf_counter() - started
    seconds = []
    for _ in range(WINDOWS):
        started = time.perf_counter()
        for _ in range(CALLS):
            made = both(*given)
        jax.block_until_ready(made)
        seconds.append((time.perf_counter() - started) / CALLS)
    pairs = make_rows(case.rows, case.length, 2, case.packed).pairs
    # Two products forward and five backward, each 2 H operations a pair (Dao 2023).
    flops = 14.0 * case.heads * case.head_dim * pairs
    middle = statistics.median(seconds)
    return {"seconds": middle, "tflops": flops / middle / 1e12, "first_call_seconds": first}


def main() -> None:
    results = Results()
    for about in results.request["cases"]:
        case = AttentionCase(**about)
        is_long = case.implementation == "blockwise" and case.length > 1000
        run = functools.partial(measure if case.timed else compare, case)
        results.case(about, run, LONG_NEEDS if is_long else NEEDS)


if __name__ == "__main__":
    main()
