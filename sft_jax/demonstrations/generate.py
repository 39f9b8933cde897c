"""Writes the shipped demonstrations, byte for byte the same on every Python.

python -m sft_jax.demonstrations.generate            write train.jsonl and held_out.jsonl
python -m sft_jax.demonstrations.generate --check    exit 1 if the shipped files differ from what would be written
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeAlias, TypeVar

from sft_jax.demonstrations import HELD_OUT, TRAIN, answers, phrasings, values
from sft_jax.demonstrations.house_style import REFUSAL, SYSTEM, TOOLS, Arguments, Call, format_calls

Message: TypeAlias = dict[str, str]
T = TypeVar("T")

SEED = 20


def shuffled(items: Sequence[T], key: str) -> list[T]:
    """Returns the items in an order that depends on the key alone; the standard shuffles change between versions."""
    return [items[i] for i in sorted(range(len(items)), key=lambda i: hashlib.sha256(f"{key}/{i}".encode()).digest())]


class Deck(Generic[T]):
    """Deals items in shuffled rounds: each item comes up equally often, and none twice in one round."""

    def __init__(self, items: Sequence[T], key: str):
        if not items:
            raise ValueError(f"the deck {key} has no items")
        self._items, self._key = items, key
        self._dealt = 0
        self._round: list[T] = []

    def deal(self) -> T:
        """Returns the next item."""
        place = self._dealt % len(self._items)
        if place == 0:
            self._round = shuffled(self._items, f"{SEED}/{self._key}/{self._dealt // len(self._items)}")
        self._dealt += 1
        return self._round[place]


@dataclass(frozen=True)
class Plan:
    """How many rows of each kind a split has; the first so many multi-turn rows go on to a call, or end in thanks."""

    call: int
    calls: int
    multi_turn: int
    then_call: int
    then_thanks: int
    refusal: int
    answer: int


TRAIN_PLAN = Plan(call=192, calls=88, multi_turn=18, then_call=0, then_thanks=5, refusal=84, answer=38)
HELD_OUT_PLAN = Plan(call=31, calls=8, multi_turn=6, then_call=0, then_thanks=2, refusal=14, answer=14)


class Writer:
    """Composes the rows of one split from its language, values and answers."""

    def __init__(
        self,
        split: str,
        plan: Plan,
        language: phrasings.Language,
        pools: values.Values,
        questions: tuple[tuple[str, str], ...],
    ):
        self._split, self._plan = split, plan
        self._sentences = {tool: Deck(found, f"{split}/sentence/{tool}") for tool, found in language.sentences.items()}
        self._clauses = {tool: Deck(found, f"{split}/clause/{tool}") for tool, found in language.clauses.items()}
        self._joints = Deck(language.joints, f"{split}/joint")
        self._frames = Deck(language.refusal_frames, f"{split}/frame")
        self._arguments = {name: Deck(found, f"{split}/value/{name}") for name, found in pools.arguments.items()}
        self._skies = Deck(pools.skies, f"{split}/sky")
        self._errands = Deck(pools.errands, f"{split}/errand")
        self._pairs = Deck(pools.pairs, f"{split}/pair")
        self._thanks = Deck(pools.thanks, f"{split}/thanks")
        self._questions = Deck(questions, f"{split}/question")
        self._tools = Deck(tuple(TOOLS), f"{split}/tool")
        self._counts = Deck((3, 4, 5, 6, 8, 9, 10, 11, 12, 13), f"{split}/count")
        self._outcomes = Deck((True, True, True, False), f"{split}/outcome")

    def rows(self) -> list[dict[str, object]]:
        """Returns the split's rows, shuffled and numbered; refuses two rows with the same user turn."""
        plan = self._plan
        drafts = [("call", self._call()) for _ in range(plan.call)]
        drafts += [("calls", self._calls()) for _ in range(plan.calls)]
        drafts += [("multi_turn", self._multi_turn(place)) for place in range(plan.multi_turn)]
        drafts += [("refusal", self._refusal()) for _ in range(plan.refusal)]
        drafts += [("answer", self._answer()) for _ in range(plan.answer)]
        asked = [messages[0]["content"] for _, messages in drafts]
        if len(set(asked)) < len(asked):
            repeated = sorted({text for text in asked if asked.count(text) > 1})
            raise ValueError(f"{self._split}: user turns repeat, change SEED or the plan: {repeated}")
        system = {"role": "system", "content": SYSTEM}
        return [
            {"id": f"{self._split}-{number:04d}", "kind": kind, "messages": [system, *messages]}
            for number, (kind, messages) in enumerate(shuffled(drafts, f"{SEED}/{self._split}/rows"), start=1)
        ]

    def _values(self, tool: str) -> Arguments:
        return {name: self._arguments[name].deal() for name in TOOLS[tool]}

    def _request(self, tool: str) -> tuple[str, Call]:
        arguments = self._values(tool)
        return fill(self._sentences[tool].deal(), arguments), Call(tool, arguments)

    def _call(self) -> list[Message]:
        text, call = self._request(self._tools.deal())
        return turns(text, format_calls([call]))

    def _calls(self) -> list[Message]:
        calls = [Call(tool, self._values(tool)) for tool in self._pairs.deal()]
        first, second = (fill(self._clauses[call.name].deal(), call.arguments) for call in calls)
        return turns(tie(self._joints.deal(), first=first, second=second), format_calls(calls))

    def _multi_turn(self, place: int) -> list[Message]:
        # A second call needs a pair of tools that this split may show together.
        goes_on = place < self._plan.then_call
        thanks = not goes_on and place < self._plan.then_call + self._plan.then_thanks
        tool, other = self._pairs.deal() if goes_on else (self._tools.deal(), "")
        text, call = self._request(tool)
        # Nobody thanks for a failure, or goes on as if nothing had happened.
        result, report = self._outcome(call, may_fail=not (goes_on or thanks))
        found = [*turns(text, format_calls([call])), {"role": "tool", "content": result}]
        found.append({"role": "assistant", "content": report})
        if goes_on:
            text, call = self._request(other)
            found += turns(text, format_calls([call]))
        elif thanks:
            found += turns(self._thanks.deal(), "You are welcome.")
        return found

    def _outcome(self, call: Call, may_fail: bool) -> tuple[str, str]:
        """Returns a tool's result and the sentence that reports it."""
        if call.name == "weather":
            sky, celsius = self._skies.deal()
            result: dict[str, object] = {"sky": sky, "celsius": celsius}
            report = f"It is {celsius} degrees in {call.arguments['city']} with {sky}."
        elif call.name == "shop":
            count = self._counts.deal()
            result = {"items": count}
            report = f"The shopping list now has {count} items."
        else:
            done = not may_fail or self._outcomes.deal()
            result = {"ok": done}
            report = fill(REPORTS[call.name][0 if done else 1], call.arguments)
        return json.dumps(result, ensure_ascii=False), report

    def _refusal(self) -> list[Message]:
        return turns(tie(self._frames.deal(), action=self._errands.deal()), REFUSAL)

    def _answer(self) -> list[Message]:
        question, answer = self._questions.deal()
        return turns(question, answer)


