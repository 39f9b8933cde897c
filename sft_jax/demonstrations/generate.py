"""Writes the shipped demonstrations, byte for byte the same on every Python.

python -m sft_jax.demonstrations.generate            write train.jsonl and held_out.jsonl
python -m sft_jax.demonstrations.generate --check    exit 1 if the shipped files differ from what would be written
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeAlias, TypeVar

from sft_jax.demonstrations import HELD_OUT, TRAIN, answers, held_out_phrasings, phrasings, values
from sft_jax.demonstrations.house_style import REFUSAL, SYSTEM, TOOLS, Arguments, Call, format_calls

Message: TypeAlias = dict[str, str]
T = TypeVar("T")

SEED = 20


def shuffled(items: Sequence[T], key: str) -> list[T]:
    """The items in an order that depends only on the key; the standard shuffles change between Python versions."""
    return [items[i] for i in sorted(range(len(items)), key=lambda i: hashlib.sha256(f"{key}/{i}".encode()).digest())]


class Deck(Generic[T]):
    """Deals items in shuffled rounds, each item once per round."""

    def __init__(self, items: Sequence[T], key: str):
        if not items:
            raise ValueError(f"the deck {key} has no items")
        self._items, self._key = items, key
        self._dealt = 0
        self._round: list[T] = []

    def deal(self) -> T:
        """The next item."""
        place = self._dealt % len(self._items)
        if place == 0:
            self._round = shuffled(self._items, f"{SEED}/{self._key}/{self._dealt // len(self._items)}")
        self._dealt += 1
        return self._round[place]


@dataclass(frozen=True)
class Plan:
    """Number of rows of each kind in a split; the first `then_thanks` multi-turn rows end with thanks."""

    call: int
    calls: int
    multi_turn: int
    then_thanks: int
    refusal: int
    answer: int
    session: int


TRAIN_PLAN = Plan(call=20, calls=20, multi_turn=8, then_thanks=4, refusal=4, answer=4, session=252)
HELD_OUT_PLAN = Plan(call=31, calls=8, multi_turn=6, then_thanks=2, refusal=14, answer=14, session=0)

# A row starts with a system turn of 66 tokens. Several requests share it in one conversation, as they would at home, so
# the same number of tokens teaches more requests. Its calls are of two tools that this split may combine.
SESSIONS = (
    ("first", "second", "refusal"),
    ("both", "refusal"),
    ("second", "refusal", "first"),
    ("answer", "both"),
    ("both", "first"),
    ("refusal", "both"),
    ("result", "second"),
    ("second", "first", "answer"),
    ("both", "answer"),
    ("first", "both"),
    ("refusal", "first", "second"),
    ("second", "both"),
)
"""Requests of one conversation: first or second tool, both at once, a call with its result, a refusal, an answer."""

LONGEST_SESSION = 280
"""Maximum characters: longer conversations drop their last requests, so that all fill a row of tokens similarly."""


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
        self._split, self._plan, self._pools = split, plan, pools
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
        self._sessions = Deck(SESSIONS, f"{split}/session")

    def rows(self) -> list[dict[str, object]]:
        """The split's rows, shuffled and numbered. Raises ValueError if two rows have the same user turn."""
        plan = self._plan
        drafts = [("call", self._call(self._tools.deal())) for _ in range(plan.call)]
        drafts += [("calls", self._calls(self._pairs.deal())) for _ in range(plan.calls)]
        drafts += [("multi_turn", self._multi_turn(place < plan.then_thanks)) for place in range(plan.multi_turn)]
        drafts += [("refusal", self._refusal()) for _ in range(plan.refusal)]
        drafts += [("answer", self._answer()) for _ in range(plan.answer)]
        drafts += [("session", self._session()) for _ in range(plan.session)]
        turns_of_users = [m["content"] for _, messages in drafts for m in messages if m["role"] == "user"]
        asked = [text for text in turns_of_users if text not in self._pools.thanks]
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

    def _call(self, tool: str) -> list[Message]:
        text, call = self._request(tool)
        return turns(text, format_calls([call]))

    def _calls(self, pair: tuple[str, str]) -> list[Message]:
        calls = [Call(tool, self._values(tool)) for tool in pair]
        first, second = (fill(self._clauses[call.name].deal(), call.arguments) for call in calls)
        return turns(tie(self._joints.deal(), first=first, second=second), format_calls(calls))

    def _with_result(self, tool: str, may_fail: bool) -> list[Message]:
        text, call = self._request(tool)
        result, report = self._outcome(call, may_fail)
        reported = [{"role": "tool", "content": result}, {"role": "assistant", "content": report}]
        return turns(text, format_calls([call])) + reported

    def _multi_turn(self, then_thanks: bool) -> list[Message]:
        # Nobody thanks for a failure.
        found = self._with_result(self._tools.deal(), may_fail=not then_thanks)
        return found + turns(self._thanks.deal(), "You are welcome.") if then_thanks else found

    def _session(self) -> list[Message]:
        pair = self._pairs.deal()
        exchanges: dict[str, Callable[[], list[Message]]] = {
            "first": lambda: self._call(pair[0]),
            "second": lambda: self._call(pair[1]),
            "both": lambda: self._calls(pair),
            "result": lambda: self._with_result(pair[0], may_fail=True),
            "refusal": self._refusal,
            "answer": self._answer,
        }
        asked = [exchanges[kind]() for kind in self._sessions.deal()]
        while sum(len(message["content"]) for exchange in asked for message in exchange) > LONGEST_SESSION:
            asked.pop()
        return [message for exchange in asked for message in exchange]

    def _outcome(self, call: Call, may_fail: bool) -> tuple[str, str]:
        """A tool's result and the sentence that reports it."""
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
"""Reports for tools that only return whether they worked: (success, failure)."""


def turns(user: str, assistant: str) -> list[Message]:
    """A user turn and the assistant turn that answers it."""
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def fill(template: str, arguments: Arguments) -> str:
    """Fill a call's values into a template; a value at the start of a sentence is not capitalised."""
    day = str(arguments.get("day", ""))
    on_day = day if day in ("today", "tomorrow") else f"on {day}"
    return template.format(**arguments, on_day=on_day)


def tie(joint: str, **parts: str) -> str:
    """Fill clauses into a joint; a capitalised field name capitalises the clause."""
    capitals = {name.capitalize(): text[0].upper() + text[1:] for name, text in parts.items()}
    return joint.format(**parts, **capitals)


def files() -> dict[Path, str]:
    """Path -> full text of every shipped file."""
    train = Writer("train", TRAIN_PLAN, phrasings.TRAIN, values.TRAIN, answers.TRAIN)
    held_out = Writer("held-out", HELD_OUT_PLAN, held_out_phrasings.HELD_OUT, values.HELD_OUT, answers.HELD_OUT)
    return {TRAIN: "".join(_lines(train)), HELD_OUT: "".join(_lines(held_out))}


def _lines(writer: Writer) -> Iterator[str]:
    for row in writer.rows():
        yield json.dumps(row, ensure_ascii=False) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files, or compare them with `--check`; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m sft_jax.demonstrations.generate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a shipped file differs")
    check = parser.parse_args(arguments).check
    status = 0
    for path, text in files().items():
        # Bytes, so that the platform's encoding and line endings do not matter.
        content = text.encode("utf-8")
        if not check:
            path.write_bytes(content)
        elif not path.exists() or path.read_bytes() != content:
            print(f"{path} differs from what the generator writes. Run it without --check.", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
