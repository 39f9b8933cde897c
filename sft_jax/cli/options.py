"""What the commands that take a MODEL have in common: their options, the model on its devices, and what they write."""

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from sft_jax.config import Distributed, Mesh, Sharding, layout_problems
from sft_jax.errors import BadInput
from sft_jax.storage.location import Location

if TYPE_CHECKING:
    from sft_jax.api.model import Model

ModelPath = Annotated[str, tyro.conf.Positional]


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Where a model lies while a command uses it: the sections of a training config, with the same names."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype."""
    quantization: Literal["none", "int8"] = "none"
    """int8 holds kernels as int8 values and scales."""
    mesh: Mesh = field(default_factory=Mesh)
    sharding: Sharding = field(default_factory=Sharding)
    distributed: Distributed = field(default_factory=Distributed)


def load_model(model: str, options: ModelOptions) -> "Model":
    """MODEL on its devices, in all processes of the command.

    Raises:
      BadInput: as `sft_jax.load`; options that differ between the processes.
    """
    if problems := layout_problems(options.mesh, options.sharding, options.distributed):
        raise BadInput("\n".join(problems))
    from sft_jax.api.model import load
    from sft_jax.cli.processes import leave
    from sft_jax.distributed.agree import agree_on_options
    from sft_jax.distributed.start import start

    start(options.distributed, leave)
    agree_on_options(options)
    return load(model, options.mesh, options.dtype, options.sharding, quantization=options.quantization)


def load_beside(other: str, model: "Model", options: ModelOptions) -> "Model":
    """Another MODEL on the devices of one that is there."""
    from sft_jax.api.model import load

    mesh: Any = model.compute.layout.mesh
    return load(other, mesh, options.dtype, options.sharding, quantization=options.quantization)


def at_least(options: Any, least: int, *names: str) -> None:
    for name in names:
        value = getattr(options, name)
        if not value >= least:
            raise BadInput(f"--{name.replace('_', '-')} is {value}, expected at least {least}")


def write_lines(rows: Iterable[dict[str, Any]], path: str) -> None:
    """JSON lines into a file, or to the terminal when `path` is empty; process 0 alone writes."""
    from sft_jax.distributed.agree import is_first_process

    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if not is_first_process():
        for _ in lines:  # the work behind a row is everybody's
            pass
    elif path:
        Location(path).write_atomic(lambda file: file.writelines(line.encode() for line in lines))
    else:
        sys.stdout.writelines(lines)
