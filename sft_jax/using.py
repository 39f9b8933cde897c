"""What the commands that use a model have in common: where it lies, loading it there, and writing what comes of it."""

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from sft_jax.config import Distributed, Mesh, Model, RunConfig, Sharding, layout_problems, leaf_fields
from sft_jax.errors import BadInput
from sft_jax.storage.bucket import file_system, is_remote, reaching

if TYPE_CHECKING:
    from sft_jax.model.architecture import Architecture
    from sft_jax.weights.pretrained import Pretrained

ModelPath = Annotated[str, tyro.conf.Positional]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where a model lies while a command uses it: the sections of a training config, with the same names."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype."""
    mesh: Mesh = field(default_factory=Mesh)
    sharding: Sharding = field(default_factory=Sharding)
    distributed: Distributed = field(default_factory=Distributed)


OF_EACH_PROCESS = ("distributed.process_id", "distributed.coordinator")
"""Options that may differ between processes: who they are, and how they spell the address where they have met."""


def agree_on_options(options: Any) -> None:
    """Refuse on every process what the processes were not all started with; call it after `start`.

    Raises:
      BadInput: each field that differs, with its values.
    """
    from sft_jax.distributed.agree import agreed

    values = {name: value for name, _, value in leaf_fields(options) if name not in OF_EACH_PROCESS}
    advice = "Start every process with the same CONFIG and options."
    agreed("options", lambda: values, lambda values: values, advice, options.distributed.timeout_seconds)


@contextlib.contextmanager
def loaded(model: str, options: Layout) -> "Iterator[tuple[Pretrained, Architecture, dict]]":
    """MODEL on its devices: (what it is, architecture as laid out, parameters), with the layout active."""
    problems = layout_problems(options.mesh, options.sharding, options.distributed)
    if problems:
        raise BadInput("\n".join(problems))
    from sft_jax.distributed.start import start
    from sft_jax.parallel.mesh import make_mesh
    from sft_jax.parallel.rules import layout

    start(options.distributed)
    agree_on_options(options)
    mesh = make_mesh(options.mesh)
    with layout(mesh, options.sharding):
        yield load_onto(mesh, model, options)


def load_onto(mesh: Any, model: str, options: Layout) -> "tuple[Pretrained, Architecture, dict]":
    """MODEL on a mesh that is there already, beside whatever lies on it; returns what `loaded` yields."""
    from sft_jax.weights.pretrained import open_pretrained, place

    pretrained = open_pretrained(model)
    config = RunConfig(model=Model(model, options.dtype), mesh=options.mesh, sharding=options.sharding)
    return (pretrained, *place(pretrained, config, mesh))


def load_beside(model: str, options: Layout) -> "tuple[Pretrained, Architecture, dict]":
    """Another MODEL on the mesh of the active layout."""
    from sft_jax.parallel.rules import active_layout

    active = active_layout()
    assert active is not None, "call it within `loaded`"
    return load_onto(active.mesh, model, options)


def is_first_process() -> bool:
    """Whether this process is the one that writes files and prints."""
    import jax

    return jax.process_index() == 0


def plain(value: Any) -> Any:
    """Dataclasses, named tuples and tuples as JSON has them: objects and lists."""
    if hasattr(value, "_asdict"):
        return plain(value._asdict())
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {key: plain(child) for key, child in value.items()}
    return [plain(child) for child in value] if isinstance(value, list | tuple) else value


def at_least(options: Any, least: int, *names: str) -> None:
    for name in names:
        value = getattr(options, name)
        if not value >= least:
            raise BadInput(f"--{name.replace('_', '-')} is {value}, expected at least {least}")


SEND_SECONDS = 24 * 3600.0
"""So long the other processes wait while process 0 sends what it has written to a bucket."""


def send(out: str) -> None:
    """Publish what was written in the copy of `out`; no process goes on, and ends, before all is sent."""
    from sft_jax.distributed.agree import agreed
    from sft_jax.storage.bucket import publish

    if is_remote(out):
        agreed("output", lambda: publish(out), lambda _: {}, "", SEND_SECONDS)


def write_lines(rows: Iterable[dict[str, Any]], path: str) -> None:
    """JSON lines into a file, or to the terminal when `path` is empty; process 0 alone writes."""
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if not is_first_process():
        for _ in lines:  # the work behind a row is everybody's
            pass
    elif is_remote(path):
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".jsonl") as file:
            file.writelines(lines)
            file.flush()
            with reaching(path):
                files, target = file_system(path)
                files.put_file(file.name, target)
    elif path:
        partial = f"{path}.partial"  # a name that nobody takes for a finished file
        with open(partial, "w", encoding="utf-8") as file:
            file.writelines(lines)
        os.replace(partial, path)
    else:
        sys.stdout.writelines(lines)
