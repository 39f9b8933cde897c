"""Readers: which rows a file gives, and what is said of a file that cannot be read."""

import gzip
import json
import pickle
from pathlib import Path

import pytest
import zstandard

from sft_jax.data.read import readers
from sft_jax.data.read.readers import read_records, read_rows
from sft_jax.data.read.rows import parse
from sft_jax.errors import BadInput, BadRow

ROWS = [{"text": "a"}, {"text": "é\nb"}, {"text": "c" * 3000}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
GZIPPED = gzip.compress(LINES, mtime=0)  # a test is named by its bytes, and has one name in every worker


def refused(path: object, *expected: str) -> None:
    with pytest.raises(BadInput) as caught:
        list(read_records((str(path),)))
    for part in (str(path), *expected):
        assert part in str(caught.value), str(caught.value)


def test_each_record_knows_its_file_and_line_and_blank_lines_are_skipped(tmp_path: Path):
    path = tmp_path / "demos.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\n{"text": "b"}')
    records = list(read_records((str(path),)))
    assert [r.where for r in records] == [f"{path}:1", f"{path}:3"]
    assert [r.value["text"] for r in records] == ["a", "b"]


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.json", "a.json.gz", "a.JSON.ZST"])
def test_compressed_or_not_lines_or_array_the_records_are_the_same(tmp_path: Path, name: str, bom: bytes):
    content = bom + (LINES if "jsonl" in name else json.dumps(ROWS).encode())
    if name.endswith("gz"):
        content = gzip.compress(content[:20]) + gzip.compress(content[20:])
    elif name.lower().endswith("zst"):
        compress = zstandard.ZstdCompressor().compress
        content = compress(content[:20]) + compress(content[20:])
    path = tmp_path / name
    path.write_bytes(content)
    assert [record.value for record in read_records((str(path),))] == ROWS


def test_rows_are_small_can_be_sent_to_another_process_and_know_their_byte_offset(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + LINES)
    rows = list(read_rows((str(path),)))
    content = path.read_bytes()
    assert all(content[row.offset :].startswith(row.value) for row in rows)
    assert [parse(pickle.loads(pickle.dumps(row))).value for row in rows] == ROWS


def test_reading_can_start_at_any_row_over_all_files(tmp_path: Path, jsonl):
    files = (jsonl(ROWS, "b.jsonl"), jsonl(ROWS[:2], "a.jsonl"))
    whole = list(read_rows(files))
    for start in range(7):
        assert list(read_rows(files, start)) == whole[start:]
    assert [(row.source, row.line) for row in read_rows(files, 3)] == [(files[1], 1), (files[1], 2)]


def test_a_bad_row_does_not_end_the_reading_of_the_rows_after_it(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(readers, "ROW_LIMIT", 1000)
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINES + b'{"text": NaN}\n' + b'{"text": "z"}\n')
    good, bad = [], []
    for row in read_rows((str(path),)):
        assert path.read_bytes()[row.offset :].startswith(row.value)
        try:
            good.append(parse(row).value)
        except BadRow as error:
            bad.append(str(error))
    assert good == [*ROWS[:2], {"text": "z"}]
    assert bad[0] == f"{path}:3: the line has 3,013 bytes, limit 1,000. Are line breaks missing?"
    assert "a.jsonl:4:1: not usable JSON: NaN" in bad[1]


def test_a_file_without_line_ends_is_not_held_in_memory(tmp_path: Path, monkeypatch):
    import tracemalloc

    monkeypatch.setattr(readers, "ROW_LIMIT", 2**20)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"x" * 2**26)
    tracemalloc.start()
    [row] = read_rows((str(path),))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "67,108,864 bytes" in row.problem and peak < 8 * 2**20, f"{peak:,} bytes"


def test_an_empty_file_is_refused(tmp_path: Path):
    for name, content in (("a.jsonl", b""), ("b.jsonl", b"\n \n"), ("c.jsonl", b"\xef\xbb\xbf"), ("d.json", b" ")):
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, "empty", "expected")
    (tmp_path / "e.json").write_bytes(b"[ ]")
    refused(tmp_path / "e.json", "has no rows")


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.jsonl", b'[{"text": "a"}]\n', (":1:", "begins with a list", "end in .json")),
        ("a.jsonl", '{"text": "a"}'.encode("utf-16"), ("UTF-16", "iconv")),
        ("a.jsonl", '{"text": "a"}'.encode("utf-16-le"), ("NUL bytes", "UTF-8")),
        ("a.jsonl", b"\0" * 100, ("NUL bytes",)),
        ("a.jsonl", GZIPPED, ("gzip", ".gz")),
        ("a.json", zstandard.ZstdCompressor().compress(LINES), ("Zstandard", ".zst")),
        ("a.jsonl", b"PAR1....", ("Parquet", ".parquet")),
        ("a.jsonl.gz", LINES, ("damaged or truncated", "Not a gzipped file")),
        ("a.jsonl.gz", GZIPPED[:-12], ("truncated",)),
        ("a.jsonl.zst", LINES, ("damaged or truncated",)),
        ("a.jsonl.zst", zstandard.ZstdCompressor().compress(LINES)[:-5], ("truncated", "incomplete")),
        ("a.jsonl.zst", zstandard.ZstdCompressor(write_checksum=True).compress(LINES)[:-1] + b"!", ("damaged",)),
        ("a.parquet", b"PAR1....", ("Parquet",)),
        ("a.parquet", LINES, ("Parquet",)),
    ],
)
def test_a_file_that_is_not_what_its_name_says_or_is_cut_off_is_refused(tmp_path: Path, name, content, parts):
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, *parts)


@pytest.mark.parametrize("kept", [-2, -100, -3004, LINES.index(b"\xc3") + 1])
def test_a_last_line_that_is_cut_off_is_said_to_be(tmp_path: Path, kept: int):
    (tmp_path / "a.jsonl").write_bytes(LINES[:kept])
    refused(tmp_path / "a.jsonl", "not valid", "may be truncated, since it does not end with a newline")


def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path, jsonl, monkeypatch):
    from etils import epath

    def deny(self, *_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(epath.Path("x")), "open", deny)
    refused(jsonl(ROWS), "cannot be read: Permission denied", "permissions")


def test_a_read_that_fails_half_way_is_no_end_of_the_data(tmp_path: Path, jsonl, monkeypatch):
    def failing(source, file, head, offset):
        yield from readers.read_array(source, file, head, offset)
        raise OSError(5, "Input/output error")

    path = tmp_path / "a.jsonl"
    path.write_text("[]")
    monkeypatch.setattr(readers, "read_lines", failing)
    refused(path, "Input/output error")


def test_a_large_file_is_read_in_little_memory(tmp_path: Path):
    """Not the 5 GB that people have, but more than may be held: rows of 1 MB, 100 of them, in 12 MB."""
    import tracemalloc

    for name, start, join, end in (("a.jsonl", b"", b"\n", b"\n"), ("a.json", b"[", b",\n", b"]")):
        row = json.dumps({"text": "x" * 2**20}).encode()
        with (tmp_path / name).open("wb") as file:
            file.write(start + row)
            for _ in range(99):
                file.write(join + row)
            file.write(end)
        tracemalloc.start()
        count = sum(len(record.value["text"]) for record in read_records((str(tmp_path / name),)))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert count == 100 * 2**20
        assert peak < 12 * 2**20, f"{peak:,} bytes"
