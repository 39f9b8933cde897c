"""Compile a run's update for TPUs that are not here, with the compiler that comes in the libtpu package."""

import os
from dataclasses import dataclass
from typing import Any

import jax

from sft_jax.config import RunConfig
from sft_jax.data.batches import Batch
from sft_jax.errors import BadInput
from sft_jax.model.architecture import Architecture
from sft_jax.parallel.mesh import make_mesh
from sft_jax.parallel.rules import layout
from sft_jax.train.setup import abstract_batch, make_program


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


def topology_devices(name: str, slices: int = 1) -> list[Any]:
    """The devices of a TPU topology such as `v5e:4x4`; there need be none of them.

    Raises:
      BadInput: libtpu is not installed, or does not know the topology.
    """
    # Elsewhere than on Google Cloud, asking it for the machine's TPU takes minutes; and the library may be loaded
    # beside a run that uses it: nothing here takes a chip.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    options = {"num_slices": slices} if slices > 1 else {}
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices)
    except (RuntimeError, ImportError, ValueError, NotImplementedError) as error:
        first = str(error).strip().split("\n")[0]
        raise BadInput(
            f"topology {name!r}: {first}. Compiling for TPUs needs the libtpu package (Linux on x86-64): "
            'pip install "sft-jax[tpu]". Topologies are spelled v5e:4x4, v5p:2x2x1, v6e:4x4, tpu7x:2x2x1.'
        ) from error


def compile_update(config: RunConfig, architecture: Architecture, shapes: Batch, devices: list[Any]) -> Any:
    """The compiled update of a run on these devices; nothing is allocated. Arguments and errors: `trace_update`."""
    return compile_traced(trace_update(config, architecture, shapes, devices), devices)


def trace_update(config: RunConfig, architecture: Architecture, shapes: Batch, devices: list[Any]) -> Any:
    """The update of a run on these devices as a jaxpr with its arguments' layouts.

    Args:
      architecture: the model's own.
      shapes: global shapes of a batch [A, b, T] and [A, b, M].

    Raises:
      BadInput: a layout that does not fit.
    """
    mesh = make_mesh(config.mesh, devices)
    with layout(mesh, config.sharding):
        program = make_program(config, architecture, shapes, mesh)
        state = jax.tree.map(
            lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
            program.state,
            program.state_layout,
        )
        return program.update.trace(state, {}, abstract_batch(shapes, program.batch_layout))


def compile_traced(traced: Any, devices: list[Any]) -> Any:
    """Compile what `trace_update` returned, for the platform of its devices."""
    return traced.lower(lowering_platforms=(devices[0].platform,)).compile()


def memory_of(compiled: Any) -> Memory:
    """What a compiled program needs on each device."""
    found = compiled.memory_analysis()
    return Memory(found.argument_size_in_bytes, found.temp_size_in_bytes, found.peak_memory_in_bytes)
