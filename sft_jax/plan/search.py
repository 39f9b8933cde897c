"""Layout search over mesh x remat policy x micro-batches, pruned in closed form; the best candidates are compiled.

Every layout of the batch is costed in closed form. Those that may fit are compiled in order of estimated time. Each
compiled layout corrects the estimates of similar ones, which may change the order.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from jax.sharding import AbstractMesh, AxisType

from sft_jax.config import Mesh, RunConfig
from sft_jax.errors import BadInput
from sft_jax.parallel.mesh import AXES
from sft_jax.parallel.nearest import factorings
from sft_jax.parallel.rules import axis_parts
from sft_jax.plan import analytic
from sft_jax.plan.chips import Topology
from sft_jax.plan.cost import estimate
from sft_jax.plan.isolated import Request
from sft_jax.plan.planned import Planned, check, plan_analytic, plan_compiled, usable_bytes

REMAT = ("none", "minimal", "attention", "full", "offload")
"""Policies that the search tries; with an attention kernel, `dots` is the same as `minimal`."""
MAX_MICRO_BATCHES = 32
MEMORY_SLACK = 1.15
"""Candidates are compiled if their closed form exceeds the available memory by at most this factor."""
SAFE_MEMORY = 0.93
"""Layouts suggested without compiling may use at most this fraction of the memory."""
MIN_COMPILED = 4
TIME_SLACK = 1.08
"""Layouts whose corrected estimates are slower than the best by at most this factor are compiled too, time permitting:
the closed form is no more accurate than that."""
PRIOR_WEIGHT = 0.25
"""Weight of the uncorrected estimate, where an identical compiled layout would have weight 1."""
MAX_SHOWN = 12
"""Layouts that a search without a compiler returns."""


class Candidate(NamedTuple):
    """A layout and its closed-form estimate."""

    request: Request
    seconds: float
    peak: float
    """Bytes per chip."""
    host: float
    """Bytes of host memory per chip."""


def candidates(request: Request, bf16_moment: bool = False) -> list[Candidate]:
    """Every layout of a run's batch on its topology, fastest closed-form estimate first; not yet checked against the
    model.

    Args:
      bf16_moment: also include a bfloat16 first moment.
    """
    found = []
    dtypes = ("float32", "bfloat16") if bf16_moment else (request.config.optimizer.first_moment_dtype,)
    for mesh in _meshes(request.topology):
        abstract = AbstractMesh(tuple(vars(mesh).values()), AXES, axis_types=(AxisType.Auto,) * len(AXES))
        for accumulation in _accumulations(request.config, abstract):
            for remat in REMAT:
                for dtype in dtypes:
                    other = _with(request, mesh, remat, accumulation, dtype)
                    found.append(_candidate(other, abstract))
    return sorted(found, key=lambda each: each.seconds)


def _meshes(topology: Topology) -> Iterator[Mesh]:
    for data, fsdp, tensor, context in factorings(topology.devices, 4):
        if data % topology.slices == 0:
            yield Mesh(data=data, fsdp=fsdp, tensor=tensor, context=context, expert=1)


def _accumulations(config: RunConfig, mesh: AbstractMesh) -> list[int]:
    rows = config.train.batch_size
    parts = axis_parts("act_batch", config.sharding, mesh)
    return [n for n in range(1, MAX_MICRO_BATCHES + 1) if rows % (n * parts) == 0]


def _with(request: Request, mesh: Mesh, remat: str, accumulation: int, dtype: Any) -> Request:
    config = request.config
    rows = config.train.batch_size // accumulation
    shapes = type(request.shapes)(*((accumulation, rows, shape[2]) for shape in request.shapes))
    other = dataclasses.replace(
        config,
        mesh=mesh,
        model=dataclasses.replace(config.model, remat=remat),
        train=dataclasses.replace(config.train, accumulation=accumulation),
        optimizer=dataclasses.replace(config.optimizer, first_moment_dtype=dtype),
    )
    return request._replace(config=other, shapes=shapes)


def _candidate(request: Request, mesh: AbstractMesh) -> Candidate:
    config, architecture, shapes, topology = request
    memory = analytic.update_memory(config, architecture, shapes, mesh)
    program = analytic.update_work(config, architecture, shapes, mesh, topology)
    devices = topology.chip.devices
    return Candidate(request, estimate(program, topology).step_seconds, memory.peak * devices, memory.host * devices)


def _works(candidate: Candidate) -> bool:
    try:
        check(candidate.request)
    except BadInput:
        return False
    return True


def search(request: Request, bf16_moment: bool, seconds: float, log: Callable[[str], None]) -> list[Planned]:
    """Plans of the best layouts: those that fit first, fastest first.

    Args:
      bf16_moment: also try a bfloat16 first moment.
      seconds: time budget for compiling; 0 plans in closed form.
      log: called with a line for every compiled layout.

    Raises:
      BadInput: no layout fits this batch and model.
      RuntimeError: the compiler crashed on every layout.
    """
    chip, room = request.topology.chip, usable_bytes(request.topology)
    every = candidates(request, bf16_moment)
    within = MEMORY_SLACK if seconds else 1.0
    remaining = [each for each in every if each.peak <= within * room and each.host <= within * chip.host_memory]
    if not any(_works(each) for each in every):
        check(request)
        raise BadInput(f"no layout over {request.topology.name} fits this model and this batch")
    log(f"{len(every):,} layouts costed in closed form, {len(remaining):,} of them may fit")
    remaining = remaining or sorted(every, key=lambda each: each.peak)[:MAX_SHOWN]
    if not seconds:
        return _ordered([plan_analytic(each.request) for each in _pareto_front(remaining)])
    return _compile_the_best(remaining, seconds, room, log)


def _pareto_front(every: Sequence[Candidate]) -> list[Candidate]:
    """The Pareto front of time and memory, fastest first; at most MAX_SHOWN."""
    front: list[Candidate] = []
    for each in sorted(every, key=lambda one: (one.seconds, one.peak)):
        if len(front) < MAX_SHOWN and all(each.peak < 0.98 * other.peak for other in front) and _works(each):
            front.append(each)
    return front


def _compile_the_best(
    remaining: list[Candidate], seconds: float, room: float, log: Callable[[str], None]
) -> list[Planned]:
    started, compiled, tried = time.monotonic(), list[tuple[Candidate, Planned]](), 0
    while True:
        spent = time.monotonic() - started
        if tried and spent + spent / tried > seconds:
            log(f"{len(compiled)} compiled in {spent:.0f} s: --search-minutes reached")
            break
        chosen = _pick_next(remaining, compiled, room)
        if chosen is None:
            log(f"{len(compiled)} compiled in {spent:.0f} s: no other layout is expected to be better")
            break
        remaining.remove(chosen)
        tried += 1
        try:
            planned = plan_compiled(chosen.request)
        except RuntimeError as error:  # the compiler crashed on this layout; others may work
            log(f"{flags(plan_analytic(chosen.request))}: {error}")
            continue
        except KeyboardInterrupt:
            if not compiled:
                raise
            log(f"interrupted: {len(compiled)} compiled")
            break
        compiled.append((chosen, planned))
        speed = f"{planned.tokens_per_second_per_chip:,.0f} tokens/s per chip" if planned.fits else "does not fit"
        log(f"{flags(planned)}: {planned.peak_bytes_per_chip / 2**30:.1f} GiB per chip, {speed}")
    if not compiled:
        raise RuntimeError(f"none of {tried} layouts could be compiled; see the errors above")
    return _ordered([planned for _, planned in compiled])


def _pick_next(remaining: list[Candidate], compiled: list[tuple[Candidate, Planned]], room: float) -> Candidate | None:
    """The candidate with the shortest corrected step time; None if none can beat the best compiled one."""
    best = min((planned.step_seconds for _, planned in compiled if planned.fits), default=math.inf)
    promised = sorted(((*_corrected(each, compiled), each) for each in remaining), key=lambda pair: pair[0])
    for seconds, peak, each in promised:
        if seconds >= TIME_SLACK * best and len(compiled) >= MIN_COMPILED:
            return None
        if (peak <= room or not compiled) and _works(each):
            return each
    return None


def _corrected(candidate: Candidate, compiled: list[tuple[Candidate, Planned]]) -> tuple[float, float]:
    """(seconds, peak) of a candidate, corrected by the errors of similar compiled ones.

    A weighted geometric mean of the ratios compiled / closed form; weights halve with each unit of distance. A prior
    ratio of 1 makes layouts far from all compiled ones keep their own estimates.
    """
    time, memory, weights = 0.0, 0.0, PRIOR_WEIGHT
    for other, planned in compiled:
        weight = 0.5 ** _distance(candidate, other)
        weights += weight
        memory += weight * math.log(planned.peak_bytes_per_chip / other.peak)
        if planned.fits:
            time += weight * math.log(planned.step_seconds / other.seconds)
    return candidate.seconds * math.exp(time / weights), candidate.peak * math.exp(memory / weights)


def _distance(one: Candidate, other: Candidate) -> float:
    """Distance of two layouts: doublings of an axis or of the micro-batches, another remat policy, and axes that only
    one of them uses, for which the compiler generates different products."""
    a, b = one.request.config, other.request.config
    sizes = [(getattr(a.mesh, axis), getattr(b.mesh, axis)) for axis in ("data", "fsdp", "tensor", "context")]
    doublings = sum(abs(math.log2(mine / theirs)) for mine, theirs in sizes)
    alone = sum((mine > 1) != (theirs > 1) for mine, theirs in sizes)
    micro_batches = abs(math.log2(a.train.accumulation / b.train.accumulation))
    return doublings / 2 + alone + micro_batches + (a.model.remat != b.model.remat)


def _ordered(found: list[Planned]) -> list[Planned]:
    return sorted(found, key=lambda plan: (not plan.fits, plan.step_seconds if plan.fits else plan.peak_bytes_per_chip))


def nearest_that_fits(request: Request) -> Planned | None:
    """The layout closest to the run's own that fits in closed form with a margin; None if none does."""
    room, host = SAFE_MEMORY * usable_bytes(request.topology), SAFE_MEMORY * request.topology.chip.host_memory
    own = _candidate(request, check(request))
    resolved = _resolved(own)
    fitting = [each for each in candidates(request) if each.peak <= room and each.host <= host]
    # Closest in mesh, remat and micro-batches; ties by speed.
    for each in sorted(fitting, key=lambda each: (_distance(each, resolved), each.seconds)):
        if _works(each):
            return plan_analytic(each.request)
    return None


