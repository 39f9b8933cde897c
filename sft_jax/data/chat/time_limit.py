"""A limit on how long other people's code may run in this thread.

An alarm signal would reach the main thread alone, and setting one takes as long as a short render. Here a watching
thread raises an exception in the one that is late; within the limit it costs two dictionary operations. The exception
comes between two operations of the interpreter: a single long one (`'a' * 10**12`) is not interrupted.
"""

import ctypes
import threading
import time
from types import TracebackType


class Overdue(Exception):
    """The time is up."""


_ends: dict[int, float] = {}
"""Thread -> when its time is up. Who takes an entry out decides: the thread itself is done, the watcher is not waiting
any longer; both do it in one operation of the interpreter, so only one of them can."""
_POLL_SECONDS = 0.1


class TimeLimit:
    """`with TimeLimit(seconds):` raises `Overdue` within when the time is up. It does not nest."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def __enter__(self) -> None:
        _watch()
        _ends[threading.get_ident()] = time.monotonic() + self.seconds

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if _ends.pop(threading.get_ident(), None) is None and kind is not Overdue:
            while True:  # the watcher was first: its exception is on the way, and must not come anywhere else
                time.sleep(0.001)


def _watch() -> None:
    """Start the watching thread, once a process."""
    global _watcher
    if _watcher is None or not _watcher.is_alive():
        _watcher = threading.Thread(target=_interrupt_the_late, name="time limits", daemon=True)
        _watcher.start()


_watcher: threading.Thread | None = None


def _interrupt_the_late() -> None:
    while True:
        time.sleep(_POLL_SECONDS)
        now = time.monotonic()
        for thread, end in list(_ends.items()):
            if now > end and _ends.pop(thread, None) is not None:
                _interrupt(thread)


def _interrupt(thread: int) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(Overdue))
