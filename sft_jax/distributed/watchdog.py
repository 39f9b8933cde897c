"""A thread that ends this process when another one of the run is gone, so that all can be started again.

Otherwise the survivors wait in a collective until the distributed runtime aborts them (SIGABRT, minutes later), which
no restart policy can tell from a crash. Every process writes a beat into the store through which the processes found
each other; process 0 reads them and gives the verdict, which the others read: the traffic grows with the number of
processes, not with its square. A process that leaves says so, with its status, and the others leave with the same.
"""

import contextlib
import dataclasses
import json
import logging
import threading
import time
from collections.abc import Callable

import jax

from sft_jax.distributed.jax_internals import Store
from sft_jax.errors import EXIT_PREEMPTED

_log = logging.getLogger(__name__)

BEATS = "sft_jax/beats/"
VERDICT = "sft_jax/verdict/"
BEATS_PER_SILENCE = 6
INTERVAL_SECONDS = 1.0
ROUNDS_TO_READ = 3
"""So many intervals a verdict stands before process 0 leaves: one to be read in, one in which a process may still end
by itself, with a message of its own, and one to spare."""
ROUNDS_TO_FIND = 4
"""Intervals between the end of a silence and the verdict in each process: its beat, the one that finds it, the one that
is read, and one to spare."""
LAST_WORDS_SECONDS = 5.0
PROCESSES_PER_SECOND = 250
"""So many beats a second process 0 reads at most: with more processes the interval is longer."""


Leave = Callable[[int, str], None]
"""(exit status, why) -> ends this process, from a thread that is not the main one."""


def stay(status: int, why: str) -> None:
    """The process of somebody else's program: it is told in the log, and the runtime's own time limits end it."""
    _log.critical("this process should end with status %d: %s", status, why)


@dataclasses.dataclass
class Watchdog:
    """What the threads of one process share; `start_watchdog` makes it."""

    client: Store
    process: int
    processes: int
    coordinator: str
    silence_seconds: float
    """The longest that a process may be silent."""
    over: threading.Event = dataclasses.field(default_factory=threading.Event)
    """This process is leaving by itself: whoever goes now is missed by nobody."""
    heard: float = dataclasses.field(default_factory=time.monotonic)
    """When the store last answered this process."""
    last_words: Callable[[], None] = lambda: None
    """Called before this process is ended, at most `LAST_WORDS_SECONDS` long."""
    leave: Leave = stay
    leaving: threading.Event = dataclasses.field(default_factory=threading.Event)
    """The verdict is found: it is being told, and then this process is ended."""
    awaited_for: BaseException | None = None
    """The error for which `await_verdict` has waited."""

    @property
    def interval_seconds(self) -> float:
        crowded = max(INTERVAL_SECONDS, self.processes / PROCESSES_PER_SECOND)
        return min(crowded, self.silence_seconds / BEATS_PER_SILENCE)


def start_watchdog(
    client: Store, process: int, processes: int, coordinator: str, silence_seconds: float, leave: Leave = stay
) -> Watchdog:
    """Watch the other processes from now on; see `Watchdog` for the arguments.

    The process ends with `EXIT_PREEMPTED` (start me again) where another one, or the coordinator, is silent for longer
    than `silence_seconds`, and with another's status where that one has failed.
    """
    watch = Watchdog(client, process, processes, coordinator, silence_seconds, leave=leave)
    threading.Thread(target=_beat, args=(watch,), daemon=True, name="beats").start()
    threading.Thread(target=_listen, args=(watch,), daemon=True, name="silence of the coordinator").start()
    return watch


def lost_coordinator(watch: Watchdog, how: str) -> None:
    """End this process: the coordinator is gone."""
    _leave(
        watch,
        EXIT_PREEMPTED,
        f"the coordinator {watch.coordinator} (process 0) {how}. Its console and log say why. Start all processes "
        "again: they continue from the newest checkpoint.",
    )


def farewell(watch: Watchdog, status: int, why: str) -> None:
    """Tell the others that this process leaves with `status` (0: it is done), before it does."""
    watch.over.set()

    def tell() -> None:
        # Where nobody answers, the others find out by the silence.
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            if status == 0:
                _set(watch, f"{BEATS}{watch.process}", "done")
            elif watch.process == 0:
                _pronounce(watch, status, f"process 0 has left: {why}")
            else:
                _set(watch, f"{BEATS}{watch.process}", json.dumps({"status": status, "why": why}))

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    teller.join(2 * ROUNDS_TO_READ * watch.interval_seconds)


