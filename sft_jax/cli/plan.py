"""sft-jax plan: memory, time and layouts of a run, on hardware you don't have."""

import fnmatch
import json
import math
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sft_jax.cli.arguments import check_writable, config_with_options
from sft_jax.config import RunConfig
from sft_jax.errors import EXIT_DONE, BadInput, nearest
from sft_jax.storage.location import require_local

if TYPE_CHECKING:
    from sft_jax.data.pack.batches import Batch
    from sft_jax.model.architecture import Architecture
    from sft_jax.plan.chips import Topology
    from sft_jax.plan.isolated import Request
    from sft_jax.plan.planned import Planned


WIDTH = 140
"""Columns that the tables need: a terminal wraps longer lines, and a name cut short is none."""


@dataclass(frozen=True)
class Plan(RunConfig):
    """Memory, time, cost and layouts of a run, on hardware you don't have."""

    show: Literal["cost", "sharding"] = "cost"
    """cost: what fits, what an update does and how long it takes, as compiled by the TPU's own compiler (needs the tpu
    extra). sharding: which device holds which shard of every array, without compiling."""
    topology: str = ""
    """v5e:4x4, v5p:2x2x1, v6e:8x8, tpu7x:4x4x8, h100:8. Not needed for --show sharding: there the mesh, or --devices,
    says how many devices."""
    slices: int = 1
    """Slices of this topology; mesh.data spans them."""
    analytic: bool = False
    """Plan in closed form, without compiling: seconds instead of a minute, less exact. Always so for GPUs."""
    measure: bool = True
    """If this machine has these GPUs, run a few updates (random weights) and show the measured time beside the plan."""
    search: bool = False
    """Search for the fastest mesh, remat policy and accumulation that fit."""
    search_moments: bool = False
    """Let the search try a bfloat16 first moment too."""
    search_minutes: float = 9.0
    """Time limit for compiling the best candidates."""
    price: float = 0.0
    """Price per chip-hour, in any currency: the plan then says what the run costs."""
    devices: int = 0
    """Number of devices, without a topology (--show sharding)."""
    parameter: str = ""
    """Arrays to show device by device (--show sharding), by name or pattern (`*.query.*`). Empty: the first."""
    json: bool = False
    """Print JSON instead of tables."""
    html: str = ""
    """HTML page to write."""


USUAL = (
    "model.path", "model.dtype", "model.remat", "data.sequence-length", "train.batch-size", "train.accumulation",
    "adapter.kind", "mesh.data", "mesh.fsdp", "mesh.tensor", "mesh.context",
)  # fmt: skip
"""What `--help` shows of the sections."""


def plan(arguments: Sequence[str]) -> int:
    """sft-jax plan CONFIG --topology v5e:4x4 [--slices N] [--search] [--section.field value ...]"""
    config, options = config_with_options(Plan, arguments, "sft-jax plan", USUAL)
    require_local(options.html, "--html")
    check_writable(options.html, option="--html")
    if options.slices < 1 or options.devices < 0:
        raise BadInput(f"--slices is {options.slices}, --devices {options.devices}: expected at least 1 and 0")
    if options.search_minutes <= 0:
        raise BadInput(f"--search-minutes is {options.search_minutes}, expected more than 0")
    if not 0 <= options.price < math.inf:
        raise BadInput(f"--price is {options.price}, expected what a chip-hour costs")
    from sft_jax.plan.chips import topology
    from sft_jax.plan.isolated import Request
    from sft_jax.weights.pretrained import architecture_at

    if options.show == "cost" and not options.topology:
        raise BadInput(
            "--topology is missing: plan for which chips? E.g. --topology v5e:4x4. (--show sharding shows every array "
            "and who holds it on any number of devices.)"
        )
    wanted = topology(options.topology, options.slices) if options.topology else None
    architecture = architecture_at(config.model.path)
    shapes, notes = batch_shapes(config, architecture), _notes(config)
    if options.show == "sharding" or wanted is None:
        return _sharding(config, options, wanted, architecture, shapes, notes)
    return _cost(Request(config, architecture, shapes, wanted), options, notes)


