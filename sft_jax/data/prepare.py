"""Records become examples that fit: encoded, first tokens untrained, over-length policy applied, all counted."""

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sft_jax.config import Data
from sft_jax.data.chat import encode
from sft_jax.data.records import Record, detect_format, find_files, read_records
from sft_jax.data.tokenizer import fingerprint as tokenizer_fingerprint
from sft_jax.errors import BadInput

_CACHE_VERSION = 1
"""Raise it when the code here makes other tokens or weights from the same files."""


@dataclass(frozen=True)
class Example:
    """One document, ready to pack."""

    id: str
    """The record's own `id` if it has one, otherwise file:line."""
    source: str
    line: int
    tokens: np.ndarray
    """int32 [length]."""
    weights: np.ndarray
    """float32 [length]; weights[0] is 0: nothing stands before a document's first token to predict it from."""

    @property
    def where(self) -> str:
        """`demos.jsonl:17`."""
        return f"{self.source}:{self.line}"

    @property
    def targets(self) -> int:
        """How many of its tokens train."""
        return int(np.count_nonzero(self.weights))


@dataclass(frozen=True)
class Dropped:
    """A row that does not train, and why."""

    where: str
    reason: str


@dataclass(frozen=True)
class Counts:
    """What became of the rows. rows == used + dropped_over_length + dropped_no_target."""

    rows: int = 0
    used: int = 0
    dropped_over_length: int = 0
    truncated: int = 0
    dropped_no_target: int = 0
    first_token_targets: int = 0
    """Documents whose first token would have trained: it has no context and is never a target."""
    tokens: int = 0
    """Tokens of the rows used."""
    target_tokens: int = 0
    """Trained tokens of the rows used."""
    by_format: dict[str, int] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Prepared:
    """Examples in source order, with the account of what was left out."""

    examples: tuple[Example, ...]
    counts: Counts
    dropped: tuple[Dropped, ...]


def prepare(data: Data, tokenizer: Any, files: tuple[str, ...] | None = None, keep_untrained: bool = False) -> Prepared:
    """Read, encode and fit every record of `files` (default: `data.train`; give `data.eval` for held-out rows).

    Args:
      keep_untrained: use rows without a trained token too (for scoring; training drops and counts them).

    Raises:
      BadInput: any bad record; a row longer than `data.sequence_length` under over_length="error"; no row with a
        trained token.
    """
    files = data.train if files is None else files
    tally = dict.fromkeys((f.name for f in dataclasses.fields(Counts) if f.name != "by_format"), 0)
    by_format: dict[str, int] = {}
    examples: list[Example] = []
    dropped: list[Dropped] = []
    for record in read_records(files):
        form = detect_format(record, data.format)
        by_format[form] = by_format.get(form, 0) + 1
        tally["rows"] += 1
        encoded = encode(record, form, tokenizer, data.train_on)
        tokens, weights, first = encoded.tokens, encoded.weights.copy(), bool(encoded.weights[:1].any())
        weights[:1] = 0
        limit = data.sequence_length
        if len(tokens) > limit:
            if data.over_length == "error":
                raise BadInput(
                    f"row {record.line} of {record.source}: {len(tokens):,} tokens, limit {limit:,}. "
                    'Set data.over_length="truncate" or raise data.sequence_length.'
                )
            if data.over_length == "drop":
                tally["dropped_over_length"] += 1
                dropped.append(Dropped(record.where, f"{len(tokens):,} tokens, limit {limit:,}"))
                continue
            trained = np.count_nonzero(weights)
            tokens, weights = tokens[:limit], weights[:limit]
            if not weights.any() and trained:
                tally["dropped_no_target"] += 1
                reason = f"none of its {trained:,} trained tokens is among the first {limit:,}"
                dropped.append(Dropped(record.where, reason))
                continue
            tally["truncated"] += bool(weights.any())
        if not weights.any() and not keep_untrained:
            tally["dropped_no_target"] += 1
            dropped.append(Dropped(record.where, f'no trained token (data.train_on="{data.train_on}")'))
            continue
        tally["used"] += 1
        tally["first_token_targets"] += first
        tally["tokens"] += len(tokens)
        tally["target_tokens"] += int(np.count_nonzero(weights))
        name = record.value.get("id")
        examples.append(Example(_id(record, name), record.source, record.line, tokens, weights))
    counts = Counts(**tally, by_format=by_format)
    if not examples:
        reasons = "; ".join(f"{row.where}: {row.reason}" for row in dropped[:3])
        raise BadInput(f"{', '.join(files)}: no trained token in any of its {counts.rows:,} rows. {reasons}")
    return Prepared(tuple(examples), counts, tuple(dropped))


def _id(record: Record, name: Any) -> str:
    return str(name) if isinstance(name, str | int) and not isinstance(name, bool) else record.where


