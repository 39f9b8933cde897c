"""SIGTERM and Ctrl-C: finish the step, save, exit 42.

A single process has its own signal handlers. With `jax.distributed` a Python handler would take the signal from JAX's
own, so there every process asks JAX's synchronisation point, which agrees on one tick for all of them.
"""

import contextlib
import signal
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils


@contextlib.contextmanager
def watch_for_preemption(notice: Callable[[], None] = lambda: None) -> Iterator[Callable[[], bool]]:
    """While it is open, SIGTERM ends no process, and the first SIGINT does not end a single one; the second does.

    Gives a poll that every process alike calls once per step and once per evaluation batch: True from the signal on.
    The synchronisation point is true at one tick only, which may fall into an evaluation: the answer is remembered.

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
