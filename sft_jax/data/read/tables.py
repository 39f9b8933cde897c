"""Rows of Parquet files and of data sets that Hugging Face's `save_to_disk` wrote, a few at a time."""

import json
import os
from collections.abc import Iterator
from typing import Any

from sft_jax.data.read.rows import Row
from sft_jax.data.read.sources import open_file
from sft_jax.errors import BadInput

_ROWS = 128
"""Rows turned into Python at once."""


def read_parquet(name: str) -> Iterator[Row]:
    """The rows of a Parquet file; `line` is the row's number, from 1.

    Raises:
      BadInput: no Parquet file, or a damaged one.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with open_file(name) as file:
            # A buffer makes it read pages as they are needed, where it would take a whole row group.
            table = pyarrow.parquet.ParquetFile(file, buffer_size=2**20, pre_buffer=False)
            yield from _numbered(name, table.iter_batches(batch_size=_ROWS), 1)
    except pyarrow.ArrowException as error:
        raise BadInput(f"{name}: not a whole Parquet file: {error}. Write it again.") from error


def read_saved(folder: str) -> Iterator[Row]:
    """The rows of a directory that `datasets.Dataset.save_to_disk` wrote; `line` is the row's number, from 1.

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
        raise BadInput(f"{state}: does not list the data set's files ({error}). Save it again.") from error
    number = 1
    for name in names:
        path = os.path.join(folder, name)
        try:
            with open(path, "rb") as file, pyarrow.ipc.open_stream(file) as stream:
                for row in _numbered(folder, stream, number):
                    number = row.line + 1
                    yield row
        except pyarrow.ArrowException as error:
            raise BadInput(f"{path}: not a whole Arrow file: {error}. Save the data set again.") from error


def _numbered(source: str, batches: Any, number: int) -> Iterator[Row]:
    for batch in batches:
        for first in range(0, batch.num_rows, _ROWS):
            try:
                values = batch.slice(first, _ROWS).to_pylist()
            except UnicodeDecodeError as error:  # Arrow does not look into texts when it reads them
                end = number + min(_ROWS, batch.num_rows - first) - 1
                raise BadInput(f"{source}: rows {number} to {end} hold text that is no UTF-8: {error}.") from error
            for value in values:
                yield Row(source, number, value)
                number += 1
