"""What all processes of a run must agree on, and a refusal of one that becomes the refusal of all."""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax

# JAX offers the store through which its processes found each other in no public module. Collectives cannot take its
# place: they need the devices, of which the processes may have different numbers by mistake.
from jax._src import distributed

from sft_jax.errors import BadInput

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
    state = distributed.global_state
    if state.client is None:
        return work()

    _asked[what] += 1
    place = f"sft_jax/{what}/{_asked[what]}"

    def tell(value: Mapping[str, Any]) -> None:
        state.client.key_value_set(f"{place}/{state.process_id}", json.dumps(value))  # type: ignore[union-attr]

    try:
        result = work()
    except BadInput as error:
        tell({"refused": str(error)})
        raise
    tell({"fields": dict(fields(result))})
    answers = [_answer(what, place, process, timeout_seconds) for process in range(state.num_processes or 1)]
    for process, answer in enumerate(answers):
        if "refused" in answer:
            raise BadInput(f"process {process}: {answer['refused']}")
    differences = _differences([answer["fields"] for answer in answers])
    if differences:
        listed = "\n  ".join(differences)
        raise BadInput(f"the processes have different {what}:\n  {listed}\n{advice}")
    return result


def _answer(what: str, place: str, process: int, timeout_seconds: float) -> dict[str, Any]:
    client: Any = distributed.global_state.client
    try:
        return json.loads(client.blocking_key_value_get(f"{place}/{process}", int(timeout_seconds * 1000)))
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
