"""What the measurements take from the library: all of bench that knows how `sft_jax` is called."""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bench.rows import Rows
from sft_jax.config import Data, Model, Optimizer, RunConfig, Train
from sft_jax.data.pack.batches import Batch
from sft_jax.model.architecture import Architecture, model_flops
from sft_jax.model.attention.blockwise import blockwise
from sft_jax.model.attention.reference import TokenPositions, reference
from sft_jax.model.attention.triton import triton
from sft_jax.model.decoder import initialise
from sft_jax.model.families import architecture_of
from sft_jax.parallel.mesh import make_mesh
from sft_jax.plan.chips import peak_flops
from sft_jax.train.program import make_initial_state, make_program
from sft_jax.weights.load import read_json

__all__ = [
    "Run", "architecture_from", "architecture_in", "attention", "model_flops", "open_run", "peak_flops",
    "random_parameters",
]  # fmt: skip


def attention(name: str, rows: Rows, window: int | None = None, softcap: float | None = None) -> Callable[..., Any]:
    """An implementation by its name in `model.attention`, over these rows: (q [B, T, N, H], k, v) -> [B, T, N, H]."""
    places = TokenPositions(jax.numpy.asarray(rows.positions), jax.numpy.asarray(rows.segments))
    if name == "triton":
        if window is not None or softcap is not None:
            raise ValueError("the triton kernel knows neither windows nor soft-caps")
        interpret = jax.default_backend() != "gpu"
        return functools.partial(triton, queries=places, keys=places, interpret=interpret)
    function = {"reference": reference, "blockwise": blockwise}[name]
    return functools.partial(function, queries=places, keys=places, window=window, softcap=softcap)


def architecture_in(directory: Path) -> Architecture:
    """What a directory's config.json describes."""
    return architecture_from(read_json(directory / "config.json"))


def architecture_from(config: dict[str, Any]) -> Architecture:
    """What the content of a config.json describes."""
    return architecture_of(config, "bench")


def random_parameters(architecture: Architecture, device: Any) -> dict[str, jax.Array]:
    """Random float32 parameters, drawn on this device: another kind of device rounds them differently."""
    with jax.default_device(device):
        return jax.jit(initialise, static_argnums=(0, 1))(architecture, 0)


@dataclass
class Run:
    """A training run's update, compiled, with the state that it changes and the one batch that it takes."""

    state: Any
    batch: Any
    compiled: Any
    compile_seconds: float

    def advance(self) -> dict[str, jax.Array]:
        """Dispatch one update; its metrics, on the device."""
        self.state, metrics = self.compiled(self.state, {}, self.batch)
        return metrics


@contextlib.contextmanager
def open_run(
    architecture: Architecture, rows: Rows, *, dtype: str, remat: str, rate: float, device: Any, parameters: Any = None
) -> Iterator[Run]:
    """AdamW on every parameter, the gradient clipped to 1, on one device.

    Args:
      parameters: where to start, which is random otherwise.
    """
    config = RunConfig(
        model=Model(dtype=dtype, remat=remat, head_chunk=1024),  # type: ignore[arg-type]
        data=Data(sequence_length=rows.tokens.shape[1]),
        optimizer=Optimizer(learning_rate=rate, schedule="constant", clip_norm=1.0),
        train=Train(batch_size=rows.tokens.shape[0], steps=1000),
    )
    batch = _batch(rows)
    shapes = Batch(*(part.shape for part in batch))
    mesh = make_mesh(config.mesh, [device])
    program = make_program(config, architecture, shapes, mesh)

    def start(given):
        return initialise(program.architecture, 0) if given is None else given

    begin = jax.jit(start, out_shardings=program.parameter_layout)(_on_host(parameters))
    state = make_initial_state(program)(begin)
    batch = jax.device_put(batch, program.batch_layout)
    started = time.perf_counter()
    compiled = program.update.lower(state, {}, batch).compile()
    yield Run(state, batch, compiled, time.perf_counter() - started)


def _on_host(parameters):
    """Numpy arrays: those of one device cannot enter a program of another."""
    return None if parameters is None else {name: np.asarray(value) for name, value in parameters.items()}


def _batch(rows: Rows) -> Batch:
    """One micro-batch in which every token with a successor trains."""
    trained = rows.trained
    index = np.broadcast_to(np.arange(rows.tokens.shape[1], dtype=np.int32), rows.tokens.shape)
    parts = (
        rows.tokens, rows.segments, rows.positions,
        np.where(trained, index, 0), np.where(trained, rows.following, 0), trained.astype(np.float32),
    )  # fmt: skip
    return Batch(*(part[None] for part in parts))
