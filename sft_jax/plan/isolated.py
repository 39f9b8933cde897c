"""Compile a run's update in a process of its own: whatever the TPU's compiler does there, it does not do here.

The process has the environment that the compiler needs (no TPU is looked for, the library may be loaded beside a run),
and ends with the one that started it. Request and result are pickles in a temporary directory; run as
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
from sft_jax.plan.work import Stretch, causal_unevenness

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    # What is compiled for devices that are not there cannot be read back from a cache: JAX would warn and go on.
    "JAX_ENABLE_COMPILATION_CACHE": "0",
}
LAST_LINES = 60
"""Of what a compiler wrote that died."""


class Compiled(NamedTuple):
    """What is read from a compiled update."""

    memory: Memory
    program: Stretch
    """What each device does."""
    traced_flops: float
    """Operations of all devices in the traced update, before XLA."""
    collectives: list[str]
    """As the compiler names them, one line each with its count."""
    compile_seconds: float


class Request(NamedTuple):
    config: RunConfig
    architecture: Architecture
    shapes: Batch
    topology: Topology


def compile_isolated(request: Request) -> Compiled:
    """Compile a run's update for TPUs that are not here.

    Raises:
      BadInput: a layout that does not fit the model or the batch, or no compiler.
      OutOfMemory: the update does not fit the chips.
      RuntimeError: the process died; with what it said.
    """
    with tempfile.TemporaryDirectory(prefix="sft-jax-plan-") as directory:
        place = Path(directory)
        (place / "request").write_bytes(pickle.dumps(request))
        command = [sys.executable, "-m", "sft_jax.plan.isolated", directory]
        with (place / "messages").open("wb") as messages:
            # As long as this process holds the other end of its standard input, the other one lives.
            child = subprocess.Popen(
                command, env={**os.environ, **ENVIRONMENT}, stdin=subprocess.PIPE, stdout=messages, stderr=messages
            )
            try:
                status = child.wait()
            finally:
                child.kill()
                child.wait()
                child.stdin.close()  # type: ignore[union-attr]
        if not (place / "result").exists():
            said = (place / "messages").read_text(encoding="utf-8", errors="replace").splitlines()
            raise RuntimeError(
                f"the process that compiled for {request.topology.name} ended with status {status} and no result. It "
                "said last:\n" + "\n".join(said[-LAST_LINES:])
            )
        result = pickle.loads((place / "result").read_bytes())
    if isinstance(result, Exception):
        raise result
    return result


def compiled(request: Request) -> Compiled:
    """The same in this process.

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
        parse(text), mesh, kernel_calls(traced), causal_unevenness(axis_parts("act_length", config.sharding, mesh))
    )
    return Compiled(
        memory_of(found), program, executed_flops(traced).total(), collective_lines(collectives(text, mesh)), seconds
    )


def _end_with_the_other() -> None:
    os.read(0, 1)  # not sys.stdin: its lock would be held when Python ends
    os._exit(1)


def main(directory: str) -> None:
    threading.Thread(target=_end_with_the_other, daemon=True).start()
    place = Path(directory)
    request: Request = pickle.loads((place / "request").read_bytes())
    result: Any
    try:
        result = compiled(request)
    except (BadInput, OutOfMemory) as error:
        result = error
    with contextlib.suppress(FileNotFoundError):  # the other process has gone
        (place / "unfinished").write_bytes(pickle.dumps(result))
        (place / "unfinished").rename(place / "result")


if __name__ == "__main__":
    # Through the module's own name, which is the one that the other process unpickles by.
    from sft_jax.plan import isolated

    isolated.main(sys.argv[1])