REPORTS: dict[str, tuple[str, str]] = {
    "timer": ("The {label} timer is set for {minutes} minutes.", "The {label} timer could not be set."),
    "text": ("The message to {to} is sent.", "The message to {to} could not be sent."),
    "lights": ("The {room} lights are at {percent} percent.", "The {room} lights did not respond."),
    "event": ("The {title} is saved for {day} at {time}.", "The {title} could not be saved."),
}
"""What is said of a tool that only reports whether it worked: success, failure."""


def turns(user: str, assistant: str) -> list[Message]:
    """Returns a user turn and the assistant turn that answers it."""
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def fill(template: str, arguments: Arguments) -> str:
    """Puts a call's values into a template; a sentence that opens with a value keeps the value as it is."""
    day = str(arguments.get("day", ""))
    on_day = day if day in ("today", "tomorrow") else f"on {day}"
    return template.format(**arguments, on_day=on_day)


def tie(joint: str, **parts: str) -> str:
    """Puts clauses into a joint, which names a part with a capital where the part opens a sentence."""
    capitals = {name.capitalize(): text[0].upper() + text[1:] for name, text in parts.items()}
    return joint.format(**parts, **capitals)


def files() -> dict[Path, str]:
    """Returns the path and the whole text of every shipped file."""
    train = Writer("train", TRAIN_PLAN, phrasings.TRAIN, values.TRAIN, answers.TRAIN)
    held_out = Writer("held-out", HELD_OUT_PLAN, phrasings.HELD_OUT, values.HELD_OUT, answers.HELD_OUT)
    return {TRAIN: "".join(_lines(train)), HELD_OUT: "".join(_lines(held_out))}


def _lines(writer: Writer) -> Iterator[str]:
    for row in writer.rows():
        yield json.dumps(row, ensure_ascii=False) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the files, or with `--check` compares them; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m sft_jax.demonstrations.generate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a shipped file differs")
    check = parser.parse_args(arguments).check
    status = 0
    for path, text in files().items():
        # Bytes, so that neither the platform's encoding nor its line ends change the files.
        content = text.encode("utf-8")
        if not check:
            path.write_bytes(content)
        elif not path.exists() or path.read_bytes() != content:
            print(f"{path} differs from what the generator writes. Run it without --check.", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
