"""Host batches -> sharded device arrays, prepared in a background thread while the device computes."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils

from sft_jax.data.pack.batches import Batch


class Source(Protocol):
    """A source of batches: a pure function of (seed, step) for prepared data; streamed data has state."""

    def batch(self, step: int, row_slice: slice) -> Batch: ...

    def rows_of(self, step: int) -> list[str]: ...

    def state(self, step: int) -> dict[str, Any]: ...


def put_batch(source: Source, step: int, shapes: Batch, shardings: Batch) -> Batch:
    """Batch `step` as global arrays; each process builds only the rows of its devices.

    Args:
      shapes: global shapes [A, b, T] and [A, b, M] (tuples).
      shardings: sharding of each array.
    """
    rows = shapes.tokens[1]
    slices = [
        index[1].indices(rows) for index in shardings.tokens.addressable_devices_indices_map(shapes.tokens).values()
    ]
    low, high = min(start for start, _, _ in slices), max(stop for _, stop, _ in slices)
    local = source.batch(step, slice(low, high))

    def as_global(array, shape, sharding):
        def piece(index):
            start, stop, _ = index[1].indices(rows)
            return array[index[0], start - low : stop - low, index[2]]

        return jax.make_array_from_callback(shape, sharding, piece)

    return Batch(*(as_global(*parts) for parts in zip(local, shapes, shardings, strict=True)))


def feed(source: Source, steps: range, shapes: Batch, shardings: Batch) -> Iterator[tuple[int, Batch, float]]:
    """Yield (step, batch, seconds waited) in order, prefetching one batch; errors of the source are raised here."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="feed") as pool:
        ahead = None
        for step in steps:
            started = time.perf_counter()
            current = ahead or pool.submit(put_batch, source, step, shapes, shardings)
            batch = current.result()
            waited = time.perf_counter() - started
            # Prepare the next batch while the device works on this one.
            ahead = pool.submit(put_batch, source, step + 1, shapes, shardings) if step + 1 in steps else None
            yield step, batch, waited


def gather_source_state(source: Source, step: int) -> dict[str, Any]:
    """The source's state after `step` steps, gathered from all processes; every process must call it."""
    mine = source.state(step)
    if jax.process_count() == 1 or not mine:  # prepared data has no state
        return mine
    content = np.frombuffer(json.dumps(mine).encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.int32(len(content))))
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: len(content)] = content
    states: dict[str, Any] = {}
    for other, size in zip(np.asarray(multihost_utils.process_allgather(padded)), sizes, strict=True):
        states.update(json.loads(other[:size].tobytes()))
    return states
