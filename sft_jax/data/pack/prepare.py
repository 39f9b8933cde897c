"""Encodes records as examples that fit a row: first tokens untrained, over-length policy applied, all counted."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from sft_jax.config import Data
from sft_jax.data.chat.encode import Ahead, Encoded, Written, tokenise, write
from sft_jax.data.chat.rendering import render_options_of
from sft_jax.data.forms.demonstration import Conversation, Demonstration, Pair, Text
from sft_jax.data.forms.detect import columns_read
from sft_jax.data.forms.formats import Reading, check_settings
from sft_jax.data.forms.formats import read as read_record
from sft_jax.data.pack.store import Example, Store
from sft_jax.data.read.readers import read_rows
from sft_jax.data.read.rows import Record, Row, cut, parse
from sft_jax.errors import BadInput, BadRow

UNREAD_KEPT = 1000
"""Maximum number of unread keys that are counted, since some rows use arbitrary names as keys."""
BLOCK_ROWS, BLOCK_BYTES = 256, 2**20
"""A block for tokenisation ends at whichever comes first: large enough for all cores, small enough for memory."""


@dataclass(frozen=True)
class Dropped:
    """A row that doesn't train, and why."""

    where: str
    reason: str


@dataclass(frozen=True)
class Counts:
    """Statistics of the rows.

    documents == used + dropped_over_length + dropped_no_target, minus the pieces added by splitting.
    """

    rows: int = 0
    bad_rows: int = 0
    """Skipped with data.bad_rows="skip"."""
    left_out: int = 0
    """Rows for which data.function returned None."""
    documents: int = 0
    """Demonstrations in the rows; a seed task has several."""
    used: int = 0
    dropped_over_length: int = 0
    truncated: int = 0
    split: int = 0
    """Documents split into pieces (data.over_length="split"); `used` counts the pieces."""
    dropped_no_target: int = 0
    empty_turns: int = 0
    """Empty assistant turns, which don't train."""
    null_rows: int = 0
    """Rows with a null in the arguments of a tool call or in a tool's schema."""
    lossy: int = 0
    """Documents that the chat template renders only in part (data.allow_lossy)."""
    first_token_targets: int = 0
    """Documents whose first token would have trained; it has no context and is never a target."""
    tokens: int = 0
    """Tokens of the documents used."""
    target_tokens: int = 0
    """Trained tokens of the documents used."""
    by_format: dict[str, int] = field(default_factory=dict)
    """Format -> rows."""
    by_source: dict[str, dict[str, int]] = field(default_factory=dict)
    """File -> rows, used, tokens, target_tokens."""
    over_length: dict[str, int] = field(default_factory=dict)
    """Length of over-length documents, before they were dropped or cut -> number of documents."""
    unread: dict[str, int] = field(default_factory=dict)
    """Key that no form reads -> rows; `chat_template_kwargs.NAME` if the chat template doesn't use NAME."""


@dataclass(frozen=True)
class Prepared:
    """Examples in source order, statistics, and the dropped rows."""

    examples: tuple[Example, ...]
    counts: Counts
    dropped: tuple[Dropped, ...]


def add(parts: Iterable[Counts]) -> Counts:
    """Sum several Counts."""
    total, forms, unread, over_length = Counter(), Counter(), Counter(), Counter()
    sources: dict[str, Counter[str]] = {}
    for part in parts:
        numbers = dataclasses.asdict(part)
        forms.update(numbers.pop("by_format"))
        unread.update(numbers.pop("unread"))
        over_length.update(numbers.pop("over_length"))
        for source, about in numbers.pop("by_source").items():
            sources.setdefault(source, Counter()).update(about)
        total.update(numbers)
    by_source = {name: dict(about) for name, about in sources.items()}
    return Counts(
        **total, by_format=dict(forms), by_source=by_source, over_length=dict(over_length), unread=dict(unread)
    )


def prepare(data: Data, tokenizer: Any, files: tuple[str, ...] | None = None, keep_untrained: bool = False) -> Prepared:
    """Read, encode and fit every record of `files` (default: `data.train`), in memory.

    Args:
      keep_untrained: use rows without a trained token too (for scoring; training drops and counts them).

    Raises:
      BadInput: any bad record; a row longer than `data.sequence_length` with over_length="error"; no trained token in
        any row.
    """
    files = data.train if files is None else files
    prepared = encode_rows(read_rows(files, wanted=columns_read(data)), data, tokenizer, keep_untrained)
    check_any_used(files, prepared.counts, prepared.dropped)
    return prepared


