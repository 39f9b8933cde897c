"""Time a run's update on local GPUs, with random weights and tokens, to compare with the plan."""

import importlib.util
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sft_jax.data.pack.batches import Batch
from sft_jax.model.decoder import initialise
from sft_jax.model.trainable import split_parameters
from sft_jax.parallel.mesh import make_mesh
from sft_jax.plan.chips import Topology, chip_of
from sft_jax.plan.isolated import Request
from sft_jax.train.program import make_initial_state, make_program

WARM_UP, STEPS = 2, 5


def local_gpus(topology: Topology) -> list[Any]:
    """This machine's GPUs if they are the whole topology; otherwise an empty list."""
    plugins = ("jax_cuda13_plugin", "jax_cuda12_plugin")
    # Asking JAX for devices would initialize every backend, and libtpu searches for a TPU for minutes.
    if not topology.is_gpu or not any(importlib.util.find_spec(name) for name in plugins):
        return []
    found = jax.devices()
    is_it = jax.process_count() == 1 and len(found) == topology.devices and topology.slices == 1
    return found if is_it and chip_of(found[0].device_kind) == topology.chip else []


def measured_seconds(request: Request, devices: list[Any]) -> float:
    """Median seconds per update, with one document per row and the config's number of targets."""
    config, architecture, shapes, _ = request
    program = make_program(config, architecture, shapes, make_mesh(config.mesh, devices))
    begin = jax.jit(lambda: initialise(program.architecture, config.train.seed), out_shardings=program.parameter_layout)
    trainable, frozen = split_parameters(begin(), program.trained)
    state = make_initial_state(program)(trainable)
    batch = jax.device_put(_batch(shapes, architecture.vocab), program.batch_layout)
    seconds = []
    for _ in range(WARM_UP + STEPS):
        started = time.perf_counter()
        state, metrics = program.update(state, frozen, batch)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[WARM_UP:])


def _batch(shapes: Batch, vocab: int) -> Batch:
    """A batch of random tokens: one document per row, targets evenly spaced."""
    draw = np.random.default_rng(0)
    length, targets = shapes.tokens[2], shapes.target_index[2]
    tokens = draw.integers(0, vocab, shapes.tokens, np.int32)
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), shapes.tokens)
    index = np.broadcast_to(np.linspace(0, length - 1, targets).astype(np.int32), shapes.target_index)
    return Batch(
        tokens=tokens,
        segment_ids=np.ones(shapes.tokens, np.int32),
        positions=positions,
        target_index=index,
        target_tokens=draw.integers(0, vocab, shapes.target_index, np.int32),
        target_weights=np.ones(shapes.target_index, jnp.float32),
    )
