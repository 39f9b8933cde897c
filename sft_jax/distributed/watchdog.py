"""A watchdog thread that exits this process when another process of the run is lost, so that all can be restarted.

Without it, the survivors hang in a collective until the distributed runtime aborts them (SIGABRT, minutes later), which
a restart policy cannot tell from a crash. Every process writes heartbeats to the coordination service's key-value
store. Process 0 reads them and publishes a verdict that the others read, so traffic grows linearly with the number of
processes. A process that exits announces its exit status, and the others exit with the same status.
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
READ_INTERVALS = 3
"""Intervals between publishing a verdict and the exit of process 0: one for the others to read it, one for a process
that is already exiting with its own message, and one spare."""
FIND_INTERVALS = 4
"""Intervals between the end of the allowed silence and the verdict in each process: one for the heartbeat, one for
process 0 to notice, one for the others to read the verdict, and one spare."""
BEFORE_EXIT_SECONDS = 5.0
PROCESSES_PER_SECOND = 250
"""The most heartbeats per second that process 0 reads; with more processes the interval grows."""


ExitProcess = Callable[[int, str], None]
"""(exit status, reason) -> ends this process; called from a background thread."""


def log_exit(status: int, why: str) -> None:
    """The default, for use as a library: only log, and let the runtime's own timeouts end the process."""
    _log.critical("this process should end with status %d: %s", status, why)


@dataclasses.dataclass
class Watchdog:
    """State shared by the watchdog's threads; created by `start_watchdog`."""

    client: Store
    process: int
    processes: int
    coordinator: str
    silence_seconds: float
    """How long a process may go without a heartbeat."""
    exiting: threading.Event = dataclasses.field(default_factory=threading.Event)
    """Set once this process is exiting on its own; later losses are ignored."""
    last_contact: float = dataclasses.field(default_factory=time.monotonic)
    """Time of the last answer from the store."""
    before_exit: Callable[[], None] = lambda: None
    """Called before this process is ended; may take up to `BEFORE_EXIT_SECONDS`."""
    exit_process: ExitProcess = log_exit
    verdict_found: threading.Event = dataclasses.field(default_factory=threading.Event)
    """Set once there is a verdict; the process is ended shortly after."""
    waited_for: BaseException | None = None
    """The error that `wait_for_watchdog` has already waited for."""

    @property
    def interval_seconds(self) -> float:
        crowded = max(INTERVAL_SECONDS, self.processes / PROCESSES_PER_SECOND)
        return min(crowded, self.silence_seconds / BEATS_PER_SILENCE)


def start_watchdog(
    client: Store,
    process: int,
    processes: int,
    coordinator: str,
    silence_seconds: float,
    exit_process: ExitProcess = log_exit,
) -> Watchdog:
    """Start watching the other processes; see `Watchdog` for the arguments.

    The process exits with `EXIT_PREEMPTED` (restart me) if another process or the coordinator is silent for longer than
    `silence_seconds`, and with the status of the process that failed if one announced a failure.
    """
    watch = Watchdog(client, process, processes, coordinator, silence_seconds, exit_process=exit_process)
    threading.Thread(target=_beat, args=(watch,), daemon=True, name="beats").start()
    threading.Thread(target=_watch_coordinator, args=(watch,), daemon=True, name="silence of the coordinator").start()
    return watch


def on_coordinator_lost(watch: Watchdog, how: str) -> None:
    """End this process because the coordinator is lost."""
    _exit(
        watch,
        EXIT_PREEMPTED,
        f"the coordinator {watch.coordinator} (process 0) {how}. See its console and log for the cause. Restart all "
        "processes: they resume from the newest checkpoint.",
    )


def announce_exit(watch: Watchdog, status: int, why: str) -> None:
    """Tell the other processes that this one is about to exit with `status` (0: done)."""
    watch.exiting.set()

    def announce() -> None:
        # If the store does not answer, the others notice the missing heartbeats.
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            if status == 0:
                _set(watch, f"{BEATS}{watch.process}", "done")
            elif watch.process == 0:
                _publish_verdict(watch, status, f"process 0 has exited: {why}")
            else:
                _set(watch, f"{BEATS}{watch.process}", json.dumps({"status": status, "why": why}))

    announcer = threading.Thread(target=announce, daemon=True)
    announcer.start()
    announcer.join(2 * READ_INTERVALS * watch.interval_seconds)


