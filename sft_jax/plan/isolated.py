"""Compile a run's update in a separate process, which isolates this one from crashes of the TPU compiler.

The process gets the environment that the compiler needs (do not search for a TPU, allow loading libtpu next to a run),
and exits with its parent. Request and result are pickles in a temporary directory; run as
`python -m sft_jax.plan.isolated DIRECTORY`.
"""

import contextlib
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

from sft_jax.config import RunConfig
from sft_jax.data.pack.batches import Batch
from sft_jax.errors import BadInput
from sft_jax.model.architecture import Architecture
from sft_jax.plan.aot import Memory, OutOfMemory, compile_traced, memory_of, topology_devices, trace_update
from sft_jax.plan.chips import Topology
from sft_jax.plan.work import Region, causal_imbalance

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    # Programs compiled for absent devices cannot be loaded from the cache; JAX would warn.
    "JAX_ENABLE_COMPILATION_CACHE": "0",
}
LAST_LINES = 60
"""Lines of output to show if the compiler crashes."""


class Compiled(NamedTuple):
    """What the planner reads from a compiled update."""

    memory: Memory
    program: Region
    """The work of each device."""
    traced_flops: float
    """FLOPs of all devices in the traced update, before XLA."""
    collectives: list[str]
    """In the compiler's terms, one line each with its count."""
    compile_seconds: float


class Request(NamedTuple):
    config: RunConfig
    architecture: Architecture
    shapes: Batch
    topology: Topology


def compile_isolated(request: Request) -> Compiled:
    """Compile a run's update for TPUs you don't have.

    Raises:
      BadInput: a layout that does not fit the model or the batch, or no compiler.
      OutOfMemory: the update does not fit into the chips' memory.
      RuntimeError: the process crashed; includes its output.
    """
    with tempfile.TemporaryDirectory(prefix="sft-jax-plan-") as directory:
        folder = Path(directory)
        (folder / "request").write_bytes(pickle.dumps(request))
        command = [sys.executable, "-m", "sft_jax.plan.isolated", directory]
        with (folder / "messages").open("wb") as messages:
            # The child exits when this process closes the other end of its stdin.
            child = subprocess.Popen(
                command, env={**os.environ, **ENVIRONMENT}, stdin=subprocess.PIPE, stdout=messages, stderr=messages
            )
            try:
                status = child.wait()
            finally:
                child.kill()
                child.wait()
                child.stdin.close()  # type: ignore[union-attr]
        if not (folder / "result").exists():
            said = (folder / "messages").read_text(encoding="utf-8", errors="replace").splitlines()
            raise RuntimeError(
                f"the process that compiled for {request.topology.name} exited with status {status} and no result. "
                "Its last output:\n" + "\n".join(said[-LAST_LINES:])
            )
        result = pickle.loads((folder / "result").read_bytes())
    if isinstance(result, Exception):
        raise result
    return result


def compiled(request: Request) -> Compiled:
    """Compile in this process.

    Raises:
      As `compile_isolated`.
    """
    from sft_jax.parallel.mesh import make_mesh
    from sft_jax.parallel.rules import axis_parts
    from sft_jax.plan.collectives import collective_lines, collectives
    from sft_jax.plan.counts import works
    from sft_jax.plan.flops import executed_flops, kernel_calls
    from sft_jax.plan.hlo import parse

    config, architecture, shapes, topology = request
    started = time.monotonic()
    devices = topology_devices(topology.name, topology.slices)
    mesh = make_mesh(config.mesh, devices)
    traced = trace_update(config, architecture, shapes, devices)
    found = compile_traced(traced, devices)
    seconds, text = time.monotonic() - started, found.as_text()
    program = works(
        parse(text), mesh, kernel_calls(traced), causal_imbalance(axis_parts("act_length", config.sharding, mesh))
    )
    return Compiled(
        memory_of(found), program, executed_flops(traced).total(), collective_lines(collectives(text, mesh)), seconds
    )


def _exit_with_parent() -> None:
    os.read(0, 1)  # not sys.stdin: its lock would be held at interpreter exit
    os._exit(1)


def main(directory: str) -> None:
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    folder = Path(directory)
    request: Request = pickle.loads((folder / "request").read_bytes())
    result: Any
    try:
        result = compiled(request)
    except (BadInput, OutOfMemory) as error:
        result = error
    with contextlib.suppress(FileNotFoundError):  # the parent has exited
        (folder / "unfinished").write_bytes(pickle.dumps(result))
        (folder / "unfinished").rename(folder / "result")


if __name__ == "__main__":
    # Import by the module's real name, under which the parent unpickles.
    from sft_jax.plan import isolated

    isolated.main(sys.argv[1])