def batch_shapes(config: RunConfig, architecture: "Architecture") -> "Batch":
    """Global shapes of a batch, without the data that would tell the target capacity: every token a target."""
    from sft_jax.data.pack.batches import Batch

    data, parts = config.data, config.train.accumulation
    if data.sequence_length > architecture.max_positions:
        raise BadInput(
            f"data.sequence_length is {data.sequence_length}, but {config.model.path} was made for at most "
            f"{architecture.max_positions} positions"
        )
    by_position = (parts, config.train.batch_size // parts, data.sequence_length)
    by_target = (*by_position[:2], data.target_capacity or data.sequence_length)
    return Batch(*(by_position,) * 3, *(by_target,) * 3)  # type: ignore[arg-type]


def _notes(config: RunConfig) -> list[str]:
    data = config.data
    notes = [f"{config.train.batch_size} rows of {data.sequence_length} tokens per step"]
    if not data.target_capacity:
        notes.append("data.target_capacity is chosen from the data when a run starts; here every token is a target")
    return notes


def _device_count(config: RunConfig, options: Plan) -> int:
    sizes = vars(config.mesh)
    if options.devices or -1 not in sizes.values():
        return options.devices or math.prod(sizes.values())
    rest = next(axis for axis, size in sizes.items() if size == -1)
    raise BadInput(f"mesh.{rest} is -1, the rest of how many devices? Set --topology v5e:4x4, --devices 8, or the axis")


def _sharding(
    config: RunConfig, options: Plan, wanted: "Topology | None", architecture, shapes, notes: list[str]
) -> int:
    from rich.console import Console

    from sft_jax.parallel.mesh import check_slices
    from sft_jax.plan.sharding import abstract_mesh, place_all
    from sft_jax.report.sharding import as_json, shard_blocks, sharding_page, sharding_tables
    from sft_jax.storage.atomic import write_atomic

    mesh = abstract_mesh(config, wanted.devices if wanted else _device_count(config, options))
    check_slices(mesh.shape, options.slices)
    platform = "cpu" if wanted is None else "gpu" if wanted.is_gpu else "tpu"
    placed = place_all(config, architecture, shapes, mesh, platform)
    names = [each.name for each in placed]
    chosen = [i for i, name in enumerate(names) if fnmatch.fnmatchcase(name, options.parameter or names[0])]
    if not chosen:
        hint = nearest(options.parameter, names)
        raise BadInput(f"--parameter {options.parameter!r} is no array of this run. {hint}")
    sizes = dict(mesh.shape)
    if options.html:
        page = sharding_page(f"{config.model.path}: layout", placed, sizes, notes, chosen[0])
        write_atomic(Path(options.html), lambda file: file.write(page.encode()))
    if options.json:
        print(json.dumps(as_json(placed, sizes, notes), indent=1))
        return EXIT_DONE
    width = max(WIDTH, shutil.get_terminal_size().columns)
    console = Console(soft_wrap=True, highlight=False, width=width)
    console.print(sharding_tables(placed, sizes, notes))
    for index in chosen:
        console.print(shard_blocks(placed[index], sizes))
    if options.html:
        print(options.html, file=sys.stderr)
    return EXIT_DONE


def _cost(request: "Request", options: Plan, notes: list[str]) -> int:
    from rich.console import Console

    from sft_jax.plan.planned import can_compile, check, plan_analytic, plan_compiled
    from sft_jax.plan.search import config_lines, flags, nearest_that_fits, search
    from sft_jax.plan.spend import spend
    from sft_jax.report.plan import measured_table, pareto_table, plan_page, plan_tables, spend_rows, spend_table
    from sft_jax.storage.atomic import write_atomic

    compiles = can_compile(request.topology) and not options.analytic
    notes = [*notes, *_how(request, options)]
    console = Console(soft_wrap=True, highlight=False, width=max(WIDTH, shutil.get_terminal_size().columns))
    found: list[Planned] = []
    measured: dict[str, float] | None = None
    if options.search:
        tell = Console(stderr=True, highlight=False, soft_wrap=True, markup=False).print
        found = search(request, options.search_moments, 60 * options.search_minutes if compiles else 0.0, tell)
        best = found[0]
    else:
        check(request)
        best = plan_compiled(request) if compiles else plan_analytic(request)
        measured = _measured(request, best) if options.measure and best.fits else None
    spent = spend(best, request.config.train.steps, options.price)
    if options.html:
        title = f"{request.config.model.path} on {options.topology}"
        page = plan_page(title, best, notes, spend_rows(spent, request.config.train.steps), found)
        write_atomic(Path(options.html), lambda file: file.write(page.encode()))
    if options.json:
        more = (
            {"search": [_as_json(each) for each in found], "options": flags(best), "config_lines": config_lines(best)}
            if found
            else {}
        )
        print(json.dumps({**_as_json(best), **spent, "notes": notes, **(measured or {}), **more}, indent=1))
    else:
        if found:
            console.print(pareto_table(found))
            console.print(f"the fastest that fits: {flags(best)}")
            for line in config_lines(best):
                console.print(f"    {line},", markup=False)
        console.print(plan_tables(best, notes))
        console.print(spend_table(spent, request.config.train.steps))
        if measured:
            console.print(measured_table(best, measured))
    if options.html:
        print(options.html, file=sys.stderr)
    if best.fits:
        return EXIT_DONE
    other = nearest_that_fits(request)
    raise BadInput(
        f"this layout does not fit {options.topology}: {best.problem}. "
        + (f"The nearest layout that does (in closed form): {flags(other)}" if other else
           "No layout of this batch fits these chips: take more of them, fewer rows (--train.batch-size) or shorter "
           "ones (--data.sequence-length).")
    )  # fmt: skip


def _measured(request: "Request", planned: "Planned") -> dict[str, float] | None:
    """The plan's times as they are on this machine; None where it has other chips."""
    from sft_jax.plan.timing import local_gpus, measured_seconds

    devices = local_gpus(request.topology)
    if not devices:
        return None
    seconds = measured_seconds(request, devices)
    speed = planned.tokens_per_step / seconds / planned.chips
    return {
        "measured_step_seconds": seconds,
        "measured_tokens_per_second_per_chip": speed,
        "measured_mfu": planned.mfu * planned.step_seconds / seconds,
    }


def _as_json(planned: "Planned") -> dict[str, object]:
    return {name: value for name, value in vars(planned).items() if value is not None or name == "compile_seconds"}


def _how(request: "Request", options: Plan) -> list[str]:
    """How the plan is made, if it is not compiled."""
    from sft_jax.plan.aot import compiler_exists, compiler_problem

    if request.topology.is_gpu:
        return ["in closed form: GPU programs cannot be compiled without the GPU"]
    if options.analytic:
        return ["in closed form, as --analytic asks"]
    problem = compiler_problem()
    if problem is None:
        return []
    if not compiler_exists():
        return [f"in closed form: {problem}"]
    raise BadInput(f"{problem}. --analytic plans in closed form, without it.")
