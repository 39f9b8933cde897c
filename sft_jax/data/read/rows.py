"""A raw row, and the record it is parsed into."""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sft_jax.data.read import strict_json
from sft_jax.errors import BadRow

ROW_LIMIT = 64 * 2**20
"""Maximum bytes of a JSON row. Real rows are shorter; a file without line breaks is not."""

_TABLE_ROW_BYTES = 4096
"""Assumed size of a table row, whose JSON size is not known in advance."""
_CUT = ", or copy it again: the file may be truncated, since it does not end with a newline"


class Row(NamedTuple):
    """An unparsed row, cheap to create and to send to another process."""

    source: str
    """File name as given by the user or matched by the glob."""
    line: int
    """Line number in a text file, row number in a table; starts at 1."""
    value: bytes | dict[str, Any]
    """Raw JSON, or the values of a table row."""
    offset: int = 0
    """Byte offset of `value` in the (uncompressed) file."""
    problem: str = ""
    """Why the row could not be read; `parse` raises it."""
    unread: tuple[str, ...] = ()
    """Table columns that no form reads; not in `value`."""


class JsonText(str):
    """A table value stored as JSON text."""

    __slots__ = ()


class Undecodable(NamedTuple):
    """Placeholder for a table value that cannot be converted to Python."""

    problem: str


@dataclass(frozen=True)
class Record:
    """A parsed row and its location."""

    source: str
    line: int
    value: dict[str, Any]
    problems: Mapping[str, str] = field(default_factory=dict)
    """Keys with unusable values, and why; an error only if the key is read."""

    @property
    def where(self) -> str:
        """`demos.jsonl:17`, as used in messages."""
        return f"{self.source}:{self.line}"


def cut(rows: Iterable[Row], most_rows: int, most_bytes: int) -> Iterator[list[Row]]:
    """Chunks of rows that end at `most_rows` rows, or with the row that reaches `most_bytes` of raw text."""
    piece: list[Row] = []
    size = 0
    for row in rows:
        piece.append(row)
        size += len(row.value) if isinstance(row.value, bytes) else _TABLE_ROW_BYTES
        if len(piece) == most_rows or size >= most_bytes:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


def table_row(source: str, line: int, value: dict[str, Any], wanted: Collection[str] | None) -> Row:
    """A row with only the `wanted` columns; None keeps all."""
    if wanted is None:
        return Row(source, line, value)
    kept = {key: child for key, child in value.items() if key in wanted}
    return Row(source, line, kept, unread=tuple(key for key in value if key not in kept))


def parse(row: Row) -> Record:
    """Parse a row.

    Unusable values of a table row are collected in `problems`, by column, since the column may never be read.

    Raises:
      BadRow: not valid UTF-8, not valid JSON, not an object, or text that no tokenizer accepts; names file, line and
        column, what was found and what was expected.
    """
    if row.problem:
        raise BadRow(f"{row.source}:{row.line}: {row.problem}")
    if isinstance(row.value, bytes):
        return Record(row.source, row.line, _object(row, row.value))
    value, problems = {}, {}
    for key, child in row.value.items():
        if child is None:
            continue
        try:
            value[str(key)] = plain = _plain(child)
            problem = strict_json.unusable({key: plain})
        except ValueError as error:
            value[str(key)], problem = child, str(error)
        if problem:
            problems[str(key)] = f"column {str(key)!r}: {problem}"
    return Record(row.source, row.line, value, problems)


def _object(row: Row, raw: bytes) -> dict[str, Any]:
    where = f"{row.source}:{row.line}"
    try:
        # Strip the newline: otherwise JSON reports an unexpected end as line 2.
        text = raw.rstrip(b"\r\n").decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRow(
            f"{where}: not valid UTF-8: byte 0x{raw[error.start]:02x} at byte {row.offset + error.start} of the "
            f"file. Convert the file to UTF-8{_CUT if error.end == len(raw) else ''}."
        ) from error
    try:
        value = strict_json.load(text)
    except json.JSONDecodeError as error:
        found = text[error.pos : error.pos + 20]
        cut = not raw.endswith(b"\n") and (not found or error.msg.startswith("Unterminated"))
        raise BadRow(
            f"{row.source}:{row.line + error.lineno - 1}:{error.colno}: not valid JSON: {error.msg}, found "
            f"{repr(found) if found else 'the end of the line'}{_CUT if cut else ''}"
        ) from error
    except ValueError as error:
        raise BadRow(f"{where}:1: not usable JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadRow(f"{where}:1: found {strict_json.kind(value)}, expected one JSON object per row")
    return value


def _plain(value: Any, depth: int = 1) -> Any:
    """A table value as plain JSON: text decoded, nulls dropped, which only mean that other rows have the key.

    Raises:
      ValueError: it cannot be converted.
    """
    if depth > strict_json.MAX_DEPTH:
        raise ValueError(f"nested deeper than {strict_json.MAX_DEPTH} levels")
    if isinstance(value, JsonText):
        return strict_json.load(value)
    if isinstance(value, Undecodable):
        raise ValueError(value.problem)
    if isinstance(value, dict):
        return {str(key): _plain(child, depth + 1) for key, child in value.items() if child is not None}
    if isinstance(value, list | tuple):
        return [_plain(child, depth + 1) for child in value]
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"a value (binary) is not valid UTF-8: byte 0x{value[error.start]:02x} at its byte {error.start}. "
                "Store text as strings"
            ) from error
    return value