def wait_for_watchdog(watch: Watchdog, error: BaseException) -> None:
    """Block long enough for the watchdog to detect a lost process; return if none is lost.

    A JAX runtime error may be the consequence of one: a collective raises when a peer dies. Returns immediately for any
    other error, and the second time for the same error.
    """
    if not isinstance(error, jax.errors.JaxRuntimeError) or watch.waited_for is error:
        return
    watch.waited_for = error
    if watch.verdict_found.wait(watch.silence_seconds + FIND_INTERVALS * watch.interval_seconds):
        time.sleep((READ_INTERVALS + FIND_INTERVALS) * watch.interval_seconds + BEFORE_EXIT_SECONDS)


def _beat(watch: Watchdog) -> None:
    """Write heartbeats. Process 0 also reads everyone's heartbeats; the others read its verdict."""
    number, seen = 0, {process: ("", time.monotonic()) for process in range(watch.processes)}
    while not watch.exiting.is_set():
        number += 1
        try:
            _set(watch, f"{BEATS}{watch.process}", str(number))
            if watch.process == 0:
                beats = {int(key.rsplit("/", 1)[1]): value for key, value in watch.client.key_value_dir_get(BEATS)}
                _check_beats(watch, beats, seen)
            else:
                for _, verdict in watch.client.key_value_dir_get(VERDICT):
                    _exit(watch, **json.loads(verdict))
            watch.last_contact = time.monotonic()
        except jax.errors.JaxRuntimeError:
            pass  # `_watch_coordinator` measures how long this lasts
        watch.exiting.wait(watch.interval_seconds)


def _check_beats(watch: Watchdog, beats: dict[int, str], seen: dict[int, tuple[str, float]]) -> None:
    """Publish a verdict if a process has failed or is silent; `seen` maps each process to (heartbeat, time seen)."""
    now = time.monotonic()
    for process, beat in beats.items():
        if beat.startswith("{"):
            announced = json.loads(beat)
            why = f"process {process} has exited: {announced['why']}"
            _publish_verdict(watch, announced["status"], why)
            _exit(watch, announced["status"], why)
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
            f"process {named} has been silent for more than {watch.silence_seconds:g} s: dead, stopped or "
            "disconnected. Restart all processes: they resume from the newest checkpoint."
        )
        _publish_verdict(watch, EXIT_PREEMPTED, why)
        _exit(watch, EXIT_PREEMPTED, why)


def _publish_verdict(watch: Watchdog, status: int, why: str) -> None:
    """Write the verdict and wait for the others to read it: process 0 serves the store."""
    watch.verdict_found.set()
    _set(watch, f"{VERDICT}0", json.dumps({"status": status, "why": why}))
    time.sleep(READ_INTERVALS * watch.interval_seconds)


def _set(watch: Watchdog, key: str, value: str) -> None:
    watch.client.key_value_set(key, value, allow_overwrite=True)


def _watch_coordinator(watch: Watchdog) -> None:
    """Measure the coordinator's silence in a separate thread: store calls may block for minutes on a broken network."""
    while not watch.exiting.wait(watch.interval_seconds):
        if time.monotonic() - watch.last_contact > watch.silence_seconds:
            on_coordinator_lost(watch, f"has not answered for {watch.silence_seconds:g} s")


def _exit(watch: Watchdog, status: int, why: str) -> None:
    watch.verdict_found.set()
    if watch.exiting.wait(watch.interval_seconds):
        return  # this process is already exiting on its own
    text = f"process {watch.process} of {watch.processes} exits: {why}"

    def run() -> None:  # writes to a file system that may hang too
        _log.info("%s", text)
        watch.before_exit()

    runner = threading.Thread(target=run, daemon=True)
    runner.start()
    runner.join(BEFORE_EXIT_SECONDS)
    watch.exit_process(status, text)
