"""Opens the data entries of a config as stores, and prepares them first if necessary.

Preparation works in parts of a few thousand rows. One process reads the rows and workers encode them. Parts are written
atomically, so memory is bounded for any file size and an interrupted preparation can resume.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import sft_jax
from sft_jax.config import Data
from sft_jax.data.chat.last_stop import stops_that_matter
from sft_jax.data.chat.tokenizer import fingerprint as tokenizer_fingerprint
from sft_jax.data.forms.detect import columns_read
from sft_jax.data.pack.prepare import Counts, Dropped, add, check_any_used, encode_rows
from sft_jax.data.pack.store import Store, finish, finish_split, is_store, write_part
from sft_jax.data.read.readers import read_rows
from sft_jax.data.read.rows import Row, cut
from sft_jax.data.read.sources import content_digest, find_files
from sft_jax.errors import BadInput
from sft_jax.storage.location import Location

PART_ROWS, PART_BYTES = 8192, 2**25
"""A part ends at whichever comes first; bytes of the raw rows."""
SETTINGS = (
    *("format", "fields", "function", "bad_rows", "train_on", "end_of_turn", "allow_lossy", "special_text"),
    *("template_date", "template_kwargs", "over_length", "sequence_length"),
)
"""The fields of `Data` that determine the examples, together with the files and the tokenizer."""
_VERSION = 3
"""Increment when the same files give different tokens or weights."""
_DROPPED_KEPT = 10_000
"""Maximum number of dropped rows listed by name; the counts are always complete."""

Locate = Callable[[str], Location]
Progress = Callable[[int], None]
"""Called with the number of rows encoded so far."""


def prepare_split(
    data: Data,
    tokenizer: Any,
    files: tuple[str, ...],
    directory: Path,
    split: str,
    progress: Progress | None = None,
    about: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Encode the rows of `files` into one split of the dataset in `directory`; existing parts are kept.

    Args:
      about: the `provenance` of the data, if already known.

    Returns:
      The input of `store.finish`. It does not depend on the number of workers.

    Raises:
      BadInput: as `prepare.prepare`, or the directory is not writable.
    """
    about = about or provenance(data, tokenizer, files)
    folder = directory / f"parts-{split}-{_key(about)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{directory}: cannot be written: {error.strerror}") from error
    try:
        stems = _make_parts(data, tokenizer, read_rows(files, wanted=columns_read(data)), folder, progress)
    except (OSError, RuntimeError) as error:  # ArrayRecord raises RuntimeError if it cannot create a file
        if folder.is_dir():
            raise
        raise BadInput(
            f"{directory}: another process prepared the same data at the same time. Run this command again; it will "
            "use the prepared data."
        ) from error
    found = [json.loads(stem.with_suffix(".json").read_text(encoding="utf-8")) for stem in stems]
    counts = add(Counts(**one["counts"]) for one in found)
    dropped = [Dropped(*row) for one in found for row in one["dropped"]][:_DROPPED_KEPT]
    check_any_used(files, counts, dropped)
    summary = {
        **about,
        "counts": dataclasses.asdict(counts),
        "dropped": [[row.where, row.reason] for row in dropped],
        "highest_id": max(one["highest_id"] for one in found),
    }
    made = finish_split(directory, split, stems, summary)
    shutil.rmtree(folder)
    return made


