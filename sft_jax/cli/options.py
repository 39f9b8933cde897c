"""What the commands that take a MODEL have in common: their options, the model on its devices, and what they write."""

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from sft_jax.cli.fields import Positional
from sft_jax.config import Distributed, Mesh, Sharding, layout_problems
from sft_jax.errors import BadInput
from sft_jax.storage.location import Location

if TYPE_CHECKING:
    from sft_jax.api.model import Model
    from sft_jax.report.terminal import Stages

ModelPath = Annotated[str, Positional("MODEL")]


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """How a command holds its model: the sections of a training config, with the same names."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype."""
    quantization: Literal["none", "int8"] = "none"
    """Storage of the kernels: int8 values and scales, or as they are."""
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
    with stages()(f"loading {model}"):
        return load(model, options.mesh, options.dtype, options.sharding, quantization=options.quantization)


def load_beside(other: str, model: "Model", options: ModelOptions) -> "Model":
    """Another MODEL on the devices of one that is loaded; `base` is the one that its run started from.

    Raises:
      BadInput: as `sft_jax.load`; `base` beside a model that is no run's workdir.
    """
    from sft_jax.api.model import load

    if other == "base":
        other = base_of(model.name)
    mesh: Any = model.compute.layout.mesh
    with stages()(f"loading {other}"):
        return load(other, mesh, options.dtype, options.sharding, quantization=options.quantization)


def base_of(workdir: str) -> str:
    """The model that the run in `workdir` started from.

    Raises:
      BadInput: it is no run's workdir.
    """
    from sft_jax.weights.pretrained import is_workdir, read_run_config

    location = Location(workdir)
    if not is_workdir(location):
        raise BadInput(f"base: {workdir} is not a run's workdir, so its base is not recorded. Name the MODEL itself.")
    return read_run_config(location).model.path


def stages() -> "Stages":
    """Progress messages of process 0 on stderr."""
    from rich.console import Console

    from sft_jax.distributed.agree import is_first_process
    from sft_jax.report.terminal import Stages

    return Stages(Console(stderr=True, soft_wrap=True, highlight=False), is_first_process)


def at_least(options: Any, least: int, *names: str) -> None:
    for name in names:
        value = getattr(options, name)
        if not value >= least:
            raise BadInput(f"--{name.replace('_', '-')} is {value}, expected at least {least}")


def write_text(lines: Iterable[str]) -> None:
    """Lines to the terminal; process 0 alone writes."""
    from sft_jax.distributed.agree import is_first_process

    if is_first_process():
        sys.stdout.writelines(f"{line}\n" for line in lines)


def write_lines(rows: Iterable[dict[str, Any]], path: str) -> None:
    """JSON lines into a file, or to the terminal when `path` is empty; process 0 alone writes."""
    from sft_jax.distributed.agree import is_first_process

    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if not is_first_process():
        for _ in lines:  # every process takes part in computing a row
            pass
    elif path:
        Location(path).write_atomic(lambda file: file.writelines(line.encode() for line in lines))
    else:
        sys.stdout.writelines(lines)
