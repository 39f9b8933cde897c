"""Which layout to use: mesh x remat policy x micro-batches, pruned in closed form, the best compiled for real.

Every layout of the batch is costed in closed form. Those that may fit are compiled in the order of their estimated
time, and each compiled one corrects the estimates of those most like it, which may change the order.
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
"""Policies that the search tries; with a kernel for attention, dots is minimal."""
MOST_MICRO_BATCHES = 32
DOUBT = 1.15
"""Candidates whose closed form needs up to so much more memory than there is are compiled all the same."""
SURE = 0.93
"""What is offered without compiling needs at most this part of the memory."""
FEWEST_COMPILED = 4
PROMISE = 1.08
"""Layouts whose corrected estimates are up to so much slower than the best are compiled too, as long as there is time:
the closed form is not surer than that."""
UNKNOWN = 0.25
"""Weight of what no compiled layout tells, where one just like it would have 1."""
MOST_SHOWN = 12
"""Layouts that a search without a compiler returns."""


class Candidate(NamedTuple):
    """A layout, with its closed form."""

    request: Request
    seconds: float
    peak: float
    """Bytes a chip."""
    host: float
    """Bytes of the host's memory, a chip."""


def candidates(request: Request, bf16_moment: bool = False) -> list[Candidate]:
    """Every layout of a run's batch on its topology, the fastest by the closed form first; whether each fits the model
    is not known yet.

    Args:
      bf16_moment: with a bfloat16 first moment too.
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
    return [n for n in range(1, MOST_MICRO_BATCHES + 1) if rows % (n * parts) == 0]


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


def search(request: Request, bf16_moment: bool, seconds: float, tell: Callable[[str], None]) -> list[Planned]:
    """Plans of the best layouts, those that fit first and the fastest first.

    Args:
      bf16_moment: try a bfloat16 first moment too.
      seconds: how long to compile for; 0 plans in closed form.
      tell: called with a line for every layout that was compiled.

    Raises:
      BadInput: no layout divides this batch and this model.
      RuntimeError: the compiler died of every layout that it was given.
    """
    chip, room = request.topology.chip, usable_bytes(request.topology)
    every = candidates(request, bf16_moment)
    within = DOUBT if seconds else 1.0
    open_ = [each for each in every if each.peak <= within * room and each.host <= within * chip.host_memory]
    if not any(_works(each) for each in every):
        check(request)
        raise BadInput(f"no layout over {request.topology.name} divides this model and this batch")
    tell(f"{len(every):,} layouts costed in closed form, {len(open_):,} of them may fit")
    open_ = open_ or sorted(every, key=lambda each: each.peak)[:MOST_SHOWN]
    if not seconds:
        return _ordered([plan_analytic(each.request) for each in _front(open_)])
    return _compile_the_best(open_, seconds, room, tell)


def _front(every: Sequence[Candidate]) -> list[Candidate]:
    """Those that none beats in both time and memory, the fastest first; at most MOST_SHOWN."""
    front: list[Candidate] = []
    for each in sorted(every, key=lambda one: (one.seconds, one.peak)):
        if len(front) < MOST_SHOWN and all(each.peak < 0.98 * other.peak for other in front) and _works(each):
            front.append(each)
    return front


def _compile_the_best(
    open_: list[Candidate], seconds: float, room: float, tell: Callable[[str], None]
) -> list[Planned]:
    started, compiled, tried = time.monotonic(), list[tuple[Candidate, Planned]](), 0
    while True:
        spent = time.monotonic() - started
        if tried and spent + spent / tried > seconds:
            tell(f"{len(compiled)} compiled in {spent:.0f} s: --search-minutes ends the search here")
            break
        chosen = _next(open_, compiled, room)
        if chosen is None:
            tell(f"{len(compiled)} compiled in {spent:.0f} s: no other promises more")
            break
        open_.remove(chosen)
        tried += 1
        try:
            planned = plan_compiled(chosen.request)
        except RuntimeError as error:  # the compiler died of this layout, which says nothing about the others
            tell(f"{flags(plan_analytic(chosen.request))}: {error}")
            continue
        except KeyboardInterrupt:
            if not compiled:
                raise
            tell(f"interrupted: {len(compiled)} were compiled")
            break
        compiled.append((chosen, planned))
        speed = f"{planned.tokens_per_second_per_chip:,.0f} tokens/s a chip" if planned.fits else "does not fit"
        tell(f"{flags(planned)}: {planned.peak_bytes_per_chip / 2**30:.1f} GiB a chip, {speed}")
    if not compiled:
        raise RuntimeError(f"none of {tried} layouts could be compiled; the last lines say why")
    return _ordered([planned for _, planned in compiled])


def _next(open_: list[Candidate], compiled: list[tuple[Candidate, Planned]], room: float) -> Candidate | None:
    """The candidate that promises the shortest step, once those most like it have corrected it; None if none may."""
    best = min((planned.step_seconds for _, planned in compiled if planned.fits), default=math.inf)
    promised = sorted(((*_corrected(each, compiled), each) for each in open_), key=lambda pair: pair[0])
    for seconds, peak, each in promised:
        if seconds >= PROMISE * best and len(compiled) >= FEWEST_COMPILED:
            return None
        if (peak <= room or not compiled) and _works(each):
            return each
    return None


def _corrected(candidate: Candidate, compiled: list[tuple[Candidate, Planned]]) -> tuple[float, float]:
    """(seconds, peak) of a candidate by the errors of the compiled ones, those most like it first.

    A mean of the logarithms of compiled / closed form with weights that halve with each step of unlikeness; one such
    error of 1 stands for what is not known, so that layouts unlike all that was compiled keep their own estimates.
    """
    time, memory, weights = 0.0, 0.0, UNKNOWN
    for other, planned in compiled:
        weight = 0.5 ** _unlike(candidate, other)
        weights += weight
        memory += weight * math.log(planned.peak_bytes_per_chip / other.peak)
        if planned.fits:
            time += weight * math.log(planned.step_seconds / other.seconds)
    return candidate.seconds * math.exp(time / weights), candidate.peak * math.exp(memory / weights)


def _unlike(one: Candidate, other: Candidate) -> float:
    """How many steps apart two layouts are: doublings of an axis or of the micro-batches, another remat policy, and an
    axis that only one of them has, since the compiler makes other products of it."""
    a, b = one.request.config, other.request.config
    sizes = [(getattr(a.mesh, axis), getattr(b.mesh, axis)) for axis in ("data", "fsdp", "tensor", "context")]
    doublings = sum(abs(math.log2(mine / theirs)) for mine, theirs in sizes)
    alone = sum((mine > 1) != (theirs > 1) for mine, theirs in sizes)
    micro_batches = abs(math.log2(a.train.accumulation / b.train.accumulation))
    return doublings / 2 + alone + micro_batches + (a.model.remat != b.model.remat)


def _ordered(found: list[Planned]) -> list[Planned]:
    return sorted(found, key=lambda plan: (not plan.fits, plan.step_seconds if plan.fits else plan.peak_bytes_per_chip))


def nearest_that_fits(request: Request) -> Planned | None:
    """The layout least unlike a run's own that fits by the closed form, with some room; None where none does."""
    room, host = SURE * usable_bytes(request.topology), SURE * request.topology.chip.host_memory
    own = _candidate(request, check(request))
    resolved = _resolved(own)
    fitting = [each for each in candidates(request) if each.peak <= room and each.host <= host]
    # As alike as can be in mesh, remat and micro-batches; of equals the fastest.
    for each in sorted(fitting, key=lambda each: (_unlike(each, resolved), each.seconds)):
        if _works(each):
            return plan_analytic(each.request)
    return None


def _resolved(candidate: Candidate) -> Candidate:
    """With the mesh's -1 as what it stands for."""
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
    """The lines of a config file of a layout."""
    mesh = ", ".join(f"{axis}={size}" for axis, size in planned.mesh.items() if size > 1 or axis == "fsdp")
    lines = [f"mesh=Mesh({mesh})", f'model=Model(..., remat="{planned.remat}")']
    lines.append(f"train=Train(..., accumulation={planned.accumulation})")
    if planned.first_moment_dtype != "float32":
        lines.append(f'optimizer=Optimizer(..., first_moment_dtype="{planned.first_moment_dtype}")')
    return lines
