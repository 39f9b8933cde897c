"""What all processes of a run must agree on, and a refusal of one that becomes the refusal of all."""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax

from sft_jax.config import leaf_fields
from sft_jax.distributed.jax_internals import Store, joined
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
    place = joined()
    if place is None:
        return work()

    _asked[what] += 1
    folder = f"sft_jax/{what}/{_asked[what]}"

    def tell(value: Mapping[str, Any]) -> None:
        place.store.key_value_set(f"{folder}/{place.process}", json.dumps(value))

    try:
        result = work()
    except BadInput as error:
        tell({"refused": str(error)})
        raise
    tell({"fields": dict(fields(result))})
    answers = [_answer(what, place.store, f"{folder}/{k}", k, timeout_seconds) for k in range(place.processes)]
    for process, answer in enumerate(answers):
        if "refused" in answer:
            raise BadInput(f"process {process}: {answer['refused']}")
    differences = _differences([answer["fields"] for answer in answers])
    if differences:
        listed = "\n  ".join(differences)
        raise BadInput(f"the processes have different {what}:\n  {listed}\n{advice}")
    return result


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