def check_ids(where: str, ids: Sequence[int] | np.ndarray, vocab: int, model: str) -> None:
    """Refuse ids that the model has no embedding for: JAX would read the last row instead, without a word.

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
    """`check_ids` of every example."""
    for example in examples:
        check_ids(example.where, example.tokens, vocab, model)


def describe(prepared: Prepared, shown: int = 5) -> list[str]:
    """Lines for the log: what is used, what is not and why, with the first `shown` rows left out."""
    counts = prepared.counts
    share = counts.target_tokens / max(1, counts.tokens)
    forms = ", ".join(f"{rows:,} {form}" for form, rows in sorted(counts.by_format.items()))
    lines = [
        f"{counts.rows:,} rows ({forms}): {counts.used:,} used, {counts.tokens:,} tokens, "
        f"{counts.target_tokens:,} trained ({share:.1%})"
    ]
    for number, words in (
        (counts.dropped_over_length, "rows dropped: longer than data.sequence_length"),
        (counts.truncated, "rows truncated to data.sequence_length"),
        (counts.dropped_no_target, "rows dropped: no trained token"),
        (counts.first_token_targets, "rows whose first token would train but has no context: it does not count"),
    ):
        if number:
            lines.append(f"{number:,} {words}")
    lines += [f"  {row.where}: {row.reason}" for row in prepared.dropped[:shown]]
    if len(prepared.dropped) > shown:
        lines.append(f"  and {len(prepared.dropped) - shown:,} more")
    return lines


def fingerprint(examples: Sequence[Example]) -> str:
    """SHA-256 (hex) over every example's tokens and weights, in order."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(len(example.tokens).to_bytes(8, "little"))
        digest.update(example.tokens.astype("<i4").tobytes())
        digest.update(example.weights.astype("<f4").tobytes())
    return digest.hexdigest()


def prepare_cached(
    data: Data,
    tokenizer: Any,
    cache_dir: str | Path,
    is_first_process: bool,
    deadline_seconds: float,
    files: tuple[str, ...] | None = None,
) -> Prepared:
    """`prepare`, done once: the first process writes the result under `cache_dir`, the others wait for its file.

    Raises:
      BadInput: as `prepare`, on every process: the first leaves its refusal for the others to read.
      RuntimeError: the file has not appeared within `deadline_seconds`; names it.
    """
    files = data.train if files is None else files
    path = Path(cache_dir) / f"{_cache_key(data, tokenizer, files)}.npz"
    refusal = path.with_suffix(".refused")
    if not path.exists() and is_first_process:
        path.parent.mkdir(parents=True, exist_ok=True)
        refusal.unlink(missing_ok=True)
        try:
            prepared = prepare(data, tokenizer, files)
        except BadInput as error:
            message = str(error).encode("utf-8")
            write_whole(refusal, lambda file: file.write(message))
            raise
        write_whole(path, lambda file: _save(file, prepared))
        return prepared
    end = time.monotonic() + deadline_seconds
    while not path.exists():
        if refusal.exists():
            raise BadInput(refusal.read_text(encoding="utf-8"))
        if time.monotonic() >= end:
            raise RuntimeError(
                f"{path}: the first process has not written the prepared data within {deadline_seconds:g} s. "
                "Look for its error; all processes must see the same cache directory; a long preparation needs a "
                "larger distributed.timeout_seconds."
            )
        time.sleep(0.1)
    return _load(path)


def write_whole(path: Path, write: Callable[[Any], object]) -> None:
    """Whoever reads the file sees the old content or the new one, also when a kill comes in between."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        write(file)
    os.replace(partial, path)


def _cache_key(data: Data, tokenizer: Any, files: tuple[str, ...]) -> str:
    """Names what the result depends on: the contents of the files, how they are read, the tokenizer, this code."""
    import sft_jax

    settings = [getattr(data, name) for name in ("format", "train_on", "over_length", "sequence_length")]
    parts = [_CACHE_VERSION, getattr(sft_jax, "__version__", ""), settings, tokenizer_fingerprint(tokenizer)]
    for path in find_files(files):
        with open(path, "rb") as file:
            parts.append((path, hashlib.file_digest(file, "sha256").hexdigest()))
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _save(file: Any, prepared: Prepared) -> None:
    examples = prepared.examples
    sources = sorted({example.source for example in examples})
    number = {source: i for i, source in enumerate(sources)}
    about = {
        "counts": dataclasses.asdict(prepared.counts),
        "dropped": [[row.where, row.reason] for row in prepared.dropped],
        "sources": sources,
        "ids": [example.id for example in examples],
    }
    np.savez(
        file,
        about=np.frombuffer(json.dumps(about).encode(), np.uint8),
        source=np.asarray([number[example.source] for example in examples], np.int32),
        line=np.asarray([example.line for example in examples], np.int64),
        length=np.asarray([len(example.tokens) for example in examples], np.int64),
        tokens=np.concatenate([example.tokens for example in examples]),
        weights=np.concatenate([example.weights for example in examples]),
    )


def _load(path: Path) -> Prepared:
    with np.load(path) as stored:
        about = json.loads(stored["about"].tobytes())
        cuts = np.cumsum(stored["length"])[:-1]
        tokens, weights = np.split(stored["tokens"], cuts), np.split(stored["weights"], cuts)
        source, line = stored["source"].tolist(), stored["line"].tolist()
    examples = tuple(
        Example(about["ids"][i], about["sources"][source[i]], line[i], tokens[i], weights[i]) for i in range(len(line))
    )
    return Prepared(examples, Counts(**about["counts"]), tuple(Dropped(*row) for row in about["dropped"]))
