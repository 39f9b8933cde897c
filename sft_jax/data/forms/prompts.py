"""The prompts in a record, parsed as in training, up to the first trained turn."""

from dataclasses import dataclass
from typing import Any

from sft_jax.config import Data, Format
from sft_jax.data.forms.beside import check_no_system, system_turn, tools_of
from sft_jax.data.forms.demonstration import Conversation, PromptCompletion
from sft_jax.data.forms.detect import KNOWN_KEYS, detect_format
from sft_jax.data.forms.formats import demonstrated, forms_of, record_id, with_unique_ids
from sft_jax.data.forms.mapping import parse_fields
from sft_jax.data.forms.messages import check_messages, says_nothing, turn_weights
from sft_jax.data.forms.template_kwargs import check_template_kwargs
from sft_jax.data.read.rows import Record
from sft_jax.errors import BadInput, BadRow


@dataclass(frozen=True)
class Prompt:
    """The input before an assistant turn, and the demonstrated turn if the record has one."""

    messages: list[dict[str, Any]]
    """[] for raw text."""
    text: str = ""
    """Raw text; "" for messages."""
    tools: list[dict[str, Any]] | None = None
    template_kwargs: dict[str, Any] | None = None
    shown: dict[str, Any] | None = None
    """The demonstrated assistant message; None if the record has none."""
    id: str = ""


def prompts(record: Record, data: Data) -> list[Prompt]:
    """The prompt of every demonstration in a record, or of a record that is only a prompt; none for records that ask
    for nothing (text, tokens, pairs, rows that `data.function` leaves out).

    A prompt-only record is a conversation that doesn't end with an assistant turn, or has `prompt` and no form with an
    answer. Such forms take precedence: public datasets have `prompt` next to a whole demonstration, and in some it
    contains the answer.

    Raises:
      BadRow: as `formats.read`; a conversation without an assistant turn after another turn.
      BadInput: an empty prompt.
    """
    found: list[Prompt] = []
    for row, form in forms_of(record, data):
        alone = _alone(row, form, data.format)
        if alone is not None:
            found.append(alone)
            continue
        if form is None:
            form = detect_format(row, data.format, tuple(parse_fields(data.fields, KNOWN_KEYS)))  # says what is missing
        for one in with_unique_ids(demonstrated(row, form)):
            if isinstance(one, PromptCompletion):
                shown = {"role": "assistant", "content": one.completion}
                found.append(Prompt([], one.prompt, shown=shown, id=one.id))
            elif isinstance(one, Conversation):
                found.append(_of_conversation(row.where, one, data))
    return found


def _alone(row: Record, form: Format | None, declared: str) -> Prompt | None:
    """The prompt of a prompt-only record; None for other records."""
    value = row.value
    if form not in (None, "text", "tokens") or form == declared:
        return None
    key = "messages" if form is None and "messages" in value else "prompt"
    given = value.get(key)
    if key in row.problems:
        raise BadRow(f"{row.where}: {row.problems[key]}")
    if isinstance(given, str) and key == "prompt":
        if not given:
            raise BadInput(f"{row.where}: the prompt is empty")
        check_no_system(row, given)
        return Prompt([], given, id=record_id(row))
    if not isinstance(given, str | list):
        return None
    messages = check_messages(row.where, given, key)
    if messages[-1]["role"] == "assistant":
        return None
    kwargs = check_template_kwargs(row.where, value.get("chat_template_kwargs"))
    return Prompt([*system_turn(row, messages), *messages], "", tools_of(row), kwargs, id=record_id(row))


def _of_conversation(where: str, one: Conversation, data: Data) -> Prompt:
    messages = one.messages
    if messages[-1]["role"] != "assistant" and one.form in ("messages", "sharegpt"):
        return Prompt(messages, "", one.tools, one.template_kwargs, id=one.id)
    weights = turn_weights(where, messages, one.first, "assistant" if data.train_on == "all" else data.train_on)
    behind = [i for i in weights if i >= max(1, one.first)]
    # If nothing trains, the answer may have been left empty.
    turn = next((i for i in behind if weights[i]), next(iter(behind), None))
    if turn is None:
        raise BadRow(f"{where}: no assistant turn after a user turn, so there is nothing to compare with")
    shown = None if says_nothing(messages[turn]) else messages[turn]
    return Prompt(messages[:turn], "", one.tools, one.template_kwargs, shown, one.id)
