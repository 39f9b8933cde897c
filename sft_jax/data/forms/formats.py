"""A record of any known form becomes demonstrations: a conversation, prompt and completion, a text, or tokens."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from sft_jax.config import Data, Format
from sft_jax.data.forms.mapping import apply_function, load_function, parse_fields, rename
from sft_jax.data.forms.messages import check_messages, check_tools, message_weight, says_nothing
from sft_jax.data.read.rows import Record
from sft_jax.data.read.strict_json import kind
from sft_jax.errors import BadRow

KEYS: dict[Format, tuple[tuple[str, ...], ...]] = {
    "messages": (("messages",),),
    "sharegpt": (("conversations", "conversation"),),
    "tokens": (("input_ids", "tokens"), ("labels", "weights", "loss_mask", "assistant_masks")),
    "preference": (("chosen",), ("rejected",)),
    "pair": (("chosen",), ("rejected",)),
    "prompt_completion": (("prompt",), ("completion",)),
    "alpaca": (("instruction",), ("output", "response")),
    "seed_task": (("instruction",), ("instances",)),
    "question_answer": (("question",), ("answer",)),
    "text": (("text",),),
}
"""What a record of each form must hold (of names that mean the same, one), in the order in which `auto` tries them."""
_OPTIONAL = ("id", "tools", "system", "input", "context", "history", "attention_mask")
KNOWN_KEYS = (*dict.fromkeys(key for need in KEYS.values() for names in need for key in names), *_OPTIONAL)
"""Every key that some form reads."""


@dataclass(frozen=True)
class Conversation:
    """Messages for a chat template; the assistant's train."""

    messages: list[dict[str, Any]]
    """Checked by `check_messages`."""
    tools: list[dict[str, Any]] | None = None
    first: int = 0
    """Assistant messages before this index are part of the prompt."""
    id: str = ""
    form: Format = "messages"


@dataclass(frozen=True)
class PromptCompletion:
    """Two strings, no chat template between them; the second trains."""

    prompt: str
    completion: str
    id: str = ""
    form: Format = "prompt_completion"


@dataclass(frozen=True)
class Text:
    """A string that trains wholly."""

    text: str
    id: str = ""
    form: Format = "text"


@dataclass(frozen=True)
class Tokens:
    """A document that somebody else tokenised."""

    tokens: np.ndarray
    """int32 [length]."""
    weights: np.ndarray
    """float32 [length]; the weight of each token as a target."""
    id: str = ""
    form: Format = "tokens"


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt, of which the first is preferred."""

    chosen: Conversation | PromptCompletion | Text
    rejected: Conversation | PromptCompletion | Text
    margin: float = 0.0
    """How much better it should score, at least 0."""
    id: str = ""
    form: Format = "pair"


Demonstration = Conversation | PromptCompletion | Text | Tokens | Pair


def check_settings(data: Data) -> None:
    """Refuse a field map or a function that no row could make good.

    Raises:
      BadInput: as `parse_fields` and `load_function`.
    """
    _paths(data.fields)
    if data.function:
        load_function(data.function)


def demonstrations(record: Record, data: Data) -> list[Demonstration]:
    """What a record demonstrates: mostly one; several for a seed task's instances; none where `data.function` says so.

    Raises:
      BadRow: a record that is in no known form, malformed, or whose answer is empty; names file:line.
      BadInput: a field map or a function that cannot work for any row.
    """
    paths = _paths(data.fields)
    made: list[Demonstration] = []
    for row in apply_function(record, data.function) if data.function else (record,):
        row = rename(row, paths) if paths else row
        made += _READERS[detect_format(row, data.format, paths)](row)
    if len(made) < 2:
        return made
    seen: Counter[str] = Counter()
    for k, one in enumerate(made):
        seen[one.id] += 1
        if seen[one.id] > 1:
            made[k] = dataclasses.replace(one, id=f"{one.id}#{seen[one.id]}")
    return made


def detect_format(record: Record, declared: str = "auto", mapped: Collection[str] = ()) -> Format:
    """Which form the record has: the declared one, or by its keys when that is "auto".

    Args:
      mapped: our keys that a field map fills: forms that use one of them are tried first.

    Raises:
      BadRow: the record lacks the keys; lists those found and those expected.
    """
    value = record.value
    forms: list[Format] = [form for form in KEYS if declared in ("auto", form)]
    if mapped:
        forms.sort(key=lambda form: not any(key in mapped for names in KEYS[form] for key in names))
    for form in forms:
        if all(any(key in value for key in names) for names in KEYS[form]):
            return form
    if declared == "auto":
        lacks = f"expected one of: {'; '.join(f'{_spell(need)} ({form})' for form, need in KEYS.items())}"
    else:
        missing = [names for names in KEYS[forms[0]] if not any(key in value for key in names)]
        lacks = f'data.format "{declared}" expects {_spell(KEYS[forms[0]])}: no key {_spell(missing, " or ")}'
    filled = f" (data.fields fills {', '.join(mapped)})" if mapped else ""
    raise BadRow(
        f"{record.where}: keys found: {', '.join(map(str, value)) or 'none'}; {lacks}{filled}. Name the keys with "
        "data.fields, such as 'prompt=question', or convert records with data.function."
    )


def _spell(need: Collection[tuple[str, ...]], join: str = " and ") -> str:
    return join.join("/".join(names) for names in need)


@lru_cache(maxsize=8)
def _paths(fields: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    return parse_fields(fields, KNOWN_KEYS)


def record_id(record: Record) -> str:
    """The record's own `id`, otherwise file:line."""
    own = record.value.get("id")
    return str(own) if isinstance(own, str | int) and not isinstance(own, bool) and own != "" else record.where


