import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sft_jax.demonstrations import HELD_OUT, TRAIN, generate, held_out_phrasings, phrasings, values
from sft_jax.demonstrations.house_style import REFUSAL, SYSTEM, TOOLS, Call, check_turn, in_register, parse_calls

Row = dict[str, Any]


def read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


TRAIN_ROWS, HELD_OUT_ROWS = read(TRAIN), read(HELD_OUT)
ALL_ROWS = TRAIN_ROWS + HELD_OUT_ROWS


def said(row: Row, role: str) -> list[str]:
    return [message["content"] for message in row["messages"] if message["role"] == role]


def calls_of(row: Row) -> list[Call]:
    return [call for text in said(row, "assistant") for call in parse_calls(text)]


def trigrams(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"[\w']+", text.lower())
    # A text shorter than three words is its own n-gram, so that it can be found again.
    return {tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2))}


def words_of(text: str) -> str:
    return " " + " ".join(re.findall(r"[\w:]+", text.lower())) + " "


def test_the_shipped_files_are_what_the_generator_writes() -> None:
    assert generate.main(["--check"]) == 0


def test_check_fails_when_a_file_differs_and_writing_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train, held_out = tmp_path / "train.jsonl", tmp_path / "held_out.jsonl"
    monkeypatch.setattr(generate, "TRAIN", train)
    monkeypatch.setattr(generate, "HELD_OUT", held_out)
    assert generate.main(["--check"]) == 1
    assert generate.main([]) == 0
    assert generate.main(["--check"]) == 0
    assert train.read_bytes() == TRAIN.read_bytes()
    held_out.write_bytes(held_out.read_bytes()[:-1])
    capsys.readouterr()
    assert generate.main(["--check"]) == 1
    assert str(held_out) in capsys.readouterr().err


def test_the_order_depends_on_the_key_alone() -> None:
    # Literal, so that a change of Python cannot change the files unseen.
    assert generate.shuffled("abcdefgh", "key") == list("cbfgadhe")
    assert sorted(generate.shuffled("abcdefgh", "other")) == list("abcdefgh")


def test_a_repeated_user_turn_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate.answers, "TRAIN", generate.answers.TRAIN[:3])
    with pytest.raises(ValueError, match="user turns repeat"):
        generate.files()


def test_the_kinds_have_their_shares() -> None:
    train, held_out = (Counter(row["kind"] for row in rows) for rows in (TRAIN_ROWS, HELD_OUT_ROWS))
    assert len(TRAIN_ROWS) >= 300 and 64 <= len(HELD_OUT_ROWS) <= 80
    assert train.keys() == held_out.keys() | {"session"}
    assert held_out["call"] + held_out["calls"] + held_out["multi_turn"] >= 40
    assert held_out["refusal"] >= 12 and held_out["answer"] >= 12
    answers = [text for row in TRAIN_ROWS for text in said(row, "assistant")]
    calls = sum(bool(parse_calls(text)) for text in answers) / len(answers)
    refusals = answers.count(REFUSAL) / len(answers)
    assert 0.6 <= calls <= 0.75 and 0.1 <= refusals <= 0.2 and 1 - calls - refusals >= 0.1


def test_ids_are_numbered_and_no_user_text_comes_twice() -> None:
    for rows, split in ((TRAIN_ROWS, "train"), (HELD_OUT_ROWS, "held-out")):
        assert [row["id"] for row in rows] == [f"{split}-{number:04d}" for number in range(1, len(rows) + 1)]
    thanks = {*values.TRAIN.thanks, *values.HELD_OUT.thanks}
    texts = [text.lower() for row in ALL_ROWS for text in said(row, "user") if text not in thanks]
    assert len(set(texts)) == len(texts)


