"""The device mesh with its five named axes."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.experimental.mesh_utils import create_device_mesh, create_hybrid_device_mesh
from jax.sharding import AxisType

from sft_jax.config import Mesh
from sft_jax.errors import BadInput

AXES = tuple(field.name for field in dataclasses.fields(Mesh))
"""data, fsdp, tensor, context, expert: slowest network first, so that neighbours share the fast axes."""


def mesh_sizes(config: Mesh, devices: int) -> dict[str, int]:
    """Axis name -> size, with -1 replaced by what the other axes leave of `devices`.

    Raises:
      BadInput: the product does not equal `devices`; both numbers and a layout that works are named.
    """
    sizes = dataclasses.asdict(config)
    fixed = math.prod(size for size in sizes.values() if size != -1)
    rest = [axis for axis, size in sizes.items() if size == -1]
    if rest and devices % fixed == 0:
        sizes[rest[0]] = devices // fixed
    if math.prod(sizes.values()) != devices or (rest and devices % fixed):
        spelled = " x ".join(f"{axis} {size}" for axis, size in sizes.items() if size != 1) or "every axis 1"
        fixed_word = f"a multiple of {fixed}" if rest else f"{fixed}"
        raise BadInput(
            f"the mesh ({spelled}) needs {fixed_word} devices, found {devices}. Set one axis to -1 to take the rest, "
            f"or on a CPU simulate devices with --distributed.cpu-devices {fixed}."
        )
    return sizes


def make_mesh(config: Mesh, devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
    """The mesh over all devices of all processes. Every axis is Auto: constraints guide the compiler.

    Neighbours on an axis are neighbours on the chips' network. Where the devices are several slices, the network
    between slices is far slower, and only the `data` axis goes across it.

    Args:
      devices: others than those of this machine, e.g. of a topology to compile for.

    Raises:
      BadInput: as `mesh_sizes`, or `data` is no multiple of the slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = mesh_sizes(config, len(devices))
    shape, types = tuple(sizes[axis] for axis in AXES), (AxisType.Auto,) * len(AXES)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        # An axis may lie along a part of one side of the torus: 8 x 2 on chips of 4 x 4.
        arranged = create_device_mesh(shape, devices, allow_split_physical_axes=True)
        return jax.sharding.Mesh(arranged, AXES, axis_types=types)
    check_slices(sizes, slices)
    across = tuple(slices if axis == "data" else 1 for axis in AXES)
    within = (sizes["data"] // slices, *shape[1:])
    arranged = create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)
    return jax.sharding.Mesh(arranged, AXES, axis_types=types)


def check_slices(sizes: Mapping[str, int], slices: int) -> None:
    """Only the `data` axis goes across the network between slices.

    Args:
      sizes: of every axis of the mesh.

    Raises:
      BadInput: data is no multiple of the slices; with one that is.
    """
    if sizes["data"] % slices:
        multiple = -(-sizes["data"] // slices) * slices
        raise BadInput(
            f"mesh.data is {sizes['data']}, but the {math.prod(sizes.values())} devices are {slices} slices, and only "
            f"data goes across the network between them. Set --mesh.data {multiple} (a multiple of {slices}) and "
            "another axis to -1."
        )
