"""Streams the elements of a JSON file's top-level array without parsing them or loading the file."""

import re
from collections.abc import Iterator
from typing import BinaryIO

from sft_jax.data.read.rows import ROW_LIMIT, Row
from sft_jax.errors import BadInput

_CHUNK = 2**20
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[\]{},]|"', re.DOTALL)
"""A complete string, a bracket, a comma, or the opening quote of a string that extends past the buffer."""
_RECORD_KEYS = (
    *("messages", "conversations", "conversation", "instances", "prompt", "completion", "chosen", "rejected"),
    *("input_ids", "labels", "tokens", "weights", "loss_mask", "assistant_masks", "attention_mask", "tools"),
)
"""Lists under these keys belong to one record; they are not lists of records."""
_LINES = "Files with one object per line must end in .jsonl: rename it."


def read_array(source: str, file: BinaryIO, head: bytes, offset: int) -> Iterator[Row]:
    """Yield a row per element of the top-level array, or of the only list in a top-level object.

    Args:
      head: bytes already read from `file`.
      offset: offset of `head` in the file.

    Raises:
      BadInput: neither an array nor an object with exactly one list, trailing text, or a truncated array.
    """
    return _Scanner(source, file, head, offset).rows()


class _Scanner:
    """Scans a file's structure (brackets, commas, strings) with a sliding buffer."""

    def __init__(self, source: str, file: BinaryIO, head: bytes, offset: int):
        self.source, self.file = source, file
        self.buffer, self.base = head, offset
        self.at = 0
        """Scan position."""
        self.start = 0
        """Bytes before this are no longer needed."""
        self.line, self.counted = 1, 0
        """Line number at buffer[counted]."""

    def rows(self) -> Iterator[Row]:
        opening = self.first_byte()
        if opening not in (b"[", b"{"):
            found = repr(opening.decode("latin-1")) if opening else "an empty file"
            raise BadInput(f"{self.source}:{self.line}: found {found}, expected an array of objects")
        self.at = self.start = self.at + 1
        yield from self.elements() if opening == b"[" else self.only_list()
        if rest := self.first_byte():
            raise BadInput(
                f"{self.line_at(self.at)}: found {rest.decode('latin-1')!r} after the first value, expected one array "
                f"of objects and nothing after it. {_LINES}"
            )

    def elements(self) -> Iterator[Row]:
        """The elements of the array just opened; stops after its closing bracket."""
        depth, filled = 0, False
        while found := self.next_token():
            token, position = found
            if token in (b"[", b"{"):
                depth += 1
            elif token in (b"]", b"}") and depth:
                depth -= 1
            elif token in (b",", b"]") and not depth:
                raw = self.buffer[self.start : position]
                if token == b"," or filled or raw.strip():
                    yield self.row(raw)
                    filled = True
                self.start = position + 1
                if token == b"]":
                    return
            elif token == b"}":
                raise BadInput(f"{self.line_at(position)}: found '}}' in an array, expected ',' or ']'")
        raise BadInput(f"{self.line_at(len(self.buffer))}: truncated file: the array is not closed")

    def only_list(self) -> Iterator[Row]:
        """The elements of the only list in the object just opened; stops after its closing brace."""
        depth, key, holder = 0, "", ""
        while found := self.next_token():
            token, position = found
            if token == b"[" and not depth:
                self.check_list(self.line_at(position), key, holder)
                holder = key
                self.start = self.at
                yield from self.elements()
            elif token in (b"[", b"{"):
                depth += 1
            elif token == b"}" and not depth:
                break
            elif token in (b"]", b"}"):
                depth -= 1
            elif token[:1] == b'"' and not depth:
                key = token[1:-1].decode(errors="replace")
            self.start = self.at
        else:
            raise BadInput(f"{self.line_at(len(self.buffer))}: truncated file: the object is not closed")
        if not holder:
            raise BadInput(
                f"{self.line_at(self.at)}: found an object without a list, expected an array of objects. {_LINES}"
            )

    def check_list(self, where: str, key: str, holder: str) -> None:
        """Reject a list that is part of a record, or a second list."""
        if holder:
            raise BadInput(
                f"{where}: found two lists, {holder!r} and {key!r}, expected one that holds the records. Keep one, or "
                "make the file an array."
            )
        if key in _RECORD_KEYS:
            raise BadInput(
                f"{where}: the file is a single object that looks like a record ({key!r}), expected an array of "
                f"records: enclose it in [ ]. {_LINES}"
            )

    def row(self, raw: bytes) -> Row:
        """The element that begins at `start`."""
        position = self.start + len(raw) - len(raw.lstrip())
        self.line_at(position)
        return Row(self.source, self.line, raw.strip() + b"\n", self.base + position)

    def line_at(self, position: int) -> str:
        """`demos.json:17` for buffer[position]."""
        self.line += self.buffer.count(b"\n", self.counted, position)
        self.counted = max(self.counted, position)
        return f"{self.source}:{self.line}"

    def first_byte(self) -> bytes:
        """Advance `at` to the next byte that is not white space and return it; empty at the end of the file."""
        while True:
            blank = len(self.buffer) - self.at - len(self.buffer[self.at :].lstrip())
            self.at += blank
            self.start = self.at
            if self.at < len(self.buffer) or not self.more():
                return self.buffer[self.at : self.at + 1]

    def next_token(self) -> tuple[bytes, int] | None:
        """The next bracket, comma or complete string and its buffer position; None at the end of the file."""
        while True:
            match = _TOKEN.search(self.buffer, self.at)
            if match and match[0] != b'"':
                self.at = match.end()
                return match[0], match.start()
            self.at = match.start() if match else len(self.buffer)
            if not self.more():
                return None

    def more(self) -> bool:
        """Discard consumed bytes and read more; False at the end of the file."""
        cut = min(self.start, self.at)
        if len(self.buffer) - cut > ROW_LIMIT:
            raise BadInput(f"{self.line_at(cut)}: element larger than {ROW_LIMIT:,} bytes. Is a bracket missing?")
        self.line_at(cut)
        # Double the buffer: a long string is then rescanned a few times, not once per chunk.
        data = self.file.read(max(_CHUNK, len(self.buffer) - cut))
        self.buffer = self.buffer[cut:] + data
        self.base, self.start, self.at, self.counted = (
            self.base + cut, self.start - cut, self.at - cut, self.counted - cut,
        )  # fmt: skip
        return bool(data)
