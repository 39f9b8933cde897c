"""What all processes of a run must agree on, what process 0 decides for all, and refusals, which are those of all."""

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

_asked: Counter[str] = Counter()
"""How often this process has asked for each agreement; all ask in the same order."""


def agreed(
    what: str,
    work: Callable[[], Result],
    fields: Callable[[Result], Mapping[str, Any]],
    advice: str,
    timeout_seconds: float,
) -> Result:
    """The result of `work` on this process, once the others have theirs and the fields are the same.

    Args:
      what: names the agreement.
      fields: of the result, to compare; JSON values.
      advice: what to do about a difference.

    Raises:
      BadInput: on every process, whatever `work` raised on any; or the fields that differ, with the values.
    """
    member = joined()
    if member is None:
        return work()

    _asked[what] += 1
    folder = f"sft_jax/{what}/{_asked[what]}"

    def tell(value: Mapping[str, Any]) -> None:
        member.store.key_value_set(f"{folder}/{member.process}", json.dumps(value))

    try:
        result = work()
    except BadInput as error:
        tell({"refused": str(error)})
        raise
    tell({"fields": dict(fields(result))})
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
"""How long processes wait for one another where no config says it."""
GetsOn = Callable[[], None]
"""To be called now and then by work that takes long, to say that it gets on."""
PULSE_SECONDS, ASK_SECONDS = 1.0, 5.0
"""At most so often process 0 says that it gets on; so often, and at the answer, the others look."""


def decided_by_first(what: str, work: Callable[[GetsOn], Result], timeout_seconds: float = TIMEOUT_SECONDS) -> Result:
    """What `work` gives on process 0, told to the others, which do no such work.

    They wait as long as it gets on, however long that takes.

    Args:
      what: names the decision, as in "process 0 prepares the data".
      work: called on process 0 alone; gives a JSON value.
      timeout_seconds: so long after the work last got on the others give up.

    Raises:
      BadInput: on every process, what `work` raised; on the others, that process 0 does not get on.
    """
    member = joined()
    if member is None:
        return work(lambda: None)
    _asked[what] += 1
    folder = f"sft_jax/first/{what}/{_asked[what]}"
    if member.process:
        return _told(what, member, folder, timeout_seconds)
    pulse = _Pulse(member.store, f"{folder}/pulse")
    try:
        result = work(pulse)
    except BadInput as error:
        member.store.key_value_set(f"{folder}/answer", json.dumps({"refused": str(error)}))
        raise
    member.store.key_value_set(f"{folder}/answer", json.dumps({"result": result}))
    return result


def wait_for(is_seen: Callable[[], bool], what: Any, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
    """Returns once this process sees what process 0 has written: the listing of a shared disk may lag.

    Raises:
      BadInput: it does not; names `what`.
    """
    end = time.monotonic() + timeout_seconds
    while not is_seen():
        if time.monotonic() > end:
            raise BadInput(
                f"{what}: process 0 sees it, and this process does not after {timeout_seconds:g} s. All processes "
                "must see the same workdir: name one on a shared disk or in a bucket."
            )
        time.sleep(0.2)


class _Pulse:
    """Says under a key that process 0 gets on."""

    def __init__(self, store: Store, key: str):
        self._store, self._key, self._next, self._number = store, key, 0.0, 0

    def __call__(self) -> None:
        if time.monotonic() >= self._next:
            self._number += 1
            self._store.key_value_set(self._key, str(self._number), allow_overwrite=True)
            self._next = time.monotonic() + PULSE_SECONDS


def _told(what: str, member: Membership, folder: str, timeout_seconds: float) -> Any:
    heard, end = "", time.monotonic() + timeout_seconds
    while True:
        try:
            milliseconds = int(1000 * min(ASK_SECONDS, timeout_seconds))
            answer = json.loads(member.store.blocking_key_value_get(f"{folder}/answer", milliseconds))
        except jax.errors.JaxRuntimeError as error:
            told = dict(member.store.key_value_dir_get(folder)).get(f"{folder}/pulse", "")
            if told != heard:
                heard, end = told, time.monotonic() + timeout_seconds
            elif time.monotonic() > end:
                raise BadInput(
                    f"process 0 {what} and has not got on for {timeout_seconds:g} s. Look for its error, or give it "
                    "longer with distributed.timeout_seconds."
                ) from error
            continue
        if "refused" in answer:
            raise BadInput(answer["refused"])
        return answer["result"]


OF_EACH_PROCESS = ("distributed.process_id", "distributed.coordinator")
"""Options that may differ between processes: who they are, and how they spell the address where they have met."""


def agree_on_options(options: Any) -> None:
    """Refuse on every process what the processes were not all started with; call it after `start`.

    Raises:
      BadInput: each field that differs, with its values.
    """
    values = {name: value for name, _, value in leaf_fields(options) if name not in OF_EACH_PROCESS}
    advice = "Start every process with the same CONFIG and options."
    agreed("options", lambda: values, lambda values: values, advice, options.distributed.timeout_seconds)


def is_first_process() -> bool:
    """Whether this process is the one that writes files and prints."""
    return jax.process_index() == 0


SEND_SECONDS = 24 * 3600.0
"""So long the other processes wait while process 0 sends what it has written to a bucket."""


def agree_on_written(out: Location) -> None:
    """Publish what was written in the copy of `out`; no process goes on, and ends, before all is sent."""
    if out.is_remote:
        agreed("output", out.publish, lambda _: {}, "", SEND_SECONDS)


def _answer(what: str, store: Store, key: str, process: int, timeout_seconds: float) -> dict[str, Any]:
    try:
        return json.loads(store.blocking_key_value_get(key, int(timeout_seconds * 1000)))
    except jax.errors.JaxRuntimeError as error:
        raise BadInput(
            f"process {process} has not told its {what} within {timeout_seconds:g} s: {str(error).splitlines()[0]}. "
            "Look for its error, or give it longer with distributed.timeout_seconds."
        ) from error


def _differences(answers: list[dict[str, Any]]) -> list[str]:
    """`train.steps: 3 on process 0, 4 on process 1`, for each field that is not the same everywhere."""
    lines = []
    for name in answers[0]:
        values = [answer.get(name) for answer in answers]
        if any(value != values[0] for value in values):
            first = {json.dumps(value): process for process, value in reversed(list(enumerate(values)))}
            shown = sorted(first.items(), key=lambda pair: pair[1])
            lines.append(f"{name}: " + ", ".join(f"{value} on process {process}" for value, process in shown))
    return lines