class NothingTrains(BadInput):
    """No token of the data trains; the statistics show why."""

    def __init__(self, message: str, counts: Counts, dropped: Sequence[Dropped]):
        super().__init__(message)
        self.counts, self.dropped = counts, dropped


def check_any_used(files: Sequence[str], counts: Counts, dropped: Sequence[Dropped]) -> None:
    """Reject data without any trained token.

    Raises:
      NothingTrains: with the first reason.
    """
    if not counts.used:
        name, why = (dropped[0].where, f"{dropped[0].reason}. ") if dropped else (files[0], "")
        of = f" of {len(files):,} files" if len(files) > 1 else ""
        message = f"{name}: {why}It is the first of {counts.rows:,} rows{of}, none of which has a trained token"
        raise NothingTrains(message, counts, dropped)


def _reason(row: Row, error: BadRow) -> str:
    """The error of a bad row without file and line, which lists of bad rows already show."""
    said = str(error).removeprefix(f"{row.source}:{row.line}:")
    place, colon, rest = said.partition(": ")
    return f"bad row: column {place}: {rest}" if colon and place.isdigit() else f"bad row: {said.lstrip()}"


def encode_rows(rows: Iterable[Row], data: Data, tokenizer: Any, keep_untrained: bool = False) -> Prepared:
    """Encode rows with the config's policies; the statistics cover only these rows.

    Raises:
      BadInput: a bad row unless data.bad_rows is "skip"; an over-length row with over_length="error".
    """
    check_settings(data)
    fitter = _Fitter(data, tokenizer, keep_untrained)
    fitter.add_all(rows)
    tally = {f.name: fitter.tally[f.name] for f in dataclasses.fields(Counts) if f.type is int}
    sources = {name: dict(about) for name, about in fitter.sources.items()}
    unread = dict(fitter.unread.most_common(UNREAD_KEPT))
    counts = Counts(
        **tally, by_format=dict(fitter.forms), by_source=sources, over_length=dict(fitter.over_length), unread=unread
    )
    return Prepared(tuple(fitter.examples), counts, tuple(fitter.dropped))


_Parsed = tuple[Record, Reading]
_Read = tuple[Record, Reading, list[Written | Encoded]]
"""A row's record, its demonstrations, and each of them rendered."""


