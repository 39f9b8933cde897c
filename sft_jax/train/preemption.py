"""SIGTERM: finish the step, save, exit 42.

A single process has its own signal handler. With `jax.distributed` a Python handler would take the signal from JAX's
own, so there every process asks JAX's synchronisation point, which agrees on one tick for all of them.
"""

import contextlib
import signal
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils


@contextlib.contextmanager
def watch_for_preemption() -> Iterator[Callable[[], bool]]:
    """While it is open, SIGTERM ends no process. Gives a poll that every process alike calls once a step and once an
    evaluation batch: True from the notice on.

    The synchronisation point is true at one tick only, which may fall into an evaluation: the answer is remembered.
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
