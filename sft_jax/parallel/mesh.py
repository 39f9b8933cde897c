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
"""data, fsdp, tensor, context, expert: slowest network first, so that neighbouring devices share the fast axes."""


def mesh_sizes(config: Mesh, devices: int) -> dict[str, int]:
    """Axis name -> size, with -1 resolved to the remaining devices.

    Raises:
      BadInput: the product does not equal `devices`; names both numbers and a layout that works.
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
            f"the mesh ({spelled}) needs {fixed_word} devices, found {devices}. Set one axis to -1 to use the "
            f"remaining devices, or simulate devices on a CPU with --distributed.cpu-devices {fixed}."
        )
    return sizes


def make_mesh(config: Mesh, devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
    """The mesh over all devices of all processes. Every axis is Auto: sharding constraints guide the compiler.

    Neighbours on an axis are neighbours on the chip network. With several slices, only the `data` axis spans the much
    slower network between them.

    Args:
      devices: defaults to `jax.devices()`; pass others to compile ahead of time for a topology.

    Raises:
      BadInput: as `mesh_sizes`, or `data` is not a multiple of the number of slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = mesh_sizes(config, len(devices))
    shape, types = tuple(sizes[axis] for axis in AXES), (AxisType.Auto,) * len(AXES)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        # An axis may use part of one side of the torus: 8 x 2 on 4 x 4 chips.
        arranged = create_device_mesh(shape, devices, allow_split_physical_axes=True)
        return jax.sharding.Mesh(arranged, AXES, axis_types=types)
    check_slices(sizes, slices)
    across = tuple(slices if axis == "data" else 1 for axis in AXES)
    within = (sizes["data"] // slices, *shape[1:])
    arranged = create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)
    return jax.sharding.Mesh(arranged, AXES, axis_types=types)


def check_slices(sizes: Mapping[str, int], slices: int) -> None:
    """Check that `data`, the only axis that spans slices, is a multiple of their number.

    Args:
      sizes: size of every mesh axis.

    Raises:
      BadInput: it is not; suggests one that is.
    """
    if sizes["data"] % slices:
        multiple = -(-sizes["data"] // slices) * slices
        raise BadInput(
            f"mesh.data is {sizes['data']}, but the {math.prod(sizes.values())} devices form {slices} slices, and "
            f"only the data axis can span slices. Set --mesh.data {multiple} (a multiple of {slices}) and another "
            "axis to -1."
        )
