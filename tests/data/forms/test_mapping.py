"""Records in people's own forms: what a field map and a function may say, and what is said of a wrong one."""

import sys
from pathlib import Path

import pytest

from sft_jax.data.forms.mapping import apply_function, load_function, parse_fields, rename
from sft_jax.data.read.rows import Record
from sft_jax.errors import BadInput, BadRow

KNOWN = ("prompt", "completion", "text")


def test_fields_are_renamed_also_from_within_objects_and_the_others_stay():
    paths = parse_fields(("prompt=question", " completion = answer.text "), KNOWN)
    assert paths == {"prompt": ("question",), "completion": ("answer", "text")}
    value = {"question": "q", "answer": {"text": "a", "score": 1}, "id": 3, "prompt": "not this"}
    assert rename(Record("f", 1, value), paths).value == {"id": 3, "prompt": "q", "completion": "a"}


def test_a_value_that_is_not_there_leaves_our_key_out():
    paths = parse_fields(("prompt=q.text",), KNOWN)
    for value in ({}, {"q": None}, {"q": "text"}, {"q": {"text": None}}, {"prompt": "own"}):
        assert "prompt" not in rename(Record("f", 1, value), paths).value


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        (("prompt",), "found 'prompt', expected OUR_KEY=YOUR_KEY"),
        (("=a",), "expected OUR_KEY=YOUR_KEY"),
        (("prompt=",), "expected OUR_KEY=YOUR_KEY"),
        (("prompt=a..b",), "expected OUR_KEY=YOUR_KEY"),
        (("promt=a",), "Did you mean 'prompt'?"),
        (("prompt=a", "prompt=b"), "'prompt' is given twice: a and b"),
    ],
)
def test_a_bad_map_is_refused(fields, part: str):
    with pytest.raises(BadInput) as caught:
        parse_fields(fields, KNOWN)
    assert part in str(caught.value) and "data.fields" in str(caught.value)


@pytest.fixture
def mine(tmp_path: Path) -> str:
    path = tmp_path / "mine.py"
    path.write_text(
        "class Mine(Exception):\n    pass\n"
        "def good(row):\n    row['new'] = 1\n    return row\n"
        "def nothing(row): return None\n"
        "def several(row): return [{}, {'a': 1}]\n"
        "def fails(row):\n    raise Mine('not this one')\n"
        "def number(row): return 3\n"
        "def listed(row): return [3]\n"
        "def nul(row): return {'text': 'a\\0'}\n"
    )
    return str(path)


def test_a_function_comes_from_a_file_or_a_module(mine: str, tmp_path: Path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    for spec in (f"{mine}:good", "mine:good"):
        record = Record("f", 1, {"a": 0})
        assert [r.value for r in apply_function(record, spec)] == [{"a": 0, "new": 1}]
        assert record.value == {"a": 0}, "the record itself stays as it was"
    assert apply_function(record, f"{mine}:nothing") == []
    assert [(r.where, r.value) for r in apply_function(record, f"{mine}:several")] == [("f:1", {}), ("f:1", {"a": 1})]
    sys.modules.pop("mine")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("fails", ("raised Mine: not this one", "mine.py:9")),
        ("number", ("returned a number", "a record (a dict)")),
        ("listed", ("returned a number",)),
        ("nul", ("returned a NUL character",)),
    ],
)
def test_a_function_that_fails_is_named_with_the_record(mine: str, name: str, parts):
    with pytest.raises(BadRow) as caught:
        apply_function(Record("demos.jsonl", 17, {}), f"{mine}:{name}")
    for part in ("demos.jsonl:17: ", f"{mine}:{name}", *parts):
        assert part in str(caught.value), str(caught.value)


def test_a_function_that_cannot_be_loaded_is_refused(mine: str, tmp_path: Path):
    (tmp_path / "broken.py").write_text("import nothing_of_this_name\n")
    for spec, part in (
        (mine, "expected path/to/file.py:name"),
        (f"{mine}:", "expected path/to/file.py:name"),
        (f"{mine}:goood", "has no function 'goood'. Did you mean 'good'?"),
        (f"{tmp_path}/none.py:f", "no such file"),
        (f"{tmp_path}/broken.py:f", "cannot be executed: ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("nothing_of_this_name.sub:f", "cannot be executed: ModuleNotFoundError"),
    ):
        with pytest.raises(BadInput) as caught:
            load_function(spec)
        assert part in str(caught.value) and "data.function" in str(caught.value), str(caught.value)