def test_every_row_has_the_turns_and_the_style_of_its_kind() -> None:
    for row in ALL_ROWS:
        name = row["id"]
        assert list(row) == ["id", "kind", "messages"], name
        roles = [message["role"] for message in row["messages"]]
        assert said(row, "system") == [SYSTEM], name
        for text in said(row, "assistant"):
            check_turn(text)
            assert parse_calls(text) or in_register(text), name
        first = said(row, "assistant")[0]
        if row["kind"] == "multi_turn":
            assert roles[:5] == ["system", "user", "assistant", "tool", "assistant"], name
            assert roles[5:] in ([], ["user", "assistant"]), name
            assert isinstance(json.loads(said(row, "tool")[0]), dict), name
            assert len(parse_calls(first)) == 1 and in_register(said(row, "assistant")[1]), name
        elif row["kind"] == "session":
            asked = roles[1:]
            if "tool" in asked:  # a result and its report follow the call they are of
                place = asked.index("tool")
                assert asked[place + 1] == "assistant" and parse_calls(row["messages"][place]["content"]), name
                del asked[place : place + 2]
            assert asked == ["user", "assistant"] * (len(asked) // 2), name
        else:
            assert roles == ["system", "user", "assistant"], name
            assert len(parse_calls(first)) == {"call": 1, "calls": 2}.get(row["kind"], 0), name
            assert (first == REFUSAL) == (row["kind"] == "refusal"), name


def test_every_argument_stands_verbatim_in_the_user_text() -> None:
    for row in ALL_ROWS:
        asked = " ".join(said(row, "user"))
        for call in calls_of(row):
            for value in call.arguments.values():
                assert re.search(rf"(?<!\w){re.escape(str(value))}(?!\w)", asked), (row["id"], value)


def test_no_article_disagrees_with_its_noun() -> None:
    texts = [text for row in ALL_ROWS for text in said(row, "user") + said(row, "assistant")]
    # Every value in every template, so that no change of the seed can bring a wrong one to light.
    for language, pools in ((phrasings.TRAIN, values.TRAIN), (held_out_phrasings.HELD_OUT, values.HELD_OUT)):
        for templates in (*language.sentences.values(), *language.clauses.values()):
            for template in templates:
                for name, pool in pools.arguments.items():
                    others = {other: f"<{other}>" for other in pools.arguments}
                    texts += [generate.fill(template, others | {name: value}) for value in pool]
    for text in texts:
        assert not re.search(r"\ba [aeiou]|\ban (?!hour)[^aeiou]|\ba (8|11|18|8\d)\b", text, re.IGNORECASE), text


def test_every_tool_has_its_phrasings_and_every_one_is_used() -> None:
    for tool in TOOLS:
        assert len(set(phrasings.TRAIN.sentences[tool])) >= 18
        turns = [parse_calls(text) for row in TRAIN_ROWS for text in said(row, "assistant")]
        made = [calls for calls in turns if [call.name for call in calls] == [tool]]
        assert len(made) >= len(phrasings.TRAIN.sentences[tool])


def test_no_template_is_shared_between_the_splits() -> None:
    train, held_out = (
        {text for templates in (*lang.sentences.values(), *lang.clauses.values()) for text in templates}
        | {*lang.joints, *lang.refusal_frames}
        for lang in (phrasings.TRAIN, held_out_phrasings.HELD_OUT)
    )
    assert not train & held_out


def test_no_held_out_row_is_a_near_duplicate_of_a_training_row() -> None:
    """Nor of any one turn of it: in a conversation of several requests a copied one would hide."""
    known = [(row["id"], trigrams(" ".join(said(row, "user")))) for row in TRAIN_ROWS]
    known += [(row["id"], trigrams(text)) for row in TRAIN_ROWS for text in said(row, "user")]
    for row in HELD_OUT_ROWS:
        mine = trigrams(" ".join(said(row, "user")))
        nearest, name = max((len(mine & other) / len(mine | other), name) for name, other in known)
        assert nearest < 0.5, (row["id"], name, nearest)


def test_no_held_out_value_occurs_in_a_training_row() -> None:
    trained = [words_of(" ".join(said(row, "user") + said(row, "assistant"))) for row in TRAIN_ROWS]
    known = {value for row in TRAIN_ROWS for call in calls_of(row) for value in call.arguments.values()}
    known |= {value for row in TRAIN_ROWS for text in said(row, "tool") for value in json.loads(text).values()}
    for row in HELD_OUT_ROWS:
        for call in calls_of(row):
            for value in call.arguments.values():
                assert value not in known, value
                if isinstance(value, str):
                    assert not any(words_of(value) in text for text in trained), value


def test_no_held_out_pair_of_tools_occurs_in_a_training_row() -> None:
    trained, held_out = (
        {frozenset(names) for row in rows if len(names := {call.name for call in calls_of(row)}) > 1}
        for rows in (TRAIN_ROWS, HELD_OUT_ROWS)
    )
    assert held_out and trained and not trained & held_out
    assert all(len(pair) == 2 for pair in trained | held_out)


def test_no_held_out_errand_or_question_is_trained() -> None:
    assert not set(values.TRAIN.errands) & set(values.HELD_OUT.errands)
    assert not {question for question, _ in generate.answers.TRAIN} & {q for q, _ in generate.answers.HELD_OUT}