def await_verdict(watch: Watchdog, error: BaseException) -> None:
    """Give the watchdog the time to find that another process is gone; returns when none is, at once the second time.

    For an error of the runtime, which may come of that: a collective whose peer has died raises in those that were in
    it. Any other error returns at once.
    """
    if not isinstance(error, jax.errors.JaxRuntimeError) or watch.awaited_for is error:
        return
    watch.awaited_for = error
    if watch.leaving.wait(watch.silence_seconds + ROUNDS_TO_FIND * watch.interval_seconds):
        time.sleep((ROUNDS_TO_READ + ROUNDS_TO_FIND) * watch.interval_seconds + LAST_WORDS_SECONDS)


def _beat(watch: Watchdog) -> None:
    """Write beats, and on process 0 read everybody's; on the others read the verdict."""
    number, seen = 0, {process: ("", time.monotonic()) for process in range(watch.processes)}
    while not watch.over.is_set():
        number += 1
        try:
            _set(watch, f"{BEATS}{watch.process}", str(number))
            if watch.process == 0:
                beats = {int(key.rsplit("/", 1)[1]): value for key, value in watch.client.key_value_dir_get(BEATS)}
                _find_silent(watch, beats, seen)
            else:
                for _, verdict in watch.client.key_value_dir_get(VERDICT):
                    _leave(watch, **json.loads(verdict))
            watch.heard = time.monotonic()
        except jax.errors.JaxRuntimeError:
            pass  # `_listen` counts for how long
        watch.over.wait(watch.interval_seconds)


def _find_silent(watch: Watchdog, beats: dict[int, str], seen: dict[int, tuple[str, float]]) -> None:
    """Pronounce a verdict where a process has failed or is silent; `seen` holds (beat, since when) of each."""
    now = time.monotonic()
    for process, beat in beats.items():
        if beat.startswith("{"):
            left = json.loads(beat)
            why = f"process {process} has left: {left['why']}"
            _pronounce(watch, left["status"], why)
            _leave(watch, left["status"], why)
        if seen[process][0] != beat:
            seen[process] = beat, now
    silent = [
        process
        for process, (beat, since) in seen.items()
        if beat != "done" and now - since > watch.silence_seconds and process != watch.process
    ]
    if silent:
        named = ", ".join(map(str, sorted(silent)))
        why = (
            f"process {named} has been silent for more than {watch.silence_seconds:g} s: dead, stopped or cut off. "
            "Start all processes again: they continue from the newest checkpoint."
        )
        _pronounce(watch, EXIT_PREEMPTED, why)
        _leave(watch, EXIT_PREEMPTED, why)


def _pronounce(watch: Watchdog, status: int, why: str) -> None:
    """Write the verdict, and stay until the others have had the time to read it: process 0 serves the store."""
    watch.leaving.set()
    _set(watch, f"{VERDICT}0", json.dumps({"status": status, "why": why}))
    time.sleep(ROUNDS_TO_READ * watch.interval_seconds)


def _set(watch: Watchdog, key: str, value: str) -> None:
    watch.client.key_value_set(key, value, allow_overwrite=True)


def _listen(watch: Watchdog) -> None:
    """Calls to the store may block for minutes where the network is cut, so another thread counts the silence."""
    while not watch.over.wait(watch.interval_seconds):
        if time.monotonic() - watch.heard > watch.silence_seconds:
            lost_coordinator(watch, f"has not answered for {watch.silence_seconds:g} s")


def _leave(watch: Watchdog, status: int, why: str) -> None:
    watch.leaving.set()
    if watch.over.wait(watch.interval_seconds):
        return  # this process ends by itself
    text = f"process {watch.process} of {watch.processes} leaves: {why}"

    def speak() -> None:  # to a file system that may hang too
        _log.info("%s", text)
        watch.last_words()

    speaker = threading.Thread(target=speak, daemon=True)
    speaker.start()
    speaker.join(LAST_WORDS_SECONDS)
    watch.leave(status, text)
