"""Compile a run's update for TPUs you don't have, with the compiler in the libtpu package."""

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
    """Bytes per device, as reported by the compiler."""

    arguments: int
    """State and batch; the new state is donated the old state's memory."""
    temporaries: int
    """XLA's `temp_size_in_bytes`. Exact on CPUs. On TPUs it may differ from the buffer assignment, which is `peak -
    arguments`."""
    peak: int
    """Peak memory, which must fit."""
    host: int
    """Host memory for this device, used by remat offload."""


class OutOfMemory(Exception):
    """The program does not fit: the memory space, and the bytes needed and available."""

    def __init__(self, space: str, needed: float, available: float):
        super().__init__(f"needs {needed / GIB:.2f} GiB of {space}, {available / GIB:.2f} GiB are available")
        self.space, self.needed, self.available = space, needed, available

    def __reduce__(self):
        return OutOfMemory, (self.space, self.needed, self.available)


def topology_devices(name: str, slices: int = 1) -> list[Any]:
    """The devices of a TPU topology such as `v5e:4x4`, which need not exist.

    Raises:
      BadInput: an unknown topology; libtpu is not installed, has a version that this JAX does not support, or does not
        know the topology.
    """
    wanted = topology(name, slices)
    if wanted.is_gpu:
        raise BadInput(f"topology {name!r}: GPU programs cannot be compiled without the GPU; use the analytic plan")
    # Outside Google Cloud the metadata query takes minutes. Loading libtpu twice is safe: nothing here uses a chip.
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


def compiler_exists() -> bool:
    """Whether there is a TPU compiler for this kind of machine at all, installed or not."""
    return (sys.platform, platform.machine()) == ("linux", "x86_64")


def compiler_problem() -> str | None:
    """Why this machine cannot compile for TPUs, with the fix; None if it can."""
    if not compiler_exists():
        return (
            f"this machine is {sys.platform} on {platform.machine()}, but the TPU compiler (libtpu) exists only for "
            "Linux on x86-64"
        )
    wanted = [line for line in requires("jax") or [] if line.startswith("libtpu")]
    line = 'install it with pip install "jax[tpu]"'
    try:
        found = version("libtpu")
    except PackageNotFoundError:
        return f"libtpu is not installed, jax {jax.__version__} needs {_specifier(wanted)}: {line}"
    if wanted and not SpecifierSet(_specifier(wanted)).contains(found):
        return f"libtpu is {found}, jax {jax.__version__} needs {_specifier(wanted)}: {line}"
    return None


def _specifier(requirements: list[str]) -> str:
    """`libtpu==0.0.42.*; extra == "tpu"` -> `==0.0.42.*`."""
    return requirements[0].partition(";")[0].removeprefix("libtpu").strip() if requirements else ""


def trace_update(config: RunConfig, architecture: Architecture, shapes: Batch, devices: list[Any]) -> Any:
    """Trace a run's update for these devices, with the shardings of its arguments.

    Args:
      architecture: the model's architecture, not yet laid out.
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
    """Compile the result of `trace_update` for the platform of its devices.

    Raises:
      OutOfMemory: the program does not fit.
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
    """Parse XLA's error about a program that does not fit; None for any other message."""
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
    """Memory of a compiled program on each device."""
    found = compiled.memory_analysis()
    arguments, temporaries = found.argument_size_in_bytes, found.temp_size_in_bytes
    # XLA's peak includes host memory if it is used; then the sum of all device buffers is an upper bound.
    peak = arguments + temporaries if found.host_temp_size_in_bytes else found.peak_memory_in_bytes
    return Memory(arguments, temporaries, peak, found.host_temp_size_in_bytes)
