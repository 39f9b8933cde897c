"""Converts a record of any known form into demonstrations."""

import dataclasses
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from sft_jax.config import Data, Format
from sft_jax.data.forms.beside import check_no_system, holds_null, system_turn, tools_of
from sft_jax.data.forms.demonstration import Conversation, Demonstration, Pair, PromptCompletion, Text, Tokens
from sft_jax.data.forms.detect import FOR_TEMPLATE, KEYS, KNOWN_KEYS, detect_format, find_form, first_of, keys_read
from sft_jax.data.forms.mapping import apply_function, load_function, parse_fields, rename
from sft_jax.data.forms.messages import check_messages, message_weight, says_nothing
from sft_jax.data.forms.template_kwargs import check_template_kwargs, parse_template_kwargs
from sft_jax.data.forms.values import answer, string
from sft_jax.data.read.rows import Record
from sft_jax.data.read.strict_json import kind
from sft_jax.errors import BadRow


class Reading(NamedTuple):
    """The demonstrations in one record."""

    demonstrations: list[Demonstration]
    """Usually one; several for a seed task; none if `data.function` leaves the record out."""
    unread: tuple[str, ...] = ()
    """Keys that the form does not read."""


def check_settings(data: Data) -> None:
    """Reject a field map, function or template kwargs that cannot work for any row.

    Raises:
      BadInput: as `parse_fields`, `load_function` and `parse_template_kwargs`.
    """
    _paths(data.fields)
    parse_template_kwargs(data.template_kwargs)
    if data.function:
        load_function(data.function)


def demonstrations(record: Record, data: Data) -> list[Demonstration]:
    """As `read`, without the unread keys."""
    return read(record, data).demonstrations


def read(record: Record, data: Data) -> Reading:
    """The demonstrations in a record.

    Raises:
      BadRow: unknown form, malformed, or an empty answer; names file:line.
      BadInput: a field map or function that cannot work for any row.
    """
    made: list[Demonstration] = []
    unread: dict[str, None] = {}
    for row, form in forms_of(record, data):
        if form is None:
            form = detect_format(row, data.format, tuple(_paths(data.fields)))  # raises, with the missing keys
        found = demonstrated(row, form)
        known = keys_read(form, row.value)
        if not any(isinstance(one, Conversation | Pair) for one in found):
            known -= {*FOR_TEMPLATE}
        if not known.issuperset(row.value):
            unread |= {key: None for key, value in row.value.items() if key not in known and value is not None}
        made += found
    return Reading(with_unique_ids(made), tuple(unread))


def forms_of(record: Record, data: Data) -> list[tuple[Record, Format | None]]:
    """Apply `data.function` and `data.fields` to a record; each result with its form (None if unknown).

    The form is decided only here, for training, sampling, scoring and evaluation alike.
    """
    paths = _paths(data.fields)
    rows = apply_function(record, data.function) if data.function else (record,)
    rows = [rename(row, paths) for row in rows] if paths else rows
    return [(row, find_form(row.value, data.format, paths)) for row in rows]


def demonstrated(row: Record, form: Format) -> list[Demonstration]:
    """The demonstrations in a record of a given form.

    Raises:
      BadRow: as `read`.
    """
    if row.problems:
        for key in keys_read(form, row.value) & row.problems.keys():
            raise BadRow(f"{row.where}: {row.problems[key]}")
    return _READERS[form](row)


def with_unique_ids(made: list[Demonstration]) -> list[Demonstration]:
    """Make the ids of one record's demonstrations unique."""
    if len(made) < 2:
        return made
    seen: Counter[str] = Counter()
    for k, one in enumerate(made):
        seen[one.id] += 1
        if seen[one.id] > 1:
            made[k] = dataclasses.replace(one, id=f"{one.id}#{seen[one.id]}")
    return made


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
    key = first_of(record.value, KEYS["sharegpt"][0])
    return [_conversation(record, check_messages(record.where, record.value[key], key), "sharegpt")]


def _prompt_completion(record: Record) -> list[Demonstration]:
    return [_pair(record, "completion", "prompt_completion")]


