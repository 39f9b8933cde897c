"""Whatever stands in a file, a reader ends, and what comes out besides demonstrations is a BadInput."""

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sft_jax.config import Data
from sft_jax.data.chat.encode import encode
from sft_jax.data.forms.formats import KEYS, KNOWN_KEYS, demonstrations
from sft_jax.data.forms.mapping import parse_fields, rename
from sft_jax.data.read.readers import read_rows
from sft_jax.data.read.rows import Record, Row, parse
from sft_jax.errors import BadInput, BadRow

FORMS = json.loads((Path(__file__).parents[1] / "forms.json").read_text(encoding="utf-8"))
ROWS = [row for form in FORMS.values() for row in form["rows"]]
QUICK, LONG = 300, 8000
"""Examples of each test: in `make test`, and in `make slow`."""


def bounded(examples: int) -> Any:
    return settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))


def lines(rows: list[Any]) -> bytes:
    return "\n".join(json.dumps(row) for row in rows).encode()


def parquet(rows: list[Any]) -> bytes:
    file, keys = io.BytesIO(), dict.fromkeys(key for row in rows for key in row)
    pq.write_table(pa.Table.from_pylist([{key: row.get(key) for key in keys} for row in rows]), file, row_group_size=2)
    return file.getvalue()


WRITE: dict[str, Callable[[list[Any]], bytes]] = {
    "jsonl": lines,
    "json": lambda rows: json.dumps(rows, indent=1).encode(),
    "jsonl.gz": lambda rows: gzip.compress(lines(rows)),
    "json.zst": lambda rows: zstandard.ZstdCompressor(write_checksum=False).compress(json.dumps({"d": rows}).encode()),
    "parquet": parquet,
}
TABLES = [  # rows of one schema
    FORMS["alpaca"]["rows"],
    [FORMS["messages"]["rows"][k] for k in (0, 3, 4)],
    FORMS["tokens"]["rows"][:2],
    FORMS["text"]["rows"],
]
PIECES = (
    *(b'"', b"\\", b"\\u0000", b"\\ud800", b"[", b"]", b"{", b"}", b",", b":", b"\n", b"\0", b"\xff", b"\xef\xbb\xbf"),
    *(b"NaN", b"1e999", b"null", b"-", b'"messages"', b'"text"'),
)


def run_through(path: Path) -> None:
    """Read, parse and understand a file as preparation does with bad_rows="skip"."""
    try:
        for row in read_rows((str(path),)):
            try:
                demonstrations(parse(row), Data())
            except BadRow as error:
                assert str(error).startswith(f"{path}:"), error
    except BadInput as error:
        assert str(path) in str(error)


def random_bytes(folder: Path, data: Any) -> None:
    end = data.draw(st.sampled_from(sorted(WRITE)))
    start = data.draw(
        st.sampled_from((b"", b"\xef\xbb\xbf", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"PAR1", b"[", b"{"))
    )
    middle = data.draw(st.one_of(st.binary(max_size=200), st.lists(st.sampled_from(PIECES)).map(b"".join)))
    path = folder / f"a.{end}"
    path.write_bytes(start + middle + data.draw(st.sampled_from((b"", b"PAR1", b"]"))))
    run_through(path)


def mutated_files(folder: Path, data: Any) -> None:
    end = data.draw(st.sampled_from(sorted(WRITE)))
    rows = data.draw(st.sampled_from(TABLES) if end == "parquet" else st.lists(st.sampled_from(ROWS), min_size=1))
    content = WRITE[end](rows)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content)))
        until = data.draw(st.integers(at, min(len(content), at + 40)))
        piece = data.draw(st.one_of(st.sampled_from((b"", *PIECES)), st.binary(max_size=4)))
        whole = data.draw(st.integers(0, 9)) > 0
        content = content[:at] + piece + (content[until:] if whole else b"")
    path = folder / f"b.{end}"
    path.write_bytes(content)
    run_through(path)


