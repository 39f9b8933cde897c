"""A row as it stands in its file, and the record it is parsed into."""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sft_jax.data.read import strict_json
from sft_jax.errors import BadRow

ROW_LIMIT = 64 * 2**20
"""Bytes of one JSON row. Nothing that people write by hand or train on is longer; a file without line ends is."""

_TABLE_ROW_BYTES = 4096
"""What a row of a table is taken for; its size is not known before it is turned into JSON."""
_CUT = ", or copy it again: it may be cut off, it ends without a line end"


class Row(NamedTuple):
    """One row, not yet parsed: cheap to make in one process and to send to another."""

    source: str
    """The file as the user named it, or as the glob spelled it."""
    line: int
    """Line number in a text file, row number in a table; from 1."""
    value: bytes | dict[str, Any]
    """JSON as it stands in the file, or what a table holds."""
    offset: int = 0
    """Where `value` begins in the (uncompressed) file, in bytes."""
    problem: str = ""
    """Why the row could not even be read; `parse` raises it."""
    unread: tuple[str, ...] = ()
    """Columns of the table that no form reads: they are not in `value`."""


class JsonText(str):
    """A value that a table holds as JSON."""

    __slots__ = ()


class Undecodable(NamedTuple):
    """Stands for a table's value that cannot be turned into Python."""

    problem: str


@dataclass(frozen=True)
class Record:
    """One row's value, which remembers where it stands."""

    source: str
    line: int
    value: dict[str, Any]
    problems: Mapping[str, str] = field(default_factory=dict)
    """Keys whose values no tokenizer or template can take, and why: an error once somebody reads them."""

    @property
    def where(self) -> str:
        """`demos.jsonl:17`: how every message names this record."""
        return f"{self.source}:{self.line}"


def cut(rows: Iterable[Row], most_rows: int, most_bytes: int) -> Iterator[list[Row]]:
    """Rows in pieces that end at `most_rows`, or behind the row that makes `most_bytes` of raw text full."""
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
    """A row of the columns that are `wanted`; None wants all."""
    if wanted is None:
        return Row(source, line, value)
    kept = {key: child for key, child in value.items() if key in wanted}
    return Row(source, line, kept, unread=tuple(key for key in value if key not in kept))


def parse(row: Row) -> Record:
    """The record in a row.

    What cannot be used of a table's row stands in `problems`, by column: nobody may read it.

    Raises:
      BadRow: JSON that is not valid UTF-8, not valid JSON, no object, or text that no tokenizer can take; names file,
        line and column, what was found and what was expected.
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
        # Without its line end, or JSON would count what is missing there as a second line.
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
        raise BadRow(f"{where}:1: found {strict_json.kind(value)}, expected one JSON object a row")
    return value


def _plain(value: Any, depth: int = 1) -> Any:
    """A table's value as JSON would have it: text decoded, and no null that stands only where others have a value.

    Raises:
      ValueError: it cannot be.
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