class _Fitter:
    """Collects examples and statistics."""

    def __init__(self, data: Data, tokenizer: Any, keep_untrained: bool):
        self.data, self.tokenizer, self.keep_untrained = data, tokenizer, keep_untrained
        self.options = render_options_of(data)
        self.tally: Counter[str] = Counter()
        self.forms: Counter[str] = Counter()
        self.over_length: Counter[str] = Counter()
        self.unread: Counter[str] = Counter()
        self.sources: dict[str, Counter[str]] = {}
        self.examples: list[Example] = []
        self.dropped: list[Dropped] = []

    def add_all(self, rows: Iterable[Row]) -> None:
        """Add all demonstrations of the rows; a row with a bad one is dropped entirely."""
        before = None
        # The tokenizer's threads and the template process don't need the GIL: while one block is tokenised, the next
        # one is rendered.
        with ThreadPoolExecutor(1) as pool:
            for block, read in self._written(cut(rows, BLOCK_ROWS, BLOCK_BYTES)):
                texts = [text for one in read if not isinstance(one, BadRow) for text in one[2]]
                if before is not None:
                    self._add_block(*before)
                    before = None
                if len(block) < BLOCK_ROWS:  # not worth a thread
                    self._add_block(block, read, tokenise(texts, self.tokenizer))
                else:
                    before = block, read, pool.submit(tokenise, texts, self.tokenizer)
            if before is not None:
                self._add_block(*before)

    def _written(self, blocks: Iterable[list[Row]]) -> Iterator[tuple[list[Row], list[_Read | BadRow]]]:
        """Blocks with their parsed and rendered rows; reads one block ahead."""
        waiting = None
        for block in blocks:
            parsed = [self._parse(row) for row in block]
            found = (one for pair in parsed if not isinstance(pair, BadInput) for one in pair[1].demonstrations)
            ahead = Ahead(found, self.tokenizer, self.data.train_on, self.options)
            if waiting is not None:
                yield waiting[0], [self._write(one, waiting[2]) for one in waiting[1]]
            waiting = block, parsed, ahead
        if waiting is not None:
            yield waiting[0], [self._write(one, waiting[2]) for one in waiting[1]]

    def _add_block(self, block: list[Row], read: list[_Read | BadRow], tokenised: list[Encoded] | Future) -> None:
        encoded = iter(tokenised if isinstance(tokenised, list) else tokenised.result())
        for row, one in zip(block, read, strict=True):
            source = self.sources.setdefault(row.source, Counter(rows=0, used=0, tokens=0, target_tokens=0))
            source["rows"] += 1
            self.tally["rows"] += 1
            if isinstance(one, BadRow):
                self.tally["bad_rows"] += 1
                self.dropped.append(Dropped(f"{row.source}:{row.line}", _reason(row, one)))
            else:
                record, found, texts = one
                self.unread.update(found.unread)
                if not self.data.function:  # a function may read any column
                    self.unread.update(row.unread)
                self._add(record, found.demonstrations, list(islice(encoded, len(texts))), source)

    def _parse(self, row: Row) -> _Parsed | BadInput:
        """Parse a row, or return the error."""
        try:
            record = parse(row)
            return record, read_record(record, self.data)
        except BadInput as error:
            return error

    def _write(self, parsed: _Parsed | BadInput, ahead: Ahead) -> _Read | BadRow:
        """Render a row's demonstrations, or return the error."""
        try:
            if isinstance(parsed, BadInput):
                raise parsed
            record, found = parsed
            return record, found, [self._text(record, one, ahead) for one in found.demonstrations]
        except BadRow as error:
            if self.data.bad_rows == "error":
                raise
            return error

    def _text(self, record: Record, one: Demonstration, ahead: Ahead) -> Written | Encoded:
        return write(record.where, one, self.tokenizer, self.data.train_on, self.options, ahead)

    def _add(self, record: Record, found: list[Demonstration], encoded: list[Encoded], source: Counter[str]) -> None:
        self.tally["documents"] += len(found)
        self.tally["left_out"] += not found
        for form in dict.fromkeys(one.form for one in found):
            self.forms[form] += 1
        parts = [part for one in found for part in ((one.chosen, one.rejected) if isinstance(one, Pair) else (one,))]
        talks = [part for part in parts if isinstance(part, Conversation)]
        empty = sum(talk.empty for talk in talks)
        self.tally["empty_turns"] += empty
        self.tally["null_rows"] += any(talk.nulls for talk in talks)
        self.unread.update({name for one in encoded for name in one.unused})
        for one, (tokens, weights, lost, _) in zip(found, encoded, strict=True):
            self.tally["lossy"] += bool(lost)
            example = Example(one.id or record.where, record.source, record.line, tokens, weights)
            self._fit(example, isinstance(one, Text), source, empty)

    def _fit(self, example: Example, is_text: bool, source: Counter[str], empty: int) -> None:
        first, weights = bool(example.weights[:1].any()), example.weights.copy()
        weights[:1] = 0
        example = example._replace(weights=weights)
        limit, policy = self.data.sequence_length, self.data.over_length
        if len(example.tokens) > limit:
            self.over_length[str(len(example.tokens))] += 1
        if len(example.tokens) <= limit:
            kept = [example]
        elif policy == "error":
            shorter = (
                "drop" if self.data.format == "pair" else "truncate"
            )  # a truncated pair loses the position of its reward
            raise BadInput(
                f"row {example.line} of {example.source}: {len(example.tokens):,} tokens, limit {limit:,}. "
                f'Set data.over_length="{shorter}" or raise data.sequence_length.'
            )
        elif policy == "drop" or (policy == "split" and not is_text):
            self.tally["dropped_over_length"] += 1
            self.dropped.append(Dropped(example.where, f"{len(example.tokens):,} tokens, limit {limit:,}"))
            return
        elif policy == "split":
            self.tally["split"] += 1
            kept = split(example, limit)
        else:
            kept = [example._replace(tokens=example.tokens[:limit], weights=weights[:limit])]
            if example.targets and not kept[0].targets:
                self.tally["dropped_no_target"] += 1
                reason = f"none of its {example.targets:,} trained tokens is among the first {limit:,} tokens"
                self.dropped.append(Dropped(example.where, reason))
                return
            self.tally["truncated"] += bool(kept[0].targets)
        if not example.targets and not self.keep_untrained:
            self.tally["dropped_no_target"] += 1
            why = "an empty assistant turn" if empty else f'data.train_on="{self.data.train_on}"'
            self.dropped.append(Dropped(example.where, f"no trained token ({why})"))
            return
        self.tally["first_token_targets"] += first
        for piece in kept:
            self.examples.append(piece)
            for tally in (self.tally, source):
                tally.update(used=1, tokens=len(piece.tokens), target_tokens=piece.targets)