def _messages(record: Record) -> list[Demonstration]:
    return [_conversation(record, check_messages(record.where, record.value["messages"]), "messages")]


def _sharegpt(record: Record) -> list[Demonstration]:
    key = _first(record, KEYS["sharegpt"][0])
    return [_conversation(record, _system(record) + check_messages(record.where, record.value[key], key), "sharegpt")]


def _prompt_completion(record: Record) -> list[Demonstration]:
    return [_pair(record, "completion", "prompt_completion")]


def _pair_of_answers(record: Record) -> list[Demonstration]:
    """Both answers, each with the prompt: two documents that are compared."""
    both = []
    for key in ("chosen", "rejected"):
        value = {name: child for name, child in record.value.items() if name not in ("chosen", "rejected")}
        [one] = _preference(Record(record.source, record.line, {**value, "chosen": record.value[key]}))
        if isinstance(one, Tokens | Pair) or type(one) is not type(both[0] if both else one):
            raise BadRow(f"{record.where}: chosen and rejected differ in form, expected text or messages of both")
        both.append(one)
    margin = record.value.get("margin", 0.0)
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not 0 <= margin < 1e6:
        raise BadRow(f"{record.where}: margin is {margin!r}, expected a number of at least 0")
    return [Pair(both[0], both[1], float(margin), record_id(record))]


def _preference(record: Record) -> list[Demonstration]:
    """The preferred answer is the demonstration; the rejected one is not looked at."""
    chosen = record.value["chosen"]
    if "prompt" in record.value:
        return [_pair(record, "chosen", "preference")]
    if isinstance(chosen, str):  # prompt and answer in one string: where the answer begins, nobody says
        return [Text(_answer(record.where, chosen, "chosen"), record_id(record), "preference")]
    return [_conversation(record, check_messages(record.where, chosen, "chosen"), "preference")]


def _pair(record: Record, key: str, form: Format) -> Demonstration:
    """`prompt` and the answer at `key`: two strings as they are; otherwise a conversation that ends with it."""
    prompt, answer = record.value["prompt"], record.value[key]
    if isinstance(prompt, str) and isinstance(answer, str):
        return PromptCompletion(prompt, _answer(record.where, answer, key), record_id(record), form)
    turns = check_messages(record.where, _turns(record, "prompt", "user"), "prompt")
    rest = check_messages(record.where, _turns(record, key, "assistant"), key)
    if isinstance(prompt, str) and rest[0]["role"] != "assistant":
        turns = []  # the answer is the whole conversation, and repeats the prompt
    return _conversation(record, turns + rest, form, first=len(turns), key=key)


def _turns(record: Record, key: str, role: str) -> Any:
    value = record.value[key]
    if not isinstance(value, str | list):
        raise BadRow(f"{record.where}: {key} is {kind(value)}, expected a string or a list of messages")
    return [{"role": role, "content": value}] if isinstance(value, str) else value


def _alpaca(record: Record) -> list[Demonstration]:
    key = _first(record, KEYS["alpaca"][1])
    given = record.value.get(_first(record, ("input", "context")))
    turns = _system(record) + _history(record)
    turns += _exchange(record.where, _request(record, given, record.where), record.value[key], key)
    # A prompt layout of its own would teach a model that no chat interface ever shows: the two fields are one request.
    return [_conversation(record, turns, "alpaca")]


def _history(record: Record) -> list[dict[str, Any]]:
    """Earlier exchanges, given as [question, answer] pairs; they train as any turn does."""
    history = record.value.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise BadRow(f"{record.where}: history is {kind(history)}, expected a list of [question, answer] pairs")
    return [turn for pair in history for turn in _exchange(record.where, pair[0], pair[1], "history")]


def _seed_task(record: Record) -> list[Demonstration]:
    instances = record.value["instances"]
    if not isinstance(instances, list) or not instances:
        raise BadRow(f"{record.where}: instances is {kind(instances)}, expected a non-empty list of objects")
    made: list[Demonstration] = []
    for i, instance in enumerate(instances):
        where = f"{record.where}: instances[{i}]"
        if not isinstance(instance, dict) or "output" not in instance:
            raise BadRow(f"{where} is {kind(instance)}, expected an object with input and output")
        turns = _exchange(where, _request(record, instance.get("input"), where), instance["output"], "output")
        made.append(_conversation(record, turns, "seed_task"))
    return made


