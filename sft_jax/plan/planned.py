"""The plan of a run on hardware you don't have: whether it fits, how long it takes, and what bounds it."""

import math
from dataclasses import dataclass
from typing import Any

from jax.sharding import AbstractMesh

from sft_jax.model.architecture import model_flops, row_pairs
from sft_jax.parallel.mesh import check_slices
from sft_jax.plan import analytic, work
from sft_jax.plan.analytic import AnalyticMemory
from sft_jax.plan.aot import Memory, OutOfMemory, compiler_problem
from sft_jax.plan.chips import Topology
from sft_jax.plan.cost import Estimate, estimate
from sft_jax.plan.isolated import Compiled, Request, compile_isolated
from sft_jax.plan.sharding import abstract_mesh
from sft_jax.train.sharding import parameter_layout

RESERVED = 0.985
"""Fraction of a TPU's memory that its compiler makes available to programs: 15.75 of 16 GiB, 31.25 of 32."""


@dataclass(frozen=True)
class Planned:
    """One layout of a run on a topology. Sizes in bytes; a chip may have several JAX devices."""

    method: str
    """compiled: with the TPU's own compiler; analytic: in closed form."""
    topology: str
    slices: int
    chips: int
    mesh: dict[str, int]
    remat: str
    accumulation: int
    first_moment_dtype: str
    fits: bool
    peak_bytes_per_chip: float
    argument_bytes_per_chip: float
    """State and batch."""
    hbm_bytes_per_chip: float
    usable_bytes_per_chip: float
    """Memory available to programs."""
    host_bytes_per_host: float
    """Activations saved by remat offload, and the host copy of the state from which a checkpoint is written."""
    checkpoint_bytes: float
    model_flops: float
    """Per update on all chips, with one document per row."""
    executed_flops: float
    traced_flops: float | None
    """Executed FLOPs before XLA, which removes or repeats some."""
    hbm_traffic_bytes: float
    """Read and written by one device in an update."""
    collective_bytes: dict[str, dict[str, float]]
    """Sent by one device in an update: mesh axes -> kind -> bytes."""
    networks: dict[str, list[str]]
    """Mesh axes -> ici or dcn, or both."""
    step_seconds: float
    busy_seconds: dict[str, float]
    """For each resource, the seconds that an update would need on its own."""
    bound_by: str
    tokens_per_step: int
    tokens_per_second_per_chip: float
    mfu: float
    """Model FLOPs over peak FLOPs."""
    input_tokens_per_second_per_host: float
    compile_seconds: float | None
    collectives: tuple[str, ...] = ()
    """In the compiler's terms."""
    problem: str = ""
    """Why it does not fit."""


def check(request: Request) -> AbstractMesh:
    """The config's mesh over the topology, after checking that everything is divisible.

    Raises:
      BadInput: names what is not.
    """
    config, architecture, shapes, topology = request
    mesh = abstract_mesh(config, topology.devices)
    check_slices(mesh.shape, topology.slices)
    parameter_layout(config, architecture, shapes, mesh)
    return mesh


def can_compile(topology: Topology) -> bool:
    """Whether this machine can compile for this topology."""
    return not topology.is_gpu and compiler_problem() is None


def plan_analytic(request: Request) -> Planned:
    """Plan in closed form.

    Raises:
      BadInput: as `check`.
    """
    config, architecture, shapes, topology = request
    mesh = check(request)
    memory = analytic.update_memory(config, architecture, shapes, mesh)
    program = analytic.update_work(config, architecture, shapes, mesh, topology)
    devices = topology.chip.devices
    usable = usable_bytes(topology)
    fits = memory.peak * devices <= usable and memory.host <= topology.chip.host_memory / devices
    return _planned(
        request, mesh, "analytic", program, memory,
        fits=fits, problem="" if fits else _too_large(memory.peak * devices, usable), compile_seconds=None,
    )  # fmt: skip


