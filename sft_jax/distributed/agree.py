"""Agreement between the processes of a run: equal options and data, work done by process 0 alone, shared errors."""

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax

from sft_jax.config import leaf_fields
from sft_jax.distributed.jax_internals import Membership, Store, joined
from sft_jax.errors import BadInput
from sft_jax.storage.location import Location

Result = TypeVar("Result")

_rounds: Counter[str] = Counter()
"""Number of agreements so far under each name; every process makes them in the same order."""


def agreed(
    what: str,
    work: Callable[[], Result],
    fields: Callable[[Result], Mapping[str, Any]],
    advice: str,
    timeout_seconds: float,
) -> Result:
    """Run `work` on every process and return its local result once all processes report equal fields.

    Args:
      what: name of the agreement, used in error messages.
      fields: maps the result to the JSON values to compare.
      advice: how to fix a difference.

    Raises:
      BadInput: on every process, if `work` raised it on any process or if fields differ (lists their values).
    """
    member = joined()
    if member is None:
        return work()

    _rounds[what] += 1
    folder = f"sft_jax/{what}/{_rounds[what]}"

    def post(value: Mapping[str, Any]) -> None:
        member.store.key_value_set(f"{folder}/{member.process}", json.dumps(value))

    try:
        result = work()
    except BadInput as error:
        post({"refused": str(error)})
        raise
    post({"fields": dict(fields(result))})
    answers = [_answer(what, member.store, f"{folder}/{k}", k, timeout_seconds) for k in range(member.processes)]
    for process, answer in enumerate(answers):
        if "refused" in answer:
            raise BadInput(f"process {process}: {answer['refused']}")
    differences = _differences([answer["fields"] for answer in answers])
    if differences:
        listed = "\n  ".join(differences)
        raise BadInput(f"the processes have different {what}:\n  {listed}\n{advice}")
    return result


TIMEOUT_SECONDS = 300.0
"""How long processes wait for one another when no config sets it."""
KeepAlive = Callable[[], None]
"""Long-running work calls this periodically to show that it is still making progress."""
PULSE_SECONDS, ASK_SECONDS = 1.0, 5.0
"""Minimum interval between process 0's progress signals, and the interval at which the others check for one."""


def run_on_first_process(
    what: str, work: Callable[[KeepAlive], Result], timeout_seconds: float = TIMEOUT_SECONDS
) -> Result:
    """Run `work` on process 0 and return its result on every process.

    The other processes wait for as long as the work makes progress.

    Args:
      what: completes the sentence "process 0 ...", as in "prepares the data".
      work: called on process 0 only; returns a JSON value.
      timeout_seconds: the others give up this long after the last sign of progress.

    Raises:
      BadInput: on every process, if `work` raised it; on the others, if process 0 makes no progress.
    """
    member = joined()
    if member is None:
        return work(lambda: None)
    _rounds[what] += 1
    folder = f"sft_jax/first/{what}/{_rounds[what]}"
    if member.process:
        return _receive(what, member, folder, timeout_seconds)
    pulse = _Pulse(member.store, f"{folder}/pulse")
    try:
        result = work(pulse)
    except BadInput as error:
        member.store.key_value_set(f"{folder}/answer", json.dumps({"refused": str(error)}))
        raise
    member.store.key_value_set(f"{folder}/answer", json.dumps({"result": result}))
    return result


def wait_for(is_seen: Callable[[], bool], what: Any, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
    """Block until this process sees what process 0 has written; listings of a shared disk may lag.

    Raises:
      BadInput: still not visible after `timeout_seconds`; names `what`.
    """
    end = time.monotonic() + timeout_seconds
    while not is_seen():
        if time.monotonic() > end:
            raise BadInput(
                f"{what}: visible to process 0, but still not to this process after {timeout_seconds:g} s. All "
                "processes must share one workdir: put it on a shared disk or in a bucket."
            )
        time.sleep(0.2)


class _Pulse:
    """Increments a counter in the store to show that process 0 is making progress."""

    def __init__(self, store: Store, key: str):
        self._store, self._key, self._next, self._number = store, key, 0.0, 0

    def __call__(self) -> None:
        if time.monotonic() >= self._next:
            self._number += 1
            self._store.key_value_set(self._key, str(self._number), allow_overwrite=True)
            self._next = time.monotonic() + PULSE_SECONDS


def _receive(what: str, member: Membership, folder: str, timeout_seconds: float) -> Any:
    last_pulse, end = "", time.monotonic() + timeout_seconds
    while True:
        try:
            milliseconds = int(1000 * min(ASK_SECONDS, timeout_seconds))
            answer = json.loads(member.store.blocking_key_value_get(f"{folder}/answer", milliseconds))
        except jax.errors.JaxRuntimeError as error:
            pulse = dict(member.store.key_value_dir_get(folder)).get(f"{folder}/pulse", "")
            if pulse != last_pulse:
                last_pulse, end = pulse, time.monotonic() + timeout_seconds
            elif time.monotonic() > end:
                raise BadInput(
                    f"process 0 {what} and has made no progress for {timeout_seconds:g} s. Check its log for an "
                    "error, or raise distributed.timeout_seconds."
                ) from error
            continue
        if "refused" in answer:
            raise BadInput(answer["refused"])
        return answer["result"]


OF_EACH_PROCESS = ("distributed.process_id", "distributed.coordinator")
"""Options that may differ between processes: the process id, and the spelling of the coordinator's address."""


def agree_on_options(options: Any) -> None:
    """Check that all processes were started with the same options; call after `start`.

    Raises:
      BadInput: on every process; lists each field that differs, with its values.
    """
    values = {name: value for name, _, value in leaf_fields(options) if name not in OF_EACH_PROCESS}
    advice = "Start every process with the same CONFIG and options."
    agreed("options", lambda: values, lambda values: values, advice, options.distributed.timeout_seconds)


def is_first_process() -> bool:
    """Whether this is process 0, the only one that writes files and prints."""
    return jax.process_index() == 0


SEND_SECONDS = 24 * 3600.0
"""How long the other processes wait while process 0 uploads its output to a bucket."""


def publish_and_wait(out: Location) -> None:
    """Upload what was written to the local copy of `out`; every process blocks until the upload is complete."""
    if out.is_remote:
        agreed("output", out.publish, lambda _: {}, "", SEND_SECONDS)


def _answer(what: str, store: Store, key: str, process: int, timeout_seconds: float) -> dict[str, Any]:
    try:
        return json.loads(store.blocking_key_value_get(key, int(timeout_seconds * 1000)))
    except jax.errors.JaxRuntimeError as error:
        raise BadInput(
            f"process {process} has not reported its {what} within {timeout_seconds:g} s: "
            f"{str(error).splitlines()[0]}. Check its log for an error, or raise distributed.timeout_seconds."
        ) from error


def _differences(answers: list[dict[str, Any]]) -> list[str]:
    """One line per field that differs: `train.steps: 3 on process 0, 4 on process 1`."""
    lines = []
    for name in answers[0]:
        values = [answer.get(name) for answer in answers]
        if any(value != values[0] for value in values):
            first = {json.dumps(value): process for process, value in reversed(list(enumerate(values)))}
            shown = sorted(first.items(), key=lambda pair: pair[1])
            lines.append(f"{name}: " + ", ".join(f"{value} on process {process}" for value, process in shown))
    return lines