def _pair_of_answers(record: Record) -> list[Demonstration]:
    """Both answers, each with the prompt: two documents to compare."""
    both = []
    for key in ("chosen", "rejected"):
        value = {name: child for name, child in record.value.items() if name not in ("chosen", "rejected")}
        [one] = _preference(dataclasses.replace(record, value={**value, "chosen": record.value[key]}))
        if isinstance(one, Tokens | Pair) or type(one) is not type(both[0] if both else one):
            raise BadRow(
                f"{record.where}: chosen and rejected have different types, expected text for both or messages for both"
            )
        if isinstance(one, Conversation) and says_nothing(one.messages[-1]):
            raise BadRow(f"{record.where}: {key} ends with an empty message: no answer to compare. Remove the row")
        both.append(one)
    margin = record.value.get("margin", 0.0)
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not 0 <= margin < 1e6:
        raise BadRow(f"{record.where}: margin is {margin!r}, expected a number of at least 0")
    return [Pair(both[0], both[1], float(margin), record_id(record))]


def _preference(record: Record) -> list[Demonstration]:
    """The chosen answer is the demonstration; the rejected one is ignored."""
    chosen = record.value["chosen"]
    if "prompt" in record.value:
        return [_pair(record, "chosen", "preference")]
    if isinstance(chosen, str):  # prompt and answer in one string: unknown where the answer begins
        check_no_system(record, chosen)
        return [Text(answer(record, chosen, "chosen"), record_id(record), "preference")]
    return [_conversation(record, check_messages(record.where, chosen, "chosen"), "preference")]


def _pair(record: Record, key: str, form: Format) -> Demonstration:
    """`prompt` and the answer at `key`: two plain strings, or else a conversation that ends with the answer."""
    prompt, given = record.value["prompt"], record.value[key]
    if isinstance(prompt, str) and isinstance(given, str):
        check_no_system(record, prompt)
        return PromptCompletion(prompt, answer(record, given, key), record_id(record), form)
    turns = check_messages(record.where, _turns(record, "prompt", "user"), "prompt")
    rest = check_messages(record.where, _turns(record, key, "assistant"), key)
    if isinstance(prompt, str) and rest[0]["role"] != "assistant":
        turns = []  # the answer is the whole conversation, including the prompt
    return _conversation(record, turns + rest, form, first=len(turns))


def _turns(record: Record, key: str, role: str) -> Any:
    value = record.value[key]
    if not isinstance(value, list | str):
        if isinstance(value, int | float):
            string(record, value, key)  # raises, with a conversion
        raise BadRow(f"{record.where}: {key} is {kind(value)}, expected a string or a list of messages")
    return [{"role": role, "content": value}] if isinstance(value, str) else value


def _alpaca(record: Record) -> list[Demonstration]:
    key = first_of(record.value, KEYS["alpaca"][1])
    given = first_of(record.value, ("input", "context"))
    turns = _history(record)
    turns += _exchange(record, _request(record, record.value.get(given), given), record.value[key], key)
    # Instruction and input become one user message, as in chat; a special prompt format would never be seen there.
    return [_conversation(record, turns, "alpaca")]


def _history(record: Record) -> list[dict[str, Any]]:
    """Earlier turns, given as [question, answer] pairs; they train like any other turn."""
    history = record.value.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise BadRow(f"{record.where}: history is {kind(history)}, expected a list of [question, answer] pairs")
    where = f"{record.where}: history[{{}}]"
    return [
        turn
        for k, pair in enumerate(history)
        for turn in _exchange(record, pair[0], pair[1], "answer", "question", where.format(k))
    ]


def _seed_task(record: Record) -> list[Demonstration]:
    instances = record.value["instances"]
    if not isinstance(instances, list) or not instances:
        raise BadRow(f"{record.where}: instances is {kind(instances)}, expected a non-empty list of objects")
    made: list[Demonstration] = []
    for i, instance in enumerate(instances):
        where = f"{record.where}: instances[{i}]"
        if not isinstance(instance, dict) or "output" not in instance:
            raise BadRow(f"{where} is {kind(instance)}, expected an object with input and output")
        request = _request(record, instance.get("input"), "input", where)
        turns = _exchange(record, request, instance["output"], "output", where=where)
        made.append(_conversation(record, turns, "seed_task"))
    return made


