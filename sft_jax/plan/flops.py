"""FLOPs of a program, counted in its jaxpr: everything executed, including recomputation and masked pairs.

XLA's `cost_analysis` counts the body of a loop once, so a scan over layers counts as one layer. Only products are
counted: at transformer sizes the rest is below 1 %.
"""

import math
from collections import Counter
from typing import Any

from jax.extend import core
from jax.interpreters.partial_eval import dce_jaxpr

from sft_jax.model.attention.splash import kernel_flops

Products = Counter[str]
"""FLOPs of all devices together, by primitive (`dot_general`) or kernel name."""


def executed_flops(traced: Any) -> Products:
    """FLOPs of one execution of a traced program (`jax.jit(f).trace(...)`) on all devices.

    A product of [.., m, k] and [.., k, n] counts 2mkn per batch element. A scan's body counts as often as it runs, each
    shard of a `shard_map` once, and of a `cond` the most expensive branch. Dead code is removed, as XLA does:
    `jax.checkpoint` also repeats kernels whose results are all saved.

    Raises:
      ValueError: products in a loop of unknown length, or a kernel without a FLOP formula.
    """
    jaxpr = traced.jaxpr.jaxpr
    needed, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _of(needed)


def kernel_calls(traced: Any) -> dict[str, float]:
    """FLOPs per call of each kernel on one device: name -> mean over its calls."""
    flops, calls = Counter[str](), Counter[str]()

    def walk(jaxpr: core.Jaxpr, times: int) -> None:
        for equation in jaxpr.eqns:
            params = equation.params
            if equation.primitive.name == "pallas_call":
                name = str(params["name"])
                flops.update({name: times * kernel_flops(equation)})  # type: ignore[dict-item]
                calls.update({name: times})
                continue
            for body in _bodies(params):
                walk(body, times * (params["length"] if equation.primitive.name == "scan" else 1))

    walk(traced.jaxpr.jaxpr, 1)
    return {name: flops[name] / calls[name] for name in calls}


def _of(jaxpr: core.Jaxpr) -> Products:
    found: Products = Counter()
    for equation in jaxpr.eqns:
        found.update(_of_equation(equation))
    return found


def _of_equation(equation: Any) -> Products:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return Counter({name: _product(equation)})
    if name == "pallas_call":
        return Counter({str(params["name"]): kernel_flops(equation)})
    inner = [_of(body) for body in _bodies(params)]
    if name == "scan":
        return _times(inner[0], params["length"])
    if name == "cond":
        return max(inner, key=lambda products: products.total())
    if name == "while" and any(products.total() for products in inner):
        raise ValueError("products in a loop of unknown length: use lax.scan")
    if name == "shard_map":
        return _times(inner[0], math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"]))
    return sum(inner, Counter())


def _bodies(params: dict[str, Any]) -> list[core.Jaxpr]:
    found = []
    for value in params.values():
        for one in value if isinstance(value, list | tuple) else (value,):
            body = getattr(one, "jaxpr", one)
            if isinstance(body, core.Jaxpr):
                found.append(body)
    return found


def _product(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)


def _times(products: Products, count: int) -> Products:
    return Counter({name: count * value for name, value in products.items()})
