"""Parquet files and saved datasets give the rows that JSON would, a few at a time."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sft_jax.config import Data
from sft_jax.data.forms.detect import columns_read
from sft_jax.data.forms.formats import demonstrations
from sft_jax.data.read.readers import read_records, read_rows
from sft_jax.data.read.rows import parse
from sft_jax.data.read.sources import find_files
from sft_jax.errors import BadInput, BadRow

FORMS = json.loads((Path(__file__).parents[1] / "forms.json").read_text(encoding="utf-8"))
CHAT = [
    {"id": "a", "messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a", "weight": 1}]},
    {
        "messages": [
            {"role": "user", "content": "u"},
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
        ]
    },
]
"""Rows that lack what the others have: a table makes it null."""


def saved(folder: Path, rows: list[dict[str, Any]] | pa.Table) -> str:
    """What `datasets.Dataset.save_to_disk` writes, two files of it."""
    folder.mkdir()
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows)
    names = []
    for k, part in enumerate((table.slice(0, 1), table.slice(1))):
        names.append(f"data-{k:05}-of-00002.arrow")
        with pa.ipc.new_stream(folder / names[-1], table.schema) as stream:
            stream.write_table(part)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")
    return str(folder)


def refused(name: str, *parts: str) -> None:
    with pytest.raises(BadInput) as caught:
        list(read_records((name,)))
    for part in (name, *parts):
        assert part in str(caught.value), str(caught.value)


def test_rows_of_a_parquet_file_are_numbered_over_its_row_groups_and_lose_the_tables_nulls(tmp_path: Path):
    path = str(tmp_path / "a.parquet")
    pq.write_table(pa.Table.from_pylist(CHAT * 300), path, row_group_size=7)
    records = list(read_records((path,)))
    assert [record.value for record in records] == CHAT * 300
    assert [record.line for record in records] == list(range(1, 601))


def test_a_saved_data_set_is_read_file_after_file(tmp_path: Path):
    folder = saved(tmp_path / "set", CHAT * 300)
    assert find_files((folder,)) == [folder]
    records = list(read_records((folder,)))
    assert [record.value for record in records] == CHAT * 300
    assert [record.line for record in records] == list(range(1, 601))


def test_what_the_datasets_library_saves_is_read(tmp_path: Path):
    folder = str(tmp_path / "set")
    datasets.disable_progress_bars()
    rows = datasets.Dataset.from_list(CHAT).select([1, 0])
    rows.save_to_disk(folder)
    assert [record.value for record in read_records((folder,))] == [CHAT[1], CHAT[0]]
    datasets.DatasetDict(train=rows, test=rows).save_to_disk(str(tmp_path / "both"))
    refused(str(tmp_path / "both"), "the splits test, train", f"Pass one of them: {tmp_path / 'both'}/test")


@pytest.mark.parametrize("form", sorted(FORMS))
def test_every_form_means_the_same_in_a_table(tmp_path: Path, form: str):
    for k, row in enumerate(FORMS[form]["rows"]):
        try:
            table = pa.Table.from_pylist([row])
        except pa.ArrowInvalid:
            continue  # text beside a list of parts: no table holds that
        path = str(tmp_path / f"{k}.parquet")
        pq.write_table(table, path)
        from_table, from_json = (
            [_plain(one) for r in read_records((name,)) for one in demonstrations(r, Data())]
            for name in (path, _json(tmp_path / f"{k}.json", row))
        )
        assert from_table == from_json != []


def _plain(demonstration: Any) -> dict[str, Any]:
    fields = dataclasses.asdict(demonstration) | {"id": ""}
    return {key: value.tolist() if hasattr(value, "tolist") else value for key, value in fields.items()}


def _json(path: Path, row: object) -> str:
    path.write_text(json.dumps([row]))
    return str(path)


def test_a_damaged_table_is_refused(tmp_path: Path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(CHAT * 100), path)
    path.write_bytes(path.read_bytes()[:-20])
    refused(str(path), "not a valid Parquet file")
    pq.write_table(pa.Table.from_pylist(CHAT).slice(0, 0), path)
    refused(str(path), "has no rows")


def test_a_damaged_saved_data_set_is_refused(tmp_path: Path):
    folder = Path(saved(tmp_path / "set", CHAT))
    arrow = folder / "data-00001-of-00002.arrow"
    whole = arrow.read_bytes()
    arrow.write_bytes(whole[: len(whole) // 2])
    refused(str(folder), "not a valid Arrow file")
    arrow.unlink()
    refused(str(folder), "No such file")
    (folder / "state.json").write_text("{}")
    refused(str(folder), "state.json", "Save it again")


def test_a_large_row_group_is_not_held_in_memory(tmp_path: Path):
    import tracemalloc

    path = str(tmp_path / "a.parquet")
    pq.write_table(
        pa.table({"text": [f"{k} " + "x" * 10_000 for k in range(10_000)]}),
        path,
        use_dictionary=False,
        compression="none",
    )
    before = pa.total_allocated_bytes()
    peak = 0
    tracemalloc.start()
    for record in read_records((path,)):
        peak = max(peak, pa.total_allocated_bytes() - before)
        assert record.value
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak + held < 40 * 2**20, f"{peak:,} + {held:,} bytes of 100 MB"


def test_a_text_that_is_no_utf8_is_refused_with_its_rows(tmp_path):
    """Parquet and Arrow keep the bytes of texts unchecked."""
    texts = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"ok\x80")]
    )
    path = tmp_path / "broken.parquet"
    pq.write_table(pa.table({"text": texts}), path)
    first, second = read_records((str(path),))
    assert first.value == {"text": "ok"} and demonstrations(first, Data())
    with pytest.raises(BadRow, match=r"broken\.parquet:2: column 'text': a value \(string\) is not valid UTF-8"):
        demonstrations(second, Data())


def _json_column(values: list[Any]) -> pa.Array:
    texts = [None if value is None else json.dumps(value[0]) for value in values]
    return pa.ExtensionArray.from_storage(pa.json_(), pa.array(texts, pa.string()))


def _with_json(values: list[Any]) -> pa.Table:
    """Json columns as they come from the datasets library: alone, in a struct, and in a list of structs."""
    column = _json_column(values)
    struct = pa.StructArray.from_arrays([column, pa.array(["x"] * len(values))], ["default", "type"])
    nested = pa.ListArray.from_arrays(pa.array(range(len(values) + 1), pa.int32()), struct)
    return pa.table({"text": ["t"] * len(values), "system": column, "tools": struct, "history": nested})


JSON_VALUES = [(0,), ("up",), (["a", {"b": None}],), (None,), None]
"""Each in a tuple; None is a value that is not there."""


@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_json_columns_are_their_values_wherever_they_stand(tmp_path: Path, kind: str):
    table = _with_json(JSON_VALUES)
    name = str(tmp_path / "a.parquet")
    if kind == "parquet":
        pq.write_table(table, name)
    else:
        name = saved(tmp_path / "set", table)
    for record, value in zip(read_records((name,)), JSON_VALUES, strict=True):
        here = {} if value is None else {"default": value[0]}
        assert record.value == {
            "text": "t",
            **({} if value is None else {"system": value[0]}),
            "tools": {**here, "type": "x"},
            "history": [{**here, "type": "x"}],
        }


def test_what_the_datasets_library_keeps_as_json_comes_back(tmp_path: Path):
    rows = [{"text": "t", "tools": [{"default": value}]} for value in (0, "up", ["a"])]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    datasets.disable_progress_bars()
    made = datasets.load_dataset("json", data_files=str(tmp_path / "a.jsonl"), split="train", cache_dir=str(tmp_path))
    made.to_parquet(str(tmp_path / "a.parquet"))
    made.save_to_disk(str(tmp_path / "set"))
    for name in ("a.jsonl", "a.parquet", "set"):
        assert [record.value for record in read_records((str(tmp_path / name),))] == rows


def test_other_extension_types_are_what_they_are_stored_as(tmp_path: Path):
    stored = pa.array([b"0123456789abcdef", None], pa.binary(16))
    column = pa.ExtensionArray.from_storage(pa.uuid(), stored)
    table = pa.table({"text": column, "id": pa.StructArray.from_arrays([column], ["u"])})
    pq.write_table(table, tmp_path / "a.parquet")
    first, second = read_records((str(tmp_path / "a.parquet"),))
    assert first.value == {"text": "0123456789abcdef", "id": {"u": "0123456789abcdef"}}
    assert second.value == {"id": {}}


def test_json_text_that_is_none_is_a_problem_of_its_column(tmp_path: Path):
    column = pa.ExtensionArray.from_storage(pa.json_(), pa.array(["{"]))
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    [record] = read_records((str(tmp_path / "a.parquet"),))
    with pytest.raises(BadRow, match=r"a\.parquet:1: column 'text': "):
        demonstrations(record, Data())


def _odd_columns(tmp_path: Path, kind: str) -> str:
    table = pa.table(
        {
            "b": pa.array([b"\xff", b"a"]),
            "question": pa.array(["q1", "q2"]).dictionary_encode(),
            "answer": pa.array(["a1", "a2"], pa.large_string()),
            "m": pa.array([[("k", "v")], None], pa.map_(pa.string(), pa.string())),
            "score": pa.array([float("nan"), 1.0]),
        }
    )
    if kind == "saved":
        return saved(tmp_path / "set", table)
    pq.write_table(table, tmp_path / "a.parquet")
    return str(tmp_path / "a.parquet")


@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_columns_that_no_form_reads_are_not_decoded_but_told(tmp_path: Path, kind: str):
    name, data = _odd_columns(tmp_path, kind), Data()
    rows = list(read_rows((name,), wanted=columns_read(data)))
    assert [row.value for row in rows] == [{"question": f"q{k}", "answer": f"a{k}"} for k in (1, 2)]
    assert {row.unread for row in rows} == {("b", "m", "score")}
    assert all(demonstrations(parse(row), data) for row in rows)


@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_whoever_reads_all_columns_is_not_stopped_by_one_that_the_form_does_not_read(tmp_path: Path, kind: str):
    name = _odd_columns(tmp_path, kind)
    first, _ = read_records((name,))
    assert demonstrations(first, Data()) and first.value["b"] == b"\xff"
    (tmp_path / "mine.py").write_text("def f(row): return {'text': row['question'] + row['b'].hex()}")
    assert demonstrations(first, Data(function=f"{tmp_path}/mine.py:f"))[0].text == "q1ff"
    with pytest.raises(BadRow, match=r":1: column 'b': a value \(binary\) is not valid UTF-8: byte 0xff"):
        demonstrations(first, Data(fields=("text=b",)))