def _question_answer(record: Record) -> list[Demonstration]:
    turns = _exchange(record, record.value["question"], record.value["answer"], "answer", "question")
    return [_conversation(record, turns, "question_answer")]


def _text(record: Record) -> list[Demonstration]:
    return [Text(answer(record, record.value["text"], "text"), record_id(record))]


def _request(record: Record, given: Any, key: str, where: str = "") -> str:
    """The instruction, followed by a blank line and the input if there is one."""
    given = "" if given is None or given == [] else given
    parts = (string(record, record.value["instruction"], "instruction"), string(record, given, key, where))
    return "\n\n".join(part for part in parts if part.strip())


def _exchange(
    record: Record, prompt: Any, given: Any, key: str, asked: str = "instruction", where: str = ""
) -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": string(record, prompt, asked, where)},
        {"role": "assistant", "content": answer(record, given, key, where)},
    ]


def _conversation(record: Record, messages: list[dict[str, Any]], form: Format, first: int = 0) -> Conversation:
    """A conversation with its row's system prompt, tools and template kwargs. Empty assistant turns get weight 0."""
    system = system_turn(record, messages)
    if system:
        messages, first = system + messages, first + 1
    empty, nulls = 0, False
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        if i >= first and says_nothing(message) and message_weight(record.where, message):
            messages[i] = {**message, "weight": 0}
            empty += 1
        for call in message.get("tool_calls") or ():
            nulls = nulls or holds_null(call["function"]["arguments"])
    tools = tools_of(record)
    nulls = nulls or (tools is not None and holds_null(tools))
    kwargs = check_template_kwargs(record.where, record.value.get("chat_template_kwargs"))
    return Conversation(messages, tools, first, record_id(record), form, kwargs, empty, nulls)


def _tokens(record: Record) -> list[Demonstration]:
    ids_key, mask_key = (first_of(record.value, names) for names in KEYS["tokens"])
    where, ids, mask = record.where, record.value[ids_key], record.value[mask_key]
    tokens = _numbers(where, ids, ids_key)
    if tokens.dtype.kind != "i" or not len(tokens) or tokens.min() < 0 or tokens.max() >= 2**31:
        raise BadRow(f"{where}: {ids_key}: expected a non-empty list of token ids (integers of at least 0)")
    values = _numbers(where, mask, mask_key)
    if len(values) != len(tokens):
        raise BadRow(
            f"{where}: {ids_key} has {len(tokens)} entries, {mask_key} has {len(values)}: expected the same number"
        )
    weights = _label_weights(where, tokens, values) if mask_key == "labels" else values.astype(np.float64)
    if not np.isfinite(weights).all() or weights.min() < 0 or weights.max() > np.finfo(np.float32).max:
        raise BadRow(f"{where}: {mask_key}: expected finite numbers of at least 0")
    if "attention_mask" in record.value:
        seen = _numbers(where, record.value["attention_mask"], "attention_mask")
        if len(seen) != len(tokens) or weights[seen == 0].any():
            raise BadRow(f"{where}: attention_mask masks a trained token, or its length differs from that of {ids_key}")
        tokens, weights = tokens[seen != 0], weights[seen != 0]  # remove padding
    return [Tokens(tokens.astype(np.int32), weights.astype(np.float32), record_id(record))]


def _label_weights(where: str, tokens: np.ndarray, labels: np.ndarray) -> np.ndarray:
    trained = labels != -100
    wrong = np.flatnonzero(trained & (labels != tokens))
    if len(wrong):
        shifted = np.array_equal(labels[:-1][trained[:-1]], tokens[1:][trained[:-1]])
        hint = ". They look shifted by one: labels in transformers are not shifted" if shifted else ""
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
