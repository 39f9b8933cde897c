"""What a record asks of a model: read as in training, up to where its first trained turn begins."""

from dataclasses import dataclass
from typing import Any

from sft_jax.config import Data, Format
from sft_jax.data.forms.beside import check_no_system, system_turn, tools_of
from sft_jax.data.forms.demonstration import Conversation, PromptCompletion
from sft_jax.data.forms.detect import KNOWN_KEYS, detect_format
from sft_jax.data.forms.formats import demonstrated, forms_of, record_id, told_apart
from sft_jax.data.forms.mapping import parse_fields
from sft_jax.data.forms.messages import check_messages, says_nothing, turn_weights
from sft_jax.data.forms.template_kwargs import check_template_kwargs
from sft_jax.data.read.rows import Record
from sft_jax.errors import BadInput, BadRow


@dataclass(frozen=True)
class Prompt:
    """What stands before an assistant's turn, and that turn where a record shows it."""

    messages: list[dict[str, Any]]
    """[] for raw text."""
    text: str = ""
    """Raw text; "" for messages."""
    tools: list[dict[str, Any]] | None = None
    template_kwargs: dict[str, Any] | None = None
    shown: dict[str, Any] | None = None
    """The demonstrated assistant message; None where the record shows none."""
    id: str = ""


def prompts(record: Record, data: Data) -> list[Prompt]:
    """The prompt of every demonstration in a record, and of a record that is a prompt alone; none where nothing is
    asked (text, tokens, pairs, what `data.function` leaves out).

    A prompt alone is a conversation that ends with another's turn than the assistant's, or `prompt` in a record of no
    form with an answer: public data carry `prompt` beside a whole demonstration, and some repeat the answer in it, so
    any such form goes first.

    Raises:
      BadRow: as `formats.read`; a conversation without an assistant's turn behind somebody else's.
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
        for one in told_apart(demonstrated(row, form)):
            if isinstance(one, PromptCompletion):
                shown = {"role": "assistant", "content": one.completion}
                found.append(Prompt([], one.prompt, shown=shown, id=one.id))
            elif isinstance(one, Conversation):
                found.append(_of_conversation(row.where, one, data))
    return found


def _alone(row: Record, form: Format | None, declared: str) -> Prompt | None:
    """A record that asks and shows no answer; None where it is no such record."""
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
    # Where nothing trains, somebody left the answer open.
    turn = next((i for i in behind if weights[i]), next(iter(behind), None))
    if turn is None:
        raise BadRow(f"{where}: no assistant turn behind a user's, so there is nothing to compare with")
    shown = None if says_nothing(messages[turn]) else messages[turn]
    return Prompt(messages[:turn], "", one.tools, one.template_kwargs, shown, one.id)