def split(example: Example, limit: int) -> list[Example]:
    """Split a long document into pieces of at most `limit` tokens. Pieces overlap by one token, so that every target
    except the document's first token has context."""
    pieces = []
    for number, start in enumerate(range(0, len(example.tokens) - 1, limit - 1), start=1):
        weights = example.weights[start : start + limit].copy()
        weights[:1] = 0
        piece = example._replace(
            id=f"{example.id}/{number}", tokens=example.tokens[start : start + limit], weights=weights
        )
        pieces.append(piece)
    return pieces


def check_ids(where: str, ids: Sequence[int] | np.ndarray, vocab: int, model: str) -> None:
    """Reject ids without an embedding: JAX would silently read the last row instead.

    Raises:
      BadInput: begins with `where`, names the id and the number of embeddings.
    """
    highest = int(np.max(ids, initial=0))
    if highest >= vocab:
        raise BadInput(
            f"{where}: the tokenizer gives id {highest}, but {model} has {vocab:,} embeddings (ids below {vocab}). "
            "Use the model's own tokenizer, or one without added tokens."
        )


def check_vocabulary(examples: Sequence[Example], vocab: int, model: str) -> None:
    """`check_ids` for every example; a store is only read if its recorded highest id doesn't fit."""
    if isinstance(examples, Store) and examples.about["highest_id"] < vocab:
        return
    for example in examples:
        check_ids(example.where, example.tokens, vocab, model)


NULLS = (
    "rows with nulls in tool calls or tool schemas, trained as null. datasets.to_json writes them if other rows have "
    "the key; --data.function sft_jax.data.forms.nulls:without_nulls removes them"
)


def describe_unread(unread: Mapping[str, int], shown: int = 10) -> str:
    """`source (120 rows), lang (3 rows)`: the most frequent keys."""
    most = sorted(unread.items(), key=lambda item: -item[1])
    listed = ", ".join(f"{key} ({rows:,} rows)" for key, rows in most[:shown])
    return listed + (f" and {len(most) - shown:,} more" if len(most) > shown else "")


def describe_counts(counts: Counts, dropped: Sequence[Dropped], shown: int = 5) -> list[str]:
    """Lines for the log: what is used, what is dropped and why, with the first `shown` dropped rows."""
    share = counts.target_tokens / max(1, counts.tokens)
    forms = ", ".join(f"{rows:,} {form}" for form, rows in sorted(counts.by_format.items()))
    lines = [
        f"{counts.rows:,} rows ({forms}): {counts.used:,} used, {counts.tokens:,} tokens, "
        f"{counts.target_tokens:,} trained ({share:.1%})"
    ]
    for number, words in (
        (counts.bad_rows, 'bad rows skipped (data.bad_rows="skip")'),
        (counts.left_out, "rows left out by data.function"),
        (counts.dropped_over_length, "rows dropped: longer than data.sequence_length"),
        (counts.truncated, "rows truncated to data.sequence_length"),
        (counts.split, "rows split into pieces of data.sequence_length"),
        (counts.dropped_no_target, "rows dropped: no trained token"),
        (counts.empty_turns, "empty assistant turns, not trained"),
        (counts.null_rows, NULLS),
        (counts.lossy, "rows of which the chat template drops a part (data.allow_lossy)"),
        (counts.first_token_targets, "rows whose first token would train but has no context, so it does not count"),
    ):
        if number:
            lines.append(f"{number:,} {words}")
    if counts.unread:
        lines.append(f"keys that no form reads: {describe_unread(counts.unread)}")
    lines += [f"  {row.where}: {row.reason}" for row in dropped[:shown]]
    left_out = counts.bad_rows + counts.dropped_over_length + counts.dropped_no_target
    if left_out > shown:
        lines.append(f"  and {left_out - shown:,} more")
    return lines
