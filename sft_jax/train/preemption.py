"""SIGTERM and Ctrl-C: finish the step, save, exit 42.

A single process installs a signal handler. With `jax.distributed`, a Python handler would replace JAX's own, so every
process polls JAX's preemption sync point, which makes all of them stop at the same tick.
"""

import contextlib
import signal
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils


@contextlib.contextmanager
def watch_for_preemption(notice: Callable[[], None] = lambda: None) -> Iterator[Callable[[], bool]]:
    """While open, SIGTERM does not end the process, and in a single process neither does the first SIGINT.

    Yields a poll that every process must call once per step and once per evaluation batch; it returns True from the
    signal on. The sync point is true at a single tick, which may fall into an evaluation, so the answer is remembered.

    Args:
      notice: called at the first signal, in a single process.
    """
    ticks = 0
    received = False

    def handler(signum, frame):
        nonlocal received
        if received and signum == signal.SIGINT:
            raise KeyboardInterrupt
        received = True
        notice()

    single = jax.process_count() == 1
    signals = [signal.SIGTERM] if single else []
    if single and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # a shell keeps Ctrl-C from its background jobs
        signals.append(signal.SIGINT)
    before = {one: signal.signal(one, handler) for one in signals}

    def poll() -> bool:
        nonlocal ticks, received
        ticks += 1
        if jax.process_count() > 1:
            received |= multihost_utils.reached_preemption_sync_point(ticks)
        return received

    try:
        yield poll
    finally:
        for one, handled in before.items():
            signal.signal(one, handled or signal.SIG_DFL)
