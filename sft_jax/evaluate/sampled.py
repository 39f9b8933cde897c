"""Sampled completions as rows to be ranked, and their selection as demonstrations or preference pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sft_jax.errors import BadInput
from sft_jax.evaluate.task import Task
from sft_jax.sample.generate import Generated

FOR_TEMPLATE = ("tools", "chat_template_kwargs")
"""Keys of a prompt's row that its chat template needs besides the messages."""
KEPT_KEYS = (
    *FOR_TEMPLATE,
    *("answer", "ground_truth", "reference", "regex", "json_schema", "min_words", "max_words"),
)
"""These, and those that checks need: they are copied to its completions."""

Keep = Literal["best", "passing", "all"]


def sampled_row(task: Task, completions: Sequence[Generated], tokenizer: Any) -> dict[str, Any]:
    """One prompt with its completions, as JSON: input for preference collection and for `select`.

    `tokens` and `logprobs` (log p under the unmodified model, temperature 1) have equal length and include the stop
    token if there is one; `logprob` is the sum of `logprobs`.
    """
    asked: dict[str, Any] = {"messages": list(task.messages)} if task.messages else {"prompt": task.prompt}
    kept = {key: task.row[key] for key in KEPT_KEYS if key in task.row}
    if task.tools:  # the row may have them under another name
        kept["tools"] = list(task.tools)
    if task.template_kwargs:
        kept["chat_template_kwargs"] = dict(task.template_kwargs)
    answered = {"demonstration": task.shown} if task.shown else {}
    return {
        "id": task.id,
        **asked,
        **kept,
        **answered,
        "completions": [
            {
                **_texts(one, tokenizer),
                "stopped": one.stopped,
                "finish": one.finish,
                "logprob": sum(one.logprobs),
                "tokens": one.ids,
                "logprobs": one.logprobs,
            }
            for one in completions
        ],
    }


def _texts(one: Generated, tokenizer: Any) -> dict[str, str]:
    """`text`, and `raw` with special tokens if it has any: some families use them in tool calls."""
    if one.text is not None:
        return {"text": one.text}
    text, raw = (tokenizer.decode(one.tokens, skip_special_tokens=skip) for skip in (True, False))
    return {"text": text, **({"raw": raw} if raw != text else {})}


def written(completion: Mapping[str, Any]) -> str:
    """A completion's text as generated, including special tokens."""
    return completion.get("raw", completion["text"])


@dataclass(frozen=True)
class Account:
    """Statistics of a selection."""

    prompts: int
    kept: int
    """Rows written."""
    without: int
    """Prompts without an output row: no completion passes, or (for pairs) all have the same score."""
    first: float
    """Mean score of each prompt's first completion."""
    mean: float
    """Mean score of all completions."""
    best: float
    """Mean of each prompt's best score."""


def account(scores: Sequence[Sequence[float]], rows: int, used: int) -> Account:
    """Statistics of a selection in which `used` prompts yielded `rows` rows."""
    count = len(scores)
    return Account(
        count,
        rows,
        count - used,
        sum(each[0] for each in scores) / count,
        sum(sum(each) / len(each) for each in scores) / count,
        sum(max(each) for each in scores) / count,
    )


def select(
    rows: Sequence[Mapping[str, Any]], scores: Sequence[Sequence[float]], keep: Keep, at_least: float
) -> tuple[list[dict[str, Any]], Account]:
    """Select completions as new demonstrations.

    best: each prompt's best completion (the first, if tied), if its score is at least `at_least`. passing: every
    distinct completion with at least that score (rejection sampling; Touvron et al. 2023, section 3.2.3). all: every
    completion.
    """
    made, used = [], 0
    for row, each in zip(rows, scores, strict=True):
        texts = [written(one) for one in row["completions"]]
        order = range(len(texts))
        if keep == "best":
            order = [max(order, key=lambda k: (each[k], -k))]
        chosen = [k for k in order if keep == "all" or each[k] >= at_least]
        first_of = {texts[k]: k for k in reversed(chosen)}
        kept = [k for k in chosen if keep == "all" or first_of[texts[k]] == k]
        made += [{**as_demonstration(row, texts[k], f"{row['id']}#{k}"), "score": each[k]} for k in kept]
        used += bool(kept)
    return made, account(scores, len(made), used)


def pairs(rows: Sequence[Mapping[str, Any]], scores: Sequence[Sequence[float]]) -> tuple[list[dict[str, Any]], Account]:
    """Pair each prompt's best and worst completion, if their scores differ, to train a reward model."""
    made = []
    for row, each in zip(rows, scores, strict=True):
        order = range(len(each))
        best, worst = max(order, key=lambda k: (each[k], -k)), min(order, key=lambda k: (each[k], k))
        if each[best] > each[worst]:
            chosen, rejected = (written(row["completions"][k]) for k in (best, worst))
            made.append({"id": row["id"], **_pair(row, chosen, rejected), "scores": [each[best], each[worst]]})
    return made, account(scores, len(made), len(made))


def as_demonstration(row: Mapping[str, Any], text: str, name: str) -> dict[str, Any]:
    extra = {key: row[key] for key in KEPT_KEYS if key in row}
    if "messages" in row:
        return {"id": name, "messages": [*row["messages"], {"role": "assistant", "content": text}], **extra}
    return {"id": name, "prompt": row["prompt"], "completion": text, **extra}


def _pair(row: Mapping[str, Any], chosen: str, rejected: str) -> dict[str, Any]:
    if "messages" not in row:
        return {"prompt": row["prompt"], "chosen": chosen, "rejected": rejected}
    answers = {"chosen": chosen, "rejected": rejected}
    turns = {key: [{"role": "assistant", "content": text}] for key, text in answers.items()}
    return {"prompt": row["messages"], **turns, **{key: row[key] for key in FOR_TEMPLATE if key in row}}


def check_sampled(where: str, row: Mapping[str, Any]) -> None:
    """Raises BadInput if a row is not the output of `sft-jax sample`."""
    completions = row.get("completions")
    asked = "messages" in row or "prompt" in row
    fine = isinstance(completions, list) and completions and asked and "id" in row
    if not fine or not all(isinstance(one, dict) and isinstance(one.get("text"), str) for one in completions or []):
        raise BadInput(
            f"{where}: expected id, messages or prompt, and completions with text, as sft-jax sample writes them; "
            f"found {', '.join(map(str, row)) or 'nothing'}"
        )