def provenance(
    data: Data, tokenizer: Any, files: tuple[str, ...], keep_alive: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Everything that the examples depend on: file contents, settings, tokenizer, this code.

    Args:
      keep_alive: called periodically while the files are read.
    """
    return {
        "version": _VERSION,
        "sft_jax": sft_jax.__version__,
        "settings": {name: _plain(getattr(data, name)) for name in SETTINGS},
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "stops": stops_that_matter(tokenizer),
        "sources": [[name, content_digest(name, keep_alive)] for name in find_files(files)],
        "function": _function_digest(data.function),
    }


def _function_digest(name: str) -> str:
    """SHA-256 (hex) of the file of data.function; for a function in a module, its name."""
    path = Path(name.rpartition(":")[0])
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.suffix == ".py" and path.is_file() else name


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _key(about: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]


def _make_parts(data: Data, tokenizer: Any, rows: Iterator[Row], folder: Path, progress: Progress | None) -> list[Path]:
    """Write the parts that have no `.json` yet; return the stems of all parts, in order."""
    chunks = cut(rows, PART_ROWS, PART_BYTES)
    first, second = next(chunks, []), next(chunks, None)
    workers = data.workers or _cores()
    ahead = [chunk for chunk in (first, second) if chunk]
    stems, done = [], 0
    pool = None
    # Workers take seconds to start: encode a single part in this process.
    if second is not None and workers > 1:
        pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (data, tokenizer))
    else:
        _start_worker(data, tokenizer)
    running: deque[tuple[Future | None, int]] = deque()

    def wait() -> None:
        nonlocal done
        future, number = running.popleft()
        if future is not None:
            future.result()
        done += number
        if progress is not None:
            progress(done)

    try:
        for number, chunk in enumerate(_then(ahead, chunks)):
            stems.append(folder / f"{number:06d}")
            future = None
            if not stems[-1].with_suffix(".json").exists():
                if pool is None:
                    _make_part(stems[-1], chunk)
                else:
                    future = pool.submit(_make_part, stems[-1], chunk)
            running.append((future, len(chunk)))
            if len(running) > workers:
                wait()
        while running:
            wait()
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)
    return stems


def _cores() -> int:
    """Cores available to this process; on macOS, all cores."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _then(ahead: list[list[Row]], chunks: Iterator[list[Row]]) -> Iterator[list[Row]]:
    while ahead:
        yield ahead.pop(0)
    yield from chunks


_worker: dict[str, Any] = {}
"""The arguments of this worker process."""


def _start_worker(data: Data, tokenizer: Any) -> None:
    _worker.update(data=data, tokenizer=tokenizer)


def _make_part(stem: Path, rows: list[Row]) -> None:
    prepared = encode_rows(rows, _worker["data"], _worker["tokenizer"])
    about = {
        "counts": dataclasses.asdict(prepared.counts),
        "dropped": [[row.where, row.reason] for row in prepared.dropped[:_DROPPED_KEPT]],
        "highest_id": max((int(e.tokens.max()) for e in prepared.examples), default=0),
    }
    write_part(stem, prepared.examples, about)


# --- opening ----------------------------------------------------------------------------------------------------------


def prepare_entry(
    data: Data,
    tokenizer: Any,
    entry: str,
    cache: Location,
    progress: Progress | None = None,
    locate: Locate = Location,
    keep_alive: Callable[[], None] = lambda: None,
) -> str:
    """Prepare an entry of data.train or data.eval under `cache`, unless that has been done.

    Args:
      locate: returns the same Location for the same name, if entries share their copies from a bucket.
      keep_alive: called periodically while the work makes progress.

    Returns:
      The name of the dataset under `cache`; empty if the entry is itself a prepared dataset (`DIR`, `DIR:split`).

    Raises:
      BadInput: the entry is unusable.
    """

    def encoded(rows: int) -> None:
        keep_alive()
        if progress is not None:
            progress(rows)

    if _prepared(entry, locate):
        return ""
    about = provenance(data, tokenizer, (entry,), keep_alive)
    place = cache / _key(about)
    if not is_store(place):
        directory = place.local()
        made = prepare_split(data, tokenizer, (entry,), directory, "train", encoded, about)
        finish(directory, {"train": made}, f"Tokenised by sft_jax from {entry}", "")
        place.publish(keep_alive)
    return _key(about)


def open_entry(data: Data, tokenizer: Any, entry: str, cache: Location, name: str, locate: Locate = Location) -> Store:
    """Open the store of an entry after `prepare_entry`, which returned `name`.

    Raises:
      BadInput: no such dataset, or one prepared with different settings.
    """
    if name:
        return Store(cache / name)
    if (found := _prepared(entry, locate)) is None:
        raise BadInput(f"{entry}: process 0 finds a prepared dataset there, but this process does not")
    store = Store(*found)
    check_settings(store, data, tokenizer)
    return store


def _prepared(entry: str, locate: Locate) -> tuple[Location, str] | None:
    """Directory and split if the entry is a prepared dataset."""
    if is_store(locate(entry)):
        return locate(entry), "train"
    directory, _, split = entry.rpartition(":")
    return (locate(directory), split) if directory and is_store(locate(directory)) else None


def check_settings(store: Store, data: Data, tokenizer: Any) -> None:
    """Reject a prepared dataset whose examples differ from those of this config.

    Raises:
      BadInput: with a line per differing setting.
    """
    prepared = {"template_kwargs": [], **store.about["settings"]}  # missing in older datasets
    wanted = {name: _plain(getattr(data, name)) for name in SETTINGS}
    counts = store.about["counts"]
    if not any(counts.get(name) for name in ("over_length", "dropped_over_length", "truncated", "split")):
        wanted["over_length"] = prepared["over_length"]
    if not counts["bad_rows"]:  # the policy was never used
        wanted["bad_rows"] = prepared["bad_rows"]
    # An empty date means today; a dataset keeps the date on which it was prepared.
    wanted["template_date"] = wanted["template_date"] or prepared["template_date"]
    differences = [
        f"data.{name}: prepared with {prepared.get(name)!r}, the config says {value!r}"
        for name, value in wanted.items()
        if prepared.get(name) != value
    ]
    if store.about["tokenizer"] != tokenizer_fingerprint(tokenizer):
        differences.append("the tokenizer or its chat template differs")
    stops = stops_that_matter(tokenizer)
    if store.about.get("stops", stops) != stops:
        differences.append(f"stop tokens: prepared with {store.about['stops']}, the model's are {stops}")
    if differences:
        listed = "\n  ".join(differences)
        raise BadInput(f"{store.name}: prepared with different settings than this run:\n  {listed}\nPrepare it again.")


def account(stores: Sequence[Store]) -> tuple[Counts, list[Dropped]]:
    """Counts and dropped rows of several stores together."""
    dropped = [Dropped(*row) for store in stores for row in store.about["dropped"]]
    return add(Counts(**store.about["counts"]) for store in stores), dropped
