"""Reads Parquet files and datasets written by Hugging Face's `save_to_disk`, a few rows at a time."""

import json
import os
from collections.abc import Callable, Collection, Iterator
from typing import Any

from sft_jax.data.read.rows import JsonText, Row, Undecodable
from sft_jax.data.read.sources import open_file
from sft_jax.errors import BadInput

_ROWS = 128
"""Rows converted to Python at once."""


def read_parquet(name: str, wanted: Collection[str] | None = None) -> Iterator[Row]:
    """The rows of a Parquet file; `line` is the row's number, from 1.

    Args:
      wanted: columns to read; None reads all. The others are not decoded.

    Raises:
      BadInput: not a Parquet file, or a damaged one.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with open_file(name) as file:
            # With a buffer it reads pages on demand instead of whole row groups.
            table = pyarrow.parquet.ParquetFile(file, buffer_size=2**20, pre_buffer=False)
            names = table.schema_arrow.names
            batches = table.iter_batches(batch_size=_ROWS, columns=_taken(names, wanted))
            yield from _numbered(name, batches, 1, _left(names, wanted))
    except pyarrow.ArrowException as error:
        raise BadInput(f"{name}: not a valid Parquet file: {error}. Write it again.") from error


def read_saved(folder: str, wanted: Collection[str] | None = None) -> Iterator[Row]:
    """The rows of a directory written by `datasets.Dataset.save_to_disk`; `line` is the row's number, from 1.

    Args:
      wanted: as in `read_parquet`.

    Raises:
      BadInput: a file is missing or damaged.
    """
    import pyarrow
    import pyarrow.ipc

    state = os.path.join(folder, "state.json")
    try:
        with open(state, encoding="utf-8") as file:
            names = [part["filename"] for part in json.load(file)["_data_files"]]
    except (ValueError, LookupError, TypeError) as error:
        raise BadInput(f"{state}: does not list the dataset's files ({error}). Save it again.") from error
    number = 1
    for name in names:
        path = os.path.join(folder, name)
        try:
            with open(path, "rb") as file, pyarrow.ipc.open_stream(file) as stream:
                columns = stream.schema.names
                taken = _taken(columns, wanted)
                batches = (batch if taken is None else batch.select(taken) for batch in stream)
                for row in _numbered(folder, batches, number, _left(columns, wanted)):
                    number = row.line + 1
                    yield row
        except pyarrow.ArrowException as error:
            raise BadInput(f"{path}: not a valid Arrow file: {error}. Save the dataset again.") from error


def _taken(names: list[str], wanted: Collection[str] | None) -> list[str] | None:
    """The columns to read; None for all. If none is wanted, the first is read, so that the rows still exist."""
    taken = [name for name in names if wanted is None or name in wanted]
    return None if len(taken) == len(names) else taken or names[:1]


def _left(names: list[str], wanted: Collection[str] | None) -> tuple[str, ...]:
    taken = _taken(names, wanted)
    return () if taken is None else tuple(name for name in names if name not in taken)


def _numbered(source: str, batches: Any, number: int, left: tuple[str, ...]) -> Iterator[Row]:
    for batch in batches:
        columns = [_as_read(column) for column in batch.columns]
        names = batch.schema.names
        for first in range(0, batch.num_rows, _ROWS):
            parts = [_values(column.slice(first, _ROWS), convert) for column, convert in columns]
            for values in zip(*parts, strict=True):
                yield Row(source, number, dict(zip(names, values, strict=True)), unread=left)
                number += 1


_Convert = Callable[[Any], Any]


def _as_read(column: Any) -> tuple[Any, _Convert | None]:
    """A column cast to its storage type, and the conversion of its values if they need one."""
    stored, convert = _stored(column.type)
    return column if stored == column.type else column.cast(stored), convert


def _stored(kind: Any) -> tuple[Any, _Convert | None]:
    """The storage type of an Arrow type, and the function that marks JSON text in its values, if there is any."""
    import pyarrow
    from pyarrow import types

    if isinstance(kind, pyarrow.BaseExtensionType):
        stored, convert = _stored(kind.storage_type)
        return stored, _json if kind.extension_name == "arrow.json" else convert
    if types.is_struct(kind):
        within = {field.name: _stored(field.type) for field in kind}
        stored = pyarrow.struct([field.with_type(within[field.name][0]) for field in kind])
        fields = {name: convert for name, (_, convert) in within.items() if convert}
        return stored, _each_field(fields) if fields else None
    if types.is_list(kind) or types.is_large_list(kind):
        within, convert = _stored(kind.value_type)
        field = kind.value_field.with_type(within)
        stored = pyarrow.list_(field) if types.is_list(kind) else pyarrow.large_list(field)
        return stored, convert and (lambda values: values and [convert(value) for value in values])
    return kind, None


def _each_field(fields: dict[str, _Convert]) -> _Convert:
    def convert(value: Any) -> Any:
        return value and {key: fields[key](child) if key in fields else child for key, child in value.items()}

    return convert


def _json(value: Any) -> Any:
    return None if value is None else JsonText(value)


def _values(column: Any, convert: _Convert | None) -> list[Any]:
    """The values of a column; strings that are not valid UTF-8 become `Undecodable`."""
    try:
        values = column.to_pylist()
    except UnicodeDecodeError:  # Arrow does not validate strings on reading
        values = [_value(one, column.type) for one in column]
    return values if convert is None else [convert(value) for value in values]


def _value(scalar: Any, kind: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        return Undecodable(f"a value ({kind}) is not valid UTF-8: {error.reason} at its byte {error.start}")
