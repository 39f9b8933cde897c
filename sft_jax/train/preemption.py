"""SIGTERM: finish the step, save, exit 42.

A single process has its own signal handler. With `jax.distributed` a Python handler would take the signal from JAX's
own, so there every process asks JAX's synchronisation point, which agrees on one tick for all of them.
"""

import signal
from collections.abc import Callable

import jax
from jax.experimental import multihost_utils


def watch_for_preemption() -> Callable[[], bool]:
    """A poll to call once a step and once an evaluation batch, by every process alike: True from then on.

    The synchronisation point is true at one tick only, which may fall into an evaluation: the answer is remembered.
    """
    ticks = 0
    received = False

    def handler(signum, frame):
        nonlocal received
        received = True

    if jax.process_count() == 1:
        signal.signal(signal.SIGTERM, handler)

    def poll() -> bool:
        nonlocal ticks, received
        ticks += 1
        if jax.process_count() > 1:
            received |= multihost_utils.reached_preemption_sync_point(ticks)
        return received

    return poll