def _question_answer(record: Record) -> list[Demonstration]:
    turns = _exchange(record.where, record.value["question"], record.value["answer"], "answer", "question")
    return [_conversation(record, _system(record) + turns, "question_answer")]


def _text(record: Record) -> list[Demonstration]:
    return [Text(_answer(record.where, record.value["text"], "text"), record_id(record))]


def _request(record: Record, given: Any, where: str) -> str:
    """Instruction, a blank line, and what it is given to work on, if anything."""
    parts = (_string(where, record.value["instruction"], "instruction"), _string(where, given or "", "input"))
    return "\n\n".join(part for part in parts if part.strip())


def _exchange(where: str, prompt: Any, answer: Any, key: str, asked: str = "instruction") -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": _string(where, prompt, asked)},
        {"role": "assistant", "content": _answer(where, answer, key)},
    ]


def _system(record: Record) -> list[dict[str, Any]]:
    """A `system` prompt that stands beside the conversation."""
    system = record.value.get("system")
    return [{"role": "system", "content": _string(record.where, system, "system")}] if system else []


def _conversation(
    record: Record, messages: list[dict[str, Any]], form: Format, first: int = 0, key: str = "messages"
) -> Conversation:
    for i, message in enumerate(messages[first:], start=first):
        where = f"{record.where}: {key}[{i - (first if key != 'messages' else 0)}]"
        if message["role"] == "assistant" and says_nothing(message) and message_weight(where, message):
            raise BadRow(
                f"{where} (assistant): an empty answer, expected text or a tool call. Remove the row, or give the "
                "message the weight 0"
            )
    tools = check_tools(record.where, record.value.get("tools"))
    return Conversation(messages, tools, first, record_id(record), form)


def _tokens(record: Record) -> list[Demonstration]:
    ids_key, mask_key = (_first(record, names) for names in KEYS["tokens"])
    where, ids, mask = record.where, record.value[ids_key], record.value[mask_key]
    tokens = _numbers(where, ids, ids_key)
    if tokens.dtype.kind != "i" or not len(tokens) or tokens.min() < 0 or tokens.max() >= 2**31:
        raise BadRow(f"{where}: {ids_key}: expected a non-empty list of token ids, whole numbers from 0 on")
    values = _numbers(where, mask, mask_key)
    if len(values) != len(tokens):
        raise BadRow(f"{where}: {ids_key} has {len(tokens)} entries, {mask_key} {len(values)}: expected as many")
    weights = _label_weights(where, tokens, values) if mask_key == "labels" else values.astype(np.float64)
    if not np.isfinite(weights).all() or weights.min() < 0 or weights.max() > np.finfo(np.float32).max:
        raise BadRow(f"{where}: {mask_key}: expected finite numbers of at least 0")
    if "attention_mask" in record.value:
        seen = _numbers(where, record.value["attention_mask"], "attention_mask")
        if len(seen) != len(tokens) or weights[seen == 0].any():
            raise BadRow(f"{where}: attention_mask hides a trained token, or is not as long as {ids_key}")
        tokens, weights = tokens[seen != 0], weights[seen != 0]  # padding, which packing has no use for
    return [Tokens(tokens.astype(np.int32), weights.astype(np.float32), record_id(record))]


def _label_weights(where: str, tokens: np.ndarray, labels: np.ndarray) -> np.ndarray:
    trained = labels != -100
    wrong = np.flatnonzero(trained & (labels != tokens))
    if len(wrong):
        shifted = np.array_equal(labels[:-1][trained[:-1]], tokens[1:][trained[:-1]])
        hint = ". They look shifted by one: transformers' labels stand at the token itself" if shifted else ""
        raise BadRow(
            f"{where}: labels[{wrong[0]}] is {labels[wrong[0]]} where input_ids has {tokens[wrong[0]]}: expected -100 "
            f"(untrained) or the same id{hint}"
        )
    return trained.astype(np.float64)


def _numbers(where: str, value: Any, key: str) -> np.ndarray:
    plain = isinstance(value, list) and all(isinstance(item, int | float) for item in value)
    if not plain or any(abs(item) > 2**53 for item in value):
        raise BadRow(f"{where}: {key} is {kind(value)}, expected a list of numbers")
    return np.asarray(value, np.int64 if all(isinstance(item, int) for item in value) else np.float64)


def _first(record: Record, names: tuple[str, ...]) -> str:
    return next((name for name in names if name in record.value), names[0])


def _string(where: str, value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise BadRow(f"{where}: {key} is {kind(value)}, expected a string")
    return value


def _answer(where: str, value: Any, key: str) -> str:
    """A string that trains: an empty one would teach the model to say nothing."""
    if not _string(where, value, key).strip():
        raise BadRow(f"{where}: {key} is empty: nothing to train. Fill it in or remove the row")
    return value


_READERS: dict[Format, Callable[[Record], list[Demonstration]]] = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "tokens": _tokens,
    "preference": _preference,
    "pair": _pair_of_answers,
    "prompt_completion": _prompt_completion,
    "alpaca": _alpaca,
    "seed_task": _seed_task,
    "question_answer": _question_answer,
    "text": _text,
}