def _resolved(candidate: Candidate) -> Candidate:
    """The candidate with the mesh's -1 resolved."""
    sizes = check(candidate.request).shape
    config = dataclasses.replace(candidate.request.config, mesh=Mesh(**sizes))
    return candidate._replace(request=candidate.request._replace(config=config))


def flags(planned: Planned) -> str:
    """The command-line options of a layout."""
    mesh = " ".join(f"--mesh.{axis} {size}" for axis, size in planned.mesh.items() if size > 1 or axis == "fsdp")
    moment = f" --optimizer.first-moment-dtype {planned.first_moment_dtype}"
    return f"{mesh} --model.remat {planned.remat} --train.accumulation {planned.accumulation}" + moment * (
        planned.first_moment_dtype != "float32"
    )


def config_lines(planned: Planned) -> list[str]:
    """The config file lines of a layout."""
    mesh = ", ".join(f"{axis}={size}" for axis, size in planned.mesh.items() if size > 1 or axis == "fsdp")
    lines = [f"mesh=Mesh({mesh})", f'model=Model(..., remat="{planned.remat}")']
    lines.append(f"train=Train(..., accumulation={planned.accumulation})")
    if planned.first_moment_dtype != "float32":
        lines.append(f'optimizer=Optimizer(..., first_moment_dtype="{planned.first_moment_dtype}")')
    return lines
