"""SIGTERM: finish the step, save, exit 42.

A single process installs a signal handler. With `jax.distributed`, a Python handler would replace JAX's own, so every
process polls JAX's preemption sync point, which makes all of them stop at the same tick.
"""

import contextlib
import signal
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils


@contextlib.contextmanager
def watch_for_preemption() -> Iterator[Callable[[], bool]]:
    """While open, SIGTERM does not end the process. Yields a poll that every process must call once per step and once
    per evaluation batch; it returns True from the notice on.

    The sync point is true at a single tick, which may fall into an evaluation, so the answer is remembered.
    """
    ticks = 0
    received = False

    def handler(signum, frame):
        nonlocal received
        received = True

    single = jax.process_count() == 1
    before = signal.signal(signal.SIGTERM, handler) if single else None

    def poll() -> bool:
        nonlocal ticks, received
        ticks += 1
        if jax.process_count() > 1:
            received |= multihost_utils.reached_preemption_sync_point(ticks)
        return received

    try:
        yield poll
    finally:
        if single:
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
