"""Compile a run's update for TPUs that are not here, with the compiler that comes in the libtpu package."""

import os
import platform
import re
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

import jax
from packaging.specifiers import SpecifierSet

from sft_jax.config import RunConfig
from sft_jax.data.pack.batches import Batch
from sft_jax.errors import BadInput
from sft_jax.model.architecture import Architecture
from sft_jax.parallel.mesh import make_mesh
from sft_jax.plan.chips import GIB, topology
from sft_jax.train.program import make_program
from sft_jax.train.sharding import abstract_batch


@dataclass(frozen=True)
class Memory:
    """Bytes a device, as the compiler has laid them out."""

    arguments: int
    """State and batch; the new state takes the place of the old one."""
    temporaries: int
    """XLA's `temp_size_in_bytes`. On TPUs it may be more or less than its own buffer assignment holds; `peak -
    arguments` is what that holds. On CPUs it is exact."""
    peak: int
    """What must fit."""
    host: int
    """Of the host's memory, for this device: what remat offload keeps there."""


class OutOfMemory(Exception):
    """The compiler found no room: which memory, the bytes that it needs of it and those that there are."""

    def __init__(self, space: str, needed: float, available: float):
        super().__init__(f"{needed / GIB:.2f} GiB of {space} are needed, {available / GIB:.2f} GiB are there")
        self.space, self.needed, self.available = space, needed, available

    def __reduce__(self):
        return OutOfMemory, (self.space, self.needed, self.available)


def topology_devices(name: str, slices: int = 1) -> list[Any]:
    """The devices of a TPU topology such as `v5e:4x4`; there need be none of them.

    Raises:
      BadInput: there is no such topology; libtpu is not installed, is another version than this JAX is made for, or
        does not know the topology.
    """
    wanted = topology(name, slices)
    if wanted.is_gpu:
        raise BadInput(f"topology {name!r}: GPUs have no compiler that works without them; their plan is analytic")
    # Elsewhere than on Google Cloud, asking it for the machine's TPU takes minutes; and the library may be loaded
    # beside a run that uses it: nothing here takes a chip.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if wanted.kind == "v4":  # one device for both cores, as the runtime shows
        options["chip_config_name"] = "megacore"
    if wanted.chips == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices)
    except (RuntimeError, ImportError, ValueError, NotImplementedError) as error:
        first = str(error).strip().split("\n")[0]
        raise BadInput(f"topology {name!r}: {first}. {compiler_problem() or ''}".strip()) from error


def compiler_problem() -> str | None:
    """Why this machine cannot compile for TPUs, with the fix; None where it can."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return (
            f"this machine is {sys.platform} on {platform.machine()}, and the TPU's compiler (libtpu) exists for Linux "
            "on x86-64 alone"
        )
    wanted = [line for line in requires("jax") or [] if line.startswith("libtpu")]
    line = 'pip install "jax[tpu]" brings it'
    try:
        found = version("libtpu")
    except PackageNotFoundError:
        return f"libtpu is not installed, jax {jax.__version__} is made for {_specifier(wanted)}: {line}"
    if wanted and not SpecifierSet(_specifier(wanted)).contains(found):
        return f"libtpu is {found}, jax {jax.__version__} is made for {_specifier(wanted)}: {line}"
    return None


def _specifier(requirements: list[str]) -> str:
    """`libtpu==0.0.42.*; extra == "tpu"` -> `==0.0.42.*`."""
    return requirements[0].partition(";")[0].removeprefix("libtpu").strip() if requirements else ""


def trace_update(config: RunConfig, architecture: Architecture, shapes: Batch, devices: list[Any]) -> Any:
    """The update of a run on these devices as a jaxpr with its arguments' layouts.

    Args:
      architecture: the model's own.
      shapes: global shapes of a batch [A, b, T] and [A, b, M].

    Raises:
      BadInput: a layout that does not fit.
    """
    program = make_program(config, architecture, shapes, make_mesh(config.mesh, devices))

    def laid_out(shapes: Any, layout: Any) -> Any:
        return jax.tree.map(
            lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), shapes, layout
        )

    state, frozen = laid_out(program.state, program.state_layout), laid_out(program.frozen, program.frozen_layout)
    return program.update.trace(state, frozen, abstract_batch(shapes, program.batch_layout))


def compile_traced(traced: Any, devices: list[Any]) -> Any:
    """Compile what `trace_update` returned, for the platform of its devices.

    Raises:
      OutOfMemory: it does not fit.
    """
    try:
        return traced.lower(lowering_platforms=(devices[0].platform,)).compile()
    except jax.errors.JaxRuntimeError as error:
        found = out_of_memory(str(error))
        if found is None:
            raise
        raise found from error


_SIZE = r"([\d.]+)([KMGT]?)"


def out_of_memory(message: str) -> OutOfMemory | None:
    """What XLA's message says about a program that does not fit; None for another message."""
    found = re.search(rf"in memory space (\w+)\. Used {_SIZE}i?B? of {_SIZE}", message)
    if found:
        return OutOfMemory(found[1], _bytes(found[2], found[3]), _bytes(found[4], found[5]))
    found = re.search(rf"Ran out of memory on (\w+),.*?\({_SIZE}\) exceeds available \w+ \({_SIZE}\)", message)
    if found:
        return OutOfMemory(found[1].lower(), _bytes(found[2], found[3]), _bytes(found[4], found[5]))
    return None


def _bytes(number: str, unit: str) -> float:
    return float(number) * 1024 ** " KMGT".index(unit or " ")


def memory_of(compiled: Any) -> Memory:
    """What a compiled program needs on each device."""
    found = compiled.memory_analysis()
    arguments, temporaries = found.argument_size_in_bytes, found.temp_size_in_bytes
    # XLA's peak adds the host's memory to the device's where both are used; the sum of all buffers is an upper bound.
    peak = arguments + temporaries if found.host_temp_size_in_bytes else found.peak_memory_in_bytes
    return Memory(arguments, temporaries, peak, found.host_temp_size_in_bytes)
