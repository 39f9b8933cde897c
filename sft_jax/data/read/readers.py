"""Streams the rows of files and datasets, one row in memory at a time."""

import json
from collections.abc import Collection, Iterator
from itertools import islice
from typing import BinaryIO

from sft_jax.data.read import sources
from sft_jax.data.read.json_array import read_array
from sft_jax.data.read.rows import ROW_LIMIT, Record, Row, parse
from sft_jax.errors import BadInput

BOM = b"\xef\xbb\xbf"
_MAGIC = {
    b"\x1f\x8b": "is gzip-compressed: its name must end in .gz",
    b"\x28\xb5\x2f\xfd": "is Zstandard-compressed: its name must end in .zst",
    b"PAR1": "is a Parquet file: its name must end in .parquet",
    b"ARROW1": "is an Arrow file: pass the directory written by save_to_disk, or convert the file to Parquet",
    b"\xff\xfe": "is UTF-16, expected UTF-8. Convert it: iconv -f UTF-16 -t UTF-8",
    b"\xfe\xff": "is UTF-16, expected UTF-8. Convert it: iconv -f UTF-16 -t UTF-8",
}
"""Magic bytes of files that are not UTF-8 text."""


def read_records(patterns: tuple[str, ...]) -> Iterator[Record]:
    """The records of every file and dataset in `patterns`, in the order given.

    Raises:
      BadInput: as `read_rows`, and as `parse` for the first bad row.
    """
    return map(parse, read_rows(patterns))


def read_rows(patterns: tuple[str, ...], start: int = 0, wanted: Collection[str] | None = None) -> Iterator[Row]:
    """The rows of every file and dataset in `patterns`, starting at row `start` (0-based, over all of them).

    Blank lines are skipped. Errors in a single row are raised later, by `parse`.

    Args:
      wanted: columns of tables that may be read (`forms.detect.columns_read`); None reads all.

    Raises:
      BadInput: a file is missing, unreadable, truncated, empty, or not of the kind that its name implies.
    """
    return islice((row for name in sources.find_files(patterns) for row in _rows_of(name, wanted)), start, None)


def _rows_of(name: str, wanted: Collection[str] | None) -> Iterator[Row]:
    empty = True
    with sources.reading(name):
        for row in _reader(name, wanted):
            empty = False
            yield row
    if empty:
        raise BadInput(f"{name}: has no rows, expected at least one")


def _reader(name: str, wanted: Collection[str] | None) -> Iterator[Row]:
    # Import lazily: pyarrow and TFDS are slow to import.
    if name.startswith("tfds://"):
        from sft_jax.data.read.tfds_source import read_tfds

        return read_tfds(name, wanted)
    if name.startswith("hf://"):
        from sft_jax.data.read.hub import read_hub

        return read_hub(name, wanted)
    kind = sources.kind(name)
    if kind == ".parquet":
        from sft_jax.data.read.tables import read_parquet

        return read_parquet(name, wanted)
    if not kind:
        from sft_jax.data.read.tables import read_saved

        return read_saved(name, wanted)
    return _read_json(name, kind)


def _read_json(name: str, kind: str) -> Iterator[Row]:
    with sources.open_file(name) as file:
        head = file.read(6)
        for magic, problem in _MAGIC.items():
            if head.startswith(magic):
                raise BadInput(f"{name}: {problem}")
        if b"\0" in head[:4].lstrip(b"\0") or (head and not head.strip(b"\0")):
            raise BadInput(f"{name}: contains NUL bytes (UTF-16 or binary), expected UTF-8. Convert it with iconv")
        offset = len(BOM) if head.startswith(BOM) else 0
        rows = read_lines if kind == ".jsonl" or _holds_lines(name) else read_array
        yield from rows(name, file, head[offset:], offset)


def _holds_lines(name: str) -> bool:
    """Whether a .json file is really JSON Lines: a complete object on the first line, followed by another one."""
    with sources.open_file(name) as file:
        first = file.readline(ROW_LIMIT)
        if not first.removeprefix(BOM).startswith(b"{") or not first.endswith(b"\n"):
            return False
        try:
            json.loads(first.removeprefix(BOM))
        except ValueError:
            return False
        while rest := file.readline(2**16):
            if rest.strip():
                return rest.lstrip().startswith(b"{")
        return False


def read_lines(source: str, file: BinaryIO, head: bytes, offset: int) -> Iterator[Row]:
    """One row per line; blank lines are skipped.

    Args:
      head: bytes already read from `file`.
      offset: offset of `head` in the file.

    Raises:
      BadInput: the file is empty, or an array instead of lines.
    """
    first, number = True, 0
    for number, raw in enumerate(_lines(file, head), start=1):
        if raw.strip():
            if first and raw.lstrip()[:1] == b"[":
                raise BadInput(
                    f"{source}:{number}: begins with a list, expected one JSON object per line. Files with a "
                    "top-level array must end in .json: rename it."
                )
            first = False
            if len(raw) > ROW_LIMIT:
                size = len(raw)
                while not raw.endswith(b"\n") and (raw := file.readline(2**20)):
                    size += len(raw)
                problem = f"the line has {size:,} bytes, limit {ROW_LIMIT:,}. Are line breaks missing?"
                yield Row(source, number, b"", offset, problem)
                offset += size
                continue
            yield Row(source, number, raw, offset)
        offset += len(raw)
    if first:
        raise BadInput(f"{source}: the file is empty ({offset} bytes), expected one JSON object per line")


def _lines(file: BinaryIO, head: bytes) -> Iterator[bytes]:
    while b"\n" in head:
        line, _, head = head.partition(b"\n")
        yield line + b"\n"
    line = head + file.readline(ROW_LIMIT + 1)
    while line:
        yield line
        line = file.readline(ROW_LIMIT + 1)
