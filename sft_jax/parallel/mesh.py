"""The device mesh with its five named axes."""

import dataclasses
import math

import jax
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


def make_mesh(config: Mesh) -> jax.sharding.Mesh:
    """The mesh over all devices of all processes. Every axis is Auto: constraints guide the compiler."""
    sizes = mesh_sizes(config, jax.device_count())
    return jax.make_mesh(tuple(sizes[axis] for axis in AXES), AXES, axis_types=(AxisType.Auto,) * len(AXES))