LEAVES = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    st.sampled_from(("user", "assistant", "tool", "human", "gpt", "function_call", "text", "reasoning", "tool_call")),
    st.sampled_from(("{}", "[]", '{"name": "f", "arguments": {}}', '[{"name": "f"}]', "[1", '{"a": 1, "a": 2}')),
)
WORDS = (
    *(
        "role",
        "content",
        "from",
        "value",
        "type",
        "text",
        "tool_calls",
        "function",
        "function_call",
        "name",
        "arguments",
    ),
    *("weight", "train", "loss_weight", "reasoning_content", "thinking", "input", "output", "tool_call"),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(WORDS), inner, max_size=4)),
    max_leaves=12,
)
SPEAKERS = st.sampled_from(("system", "user", "assistant", "tool", "function", "human", "gpt", "function_call"))
TURNS = st.lists(
    st.one_of(
        st.fixed_dictionaries({"role": SPEAKERS, "content": st.one_of(st.text(max_size=5), VALUES)}),
        st.fixed_dictionaries({"role": st.just("assistant"), "content": st.none(), "tool_calls": VALUES}),
        st.fixed_dictionaries({"from": SPEAKERS, "value": st.one_of(st.text(max_size=5), VALUES)}),
    ),
    max_size=4,
)
NUMBERS = st.lists(st.one_of(st.integers(-101, 300), st.floats(), st.booleans()), max_size=4)


def any_values(tokenizer: Any, data: Any) -> None:
    """Also what JSON cannot say and tables can."""
    keys = data.draw(st.sampled_from([[names[0] for names in need] for need in KEYS.values()]))
    kinds = st.one_of(VALUES, TURNS, NUMBERS, st.text(max_size=5))
    value = {key: data.draw(kinds) for key in keys} | data.draw(
        st.dictionaries(st.sampled_from(KNOWN_KEYS), kinds, max_size=2)
    )
    try:
        record = parse(Row("f", 1, value))
        if data.draw(st.booleans()):
            record = rename(record, parse_fields(("prompt=messages.content", "completion=text"), KNOWN_KEYS))
        found = demonstrations(record, Data())
    except BadRow as error:
        assert str(error).startswith("f:1")
        return
    for one in found:
        try:
            encoded = encode("f:1", one, tokenizer, "assistant")
        except BadInput as error:
            assert str(error).startswith("f:1")
        else:
            assert len(encoded.tokens) == len(encoded.weights) and (encoded.weights >= 0).all()


@bounded(QUICK)
@given(data=st.data())
def test_random_bytes_are_refused_or_read(tmp_path_factory, data):
    random_bytes(tmp_path_factory.getbasetemp(), data)


@bounded(QUICK)
@given(data=st.data())
def test_mutated_files_are_refused_or_read(tmp_path_factory, data):
    mutated_files(tmp_path_factory.getbasetemp(), data)


@bounded(2 * QUICK)
@given(data=st.data())
def test_any_values_under_the_keys_of_every_form_are_refused_or_encoded(make_tokenizer, templates, data):
    any_values(make_tokenizer(templates.CHATML_THINKS), data)


@pytest.mark.slow
@pytest.mark.long
@bounded(LONG)
@given(data=st.data())
def test_the_same_for_longer(tmp_path_factory, make_tokenizer, templates, data):
    folder = tmp_path_factory.getbasetemp()
    random_bytes(folder, data)
    mutated_files(folder, data)
    any_values(make_tokenizer(templates.CHATML_THINKS), data)


def test_the_files_that_are_mutated_are_read_as_long_as_nobody_touches_them(tmp_path: Path):
    for end, write in WRITE.items():
        for rows in TABLES if end == "parquet" else [ROWS]:
            path = tmp_path / f"a.{end}"
            path.write_bytes(write(rows))
            found = [demonstrations(parse(row), Data()) for row in read_rows((str(path),))]
            assert len(found) == len(rows) and all(found)


def test_a_record_is_no_deeper_than_recursion_reaches():
    value: Any = "x"
    for _ in range(99):
        value = [value]
    with pytest.raises(BadRow):
        demonstrations(Record("f", 1, {"messages": value}), Data())
