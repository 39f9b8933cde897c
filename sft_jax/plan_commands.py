"""sft-jax plan: what a layout does to a run, on devices that need not be here."""

import fnmatch
import json
import math
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sft_jax.arguments import check_writable, config_with_options
from sft_jax.config import RunConfig
from sft_jax.errors import EXIT_DONE, BadInput, nearest

if TYPE_CHECKING:
    from sft_jax.data.batches import Batch
    from sft_jax.model.architecture import Architecture


WIDTH = 140
"""Columns that the tables need: a terminal wraps longer lines, and a name cut short is none."""


@dataclass(frozen=True)
class Plan(RunConfig):
    """Show how a run lies on a mesh."""

    show: Literal["sharding", "memory"] = "sharding"
    """sharding: every array, its shards and who holds them, without compiling. memory: bytes a device of the compiled
    update and what it sends, by the TPU's own compiler (needs the tpu extra)."""
    topology: str = ""
    """TPU topology, e.g. v5e:4x4; empty takes the mesh's own product, or --devices."""
    slices: int = 1
    """Slices of this topology; mesh.data goes across them."""
    devices: int = 0
    """Number of devices where no topology is named."""
    parameter: str = ""
    """Name or pattern (`*.query.*`) of the arrays to show who holds what of; empty shows the first."""
    json: bool = False
    """Print JSON instead of tables."""
    html: str = ""
    """File to write a page to."""


def plan(arguments: Sequence[str]) -> int:
    """sft-jax plan CONFIG [--show sharding|memory] [--topology v5e:4x4] [--section.field value ...]"""
    config, options = config_with_options(Plan, arguments, "sft-jax plan")
    check_writable(options.html, option="--html")
    if options.slices < 1 or options.devices < 0:
        raise BadInput(f"--slices is {options.slices}, --devices {options.devices}: expected at least 1 and 0")
    from sft_jax.train.pretrained import describe

    architecture = describe(config.model.path)
    shapes, notes = _batch(config, architecture)
    if options.show == "memory":
        return _memory(config, options, architecture, shapes, notes)
    return _sharding(config, options, architecture, shapes, notes)