def plan_compiled(request: Request) -> Planned:
    """Plan with the TPU's own compiler; if the program does not fit, in closed form with the compiler's error.

    Raises:
      BadInput: as `check`, or no compiler.
    """
    mesh = check(request)
    try:
        found: Compiled = compile_isolated(request)
    except OutOfMemory as error:
        return _without_room(request, error)
    return _planned(
        request, mesh, "compiled", found.program, found.memory, fits=True, problem="",
        compile_seconds=found.compile_seconds, collectives=tuple(found.collectives), traced_flops=found.traced_flops,
    )  # fmt: skip


def _without_room(request: Request, error: OutOfMemory) -> Planned:
    closed, devices = plan_analytic(request), request.topology.chip.devices
    values: dict[str, Any] = {**vars(closed), "fits": False, "problem": f"the compiler says: {error}"}
    if error.space != "host":
        values["peak_bytes_per_chip"] = error.needed * devices
        values["usable_bytes_per_chip"] = error.available * devices
    return Planned(**values)


def _planned(
    request: Request, mesh: AbstractMesh, method: str, program: work.Region, memory: Memory | AnalyticMemory, *,
    fits: bool, problem: str, compile_seconds: float | None, collectives: tuple[str, ...] = (),
    traced_flops: float | None = None,
) -> Planned:  # fmt: skip
    config, architecture, shapes, topology = request
    devices, hosts = topology.chip.devices, math.ceil(topology.chips / topology.chip.host_chips)
    cost: Estimate = estimate(program, topology)
    rows, length = config.train.batch_size, shapes.tokens[2]
    needed = model_flops(
        architecture, rows * length, math.prod(shapes.target_index), rows * row_pairs(architecture, length)
    )
    devices_a_host = topology.devices / hosts
    tokens = rows * length
    return Planned(
        method=method,
        topology=topology.name,
        slices=topology.slices,
        chips=topology.chips,
        mesh=dict(mesh.shape),
        remat=config.model.remat,
        accumulation=config.train.accumulation,
        first_moment_dtype=config.optimizer.first_moment_dtype or "float32",
        fits=fits,
        peak_bytes_per_chip=memory.peak * devices,
        argument_bytes_per_chip=memory.arguments * devices,
        hbm_bytes_per_chip=topology.chip.memory,
        usable_bytes_per_chip=usable_bytes(topology),
        host_bytes_per_host=(memory.host + memory.arguments) * devices_a_host,
        checkpoint_bytes=analytic.held_bytes(config, architecture).checkpoint,
        model_flops=needed,
        executed_flops=topology.devices * (work.product_flops(program) + work.kernel_flops(program)),
        traced_flops=traced_flops,
        hbm_traffic_bytes=work.hbm_bytes(program),
        collective_bytes=work.sent_by_axes(program),
        networks=_networks(program),
        step_seconds=cost.step_seconds,
        busy_seconds=cost.busy,
        bound_by=cost.bound_by,
        tokens_per_step=tokens,
        tokens_per_second_per_chip=tokens / cost.step_seconds / topology.chips,
        mfu=needed / cost.step_seconds / (topology.chips * topology.chip.flops),
        input_tokens_per_second_per_host=tokens / cost.step_seconds / hosts,
        compile_seconds=compile_seconds,
        collectives=collectives,
        problem=problem,
    )


def _networks(program: work.Region) -> dict[str, list[str]]:
    found: dict[str, set[str]] = {}
    for _, each in work.each(program):
        for sent in each.sent:
            used = {"dcn"} if sent.islands > 1 else set()
            used |= {"ici"} if sent.devices > sent.islands else set()
            found.setdefault("+".join(sent.axes), set()).update(used)
    return {axes: sorted(used, reverse=True) for axes, used in sorted(found.items())}


def usable_bytes(topology: Topology) -> float:
    """Memory of a chip that is available to programs."""
    return topology.chip.memory * RESERVED


def _too_large(needed: float, usable: float) -> str:
    return f"needs {needed / 2**30:.2f} GiB per chip, {usable / 2**30:.2f} GiB are available"