def _batch(config: RunConfig, architecture: "Architecture") -> "tuple[Batch, list[str]]":
    """Global shapes of a batch, without the data that would tell the target capacity."""
    from sft_jax.data.batches import Batch

    data, parts = config.data, config.train.accumulation
    if data.sequence_length > architecture.max_positions:
        raise BadInput(
            f"data.sequence_length is {data.sequence_length}, but {config.model.path} was made for at most "
            f"{architecture.max_positions} positions"
        )
    notes = [f"{config.train.batch_size} rows of {data.sequence_length} tokens a step, in {parts} micro-batch(es)"]
    if not data.target_capacity:
        notes.append("data.target_capacity is chosen from the data when a run starts; here every token is a target")
    by_position = (parts, config.train.batch_size // parts, data.sequence_length)
    by_target = (*by_position[:2], data.target_capacity or data.sequence_length)
    return Batch(*(by_position,) * 3, *(by_target,) * 3), notes  # type: ignore[arg-type]


def _device_count(config: RunConfig, options: Plan) -> int:
    from sft_jax.plan.chips import topology_size

    if options.topology:
        return topology_size(options.topology) * options.slices
    sizes = vars(config.mesh)
    if options.devices or -1 not in sizes.values():
        return options.devices or math.prod(sizes.values())
    rest = next(axis for axis, size in sizes.items() if size == -1)
    raise BadInput(f"mesh.{rest} is -1, the rest of how many devices? Set --topology v5e:4x4, --devices 8, or the axis")


def _sharding(config: RunConfig, options: Plan, architecture, shapes, notes: list[str]) -> int:
    from rich.console import Console

    from sft_jax.plan.sharding import abstract_mesh, place_all
    from sft_jax.report.sharding_page import as_json, print_holders, print_sharding, write_sharding_page

    mesh = abstract_mesh(config, _device_count(config, options))
    if mesh.shape["data"] % options.slices:
        raise BadInput(f"mesh.data is {mesh.shape['data']}, expected a multiple of --slices {options.slices}")
    placed = place_all(config, architecture, shapes, mesh, "tpu" if options.topology else "cpu")
    names = [each.name for each in placed]
    chosen = [i for i, name in enumerate(names) if fnmatch.fnmatchcase(name, options.parameter or names[0])]
    if not chosen:
        hint = nearest(options.parameter, names)
        raise BadInput(f"--parameter {options.parameter!r} is no array of this run. {hint}")
    sizes = dict(mesh.shape)
    if options.html:
        write_sharding_page(options.html, f"{config.model.path}: layout", placed, sizes, notes, chosen[0])
    if options.json:
        print(json.dumps(as_json(placed, sizes, notes), indent=1))
        return EXIT_DONE
    width = max(WIDTH, shutil.get_terminal_size().columns)
    console = Console(soft_wrap=True, highlight=False, width=width)
    print_sharding(console, placed, sizes, notes)
    for index in chosen:
        print_holders(console, placed[index], sizes)
    if options.html:
        print(options.html, file=sys.stderr)
    return EXIT_DONE


def _memory(config: RunConfig, options: Plan, architecture, shapes, notes: list[str]) -> int:
    from rich.console import Console
    from rich.table import Table

    from sft_jax.model.architecture import model_flops
    from sft_jax.parallel.mesh import make_mesh
    from sft_jax.plan.aot import compile_traced, memory_of, topology_devices, trace_update
    from sft_jax.plan.collectives import collectives, describe
    from sft_jax.plan.counts import by_kind_and_axes, hbm_bytes, sent
    from sft_jax.plan.flops import executed_flops
    from sft_jax.plan.hlo import parse
    from sft_jax.report.sharding_page import size_of

    if not options.topology:
        raise BadInput("--show memory needs --topology, e.g. v5e:4x4: the compiler of that TPU lays the memory out")
    if options.html:
        raise BadInput("--html shows the sharding; leave it out with --show memory")
    devices = topology_devices(options.topology, options.slices)
    mesh = make_mesh(config.mesh, devices)
    traced = trace_update(config, architecture, shapes, devices)
    compiled = compile_traced(traced, devices)
    found, text = memory_of(compiled), compiled.as_text()
    named, module = describe(collectives(text, mesh)), parse(text)
    rows, length = config.train.batch_size, config.data.sequence_length
    needed = model_flops(
        architecture, rows * length, math.prod(shapes.target_index), rows * length * (length + 1) / 2
    )  # each row one document
    executed = executed_flops(traced).total()
    moved = by_kind_and_axes(sent(module, mesh))
    if options.json:
        result = {
            "devices": len(devices),
            "mesh": dict(mesh.shape),
            **vars(found),
            "model_flops": needed,
            "executed_flops": executed,
            "hbm_bytes": hbm_bytes(module),
            "collective_bytes": moved,
            "collectives": named,
        }
        print(json.dumps(result, indent=1))
        return EXIT_DONE
    console = Console(soft_wrap=True, highlight=False)
    for note in notes:
        console.print(note)
    table = Table(f"{options.topology}, bytes a device", "", box=None)
    for name, value in (
        ("peak: what must fit", found.peak),
        ("arguments: state and batch", found.arguments),
        ("peak less arguments", found.peak - found.arguments),
        ("temporaries, as XLA counts them", found.temporaries),
    ):
        table.add_row(name, size_of(value))
    console.print(table)
    console.print(
        f"operations of an update: the model needs {needed:.4g} (rows of one document), {executed:.4g} are executed: "
        f"{executed / needed:.3f} x"
    )
    console.print(f"main memory read and written on each device: {size_of(hbm_bytes(module))}")
    for kind, of_axes in moved.items():
        for axes, size in of_axes.items():
            console.print(f"{kind} over {axes}: a device sends {size_of(size)}")
    console.print("what the update sends, as far as the compiler names it:")
    for line in named:
        console.print(f"  {line}")
    return EXIT_DONE
