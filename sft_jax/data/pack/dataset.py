"""From the entries of a config to stores: opened where they are prepared already, prepared where they are not.

Preparation is cut into parts of a few thousand rows. One process reads the rows, workers encode them, and each part is
complete or absent on disk: memory is bounded whatever the size of the files, and an interrupted preparation goes on.
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
"""A part ends at whichever comes first; bytes are those of the raw rows."""
SETTINGS = (
    *("format", "fields", "function", "bad_rows", "train_on", "end_of_turn", "allow_lossy", "special_text"),
    *("template_date", "template_kwargs", "over_length", "sequence_length"),
)
"""What in `Data` decides the examples, besides the files and the tokenizer."""
_VERSION = 3
"""Raise it when the code here makes other tokens or weights from the same files."""
_DROPPED_KEPT = 10_000
"""So many rows that were left out are remembered by name; the counts are always whole."""

Locate = Callable[[str], Location]
Progress = Callable[[int], None]
"""Called with the number of rows that have been read and encoded so far."""


def prepare_split(
    data: Data,
    tokenizer: Any,
    files: tuple[str, ...],
    directory: Path,
    split: str,
    progress: Progress | None = None,
    about: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Encode the rows of `files` into one split of the dataset in `directory`; parts that are there are kept.

    Args:
      about: the `provenance` of what is encoded, where it is known already.

    Returns what `store.finish` needs. The result does not depend on the number of workers.

    Raises:
      BadInput: as `prepare.prepare`, or a directory that cannot be written.
    """
    about = about or provenance(data, tokenizer, files)
    folder = directory / f"parts-{split}-{_key(about)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{directory}: cannot be written: {error.strerror}") from error
    try:
        stems = _make_parts(data, tokenizer, read_rows(files, wanted=columns_read(data)), folder, progress)
    except (OSError, RuntimeError) as error:  # ArrayRecord raises RuntimeError where a file cannot be made
        if folder.is_dir():
            raise
        raise BadInput(
            f"{directory}: another process has prepared the same data there at the same time and is done. Run this "
            "again: it will find them prepared."
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
    """What the examples depend on: the files' contents, how they are read, the tokenizer, this code.

    Args:
      keep_alive: called now and then while the files are read.
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
    """SHA-256 (hex) of the file of data.function; of a module's function, the name says it all."""
    path = Path(name.rpartition(":")[0])
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.suffix == ".py" and path.is_file() else name


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _key(about: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]


def _make_parts(data: Data, tokenizer: Any, rows: Iterator[Row], folder: Path, progress: Progress | None) -> list[Path]:
    """The stems of all parts, in order; those without a `.json` are made."""
    chunks = cut(rows, PART_ROWS, PART_BYTES)
    first, second = next(chunks, []), next(chunks, None)
    workers = data.workers or _cores()
    ahead = [chunk for chunk in (first, second) if chunk]
    stems, done = [], 0
    pool = None
    # A worker takes seconds to start: one part alone is made here.
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
    """Cores that this process may use; macOS tells only how many there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _then(ahead: list[list[Row]], chunks: Iterator[list[Row]]) -> Iterator[list[Row]]:
    while ahead:
        yield ahead.pop(0)
    yield from chunks


_worker: dict[str, Any] = {}
"""What a worker process was started with."""


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
    """Make sure that an entry of data.train or data.eval is prepared: files are, once, under `cache`.

    Args:
      locate: gives the same Location for a name again where entries share what they copy from a bucket.
      keep_alive: called now and then, as long as the work gets on.

    Returns:
      The name of the dataset under `cache`; empty where the entry is a prepared dataset itself (`DIR`, `DIR:split`).

    Raises:
      BadInput: anything wrong with the entry.
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
    """The store of an entry that `prepare_entry` has prepared, and named so.

    Raises:
      BadInput: no such dataset; one that was prepared with other settings.
    """
    if name:
        return Store(cache / name)
    if (found := _prepared(entry, locate)) is None:
        raise BadInput(f"{entry}: process 0 sees a prepared dataset there, and this process none")
    store = Store(*found)
    check_settings(store, data, tokenizer)
    return store


def _prepared(entry: str, locate: Locate) -> tuple[Location, str] | None:
    """Directory and split of an entry that is a prepared dataset."""
    if is_store(locate(entry)):
        return locate(entry), "train"
    directory, _, split = entry.rpartition(":")
    return (locate(directory), split) if directory and is_store(locate(directory)) else None


def check_settings(store: Store, data: Data, tokenizer: Any) -> None:
    """Refuse a prepared dataset whose examples are not those that this config would make.

    Raises:
      BadInput: a line for each setting that differs.
    """
    prepared = {"template_kwargs": [], **store.about["settings"]}  # older datasets know none
    wanted = {name: _plain(getattr(data, name)) for name in SETTINGS}
    if not store.about["counts"]["bad_rows"]:  # the policy was never asked
        wanted["bad_rows"] = prepared["bad_rows"]
    # An open date is today's, and a dataset keeps the day on which it was prepared.
    wanted["template_date"] = wanted["template_date"] or prepared["template_date"]
    differences = [
        f"data.{name}: prepared with {prepared.get(name)!r}, the config says {value!r}"
        for name, value in wanted.items()
        if prepared.get(name) != value
    ]
    if store.about["tokenizer"] != tokenizer_fingerprint(tokenizer):
        differences.append("the tokenizer or its chat template is another one")
    stops = stops_that_matter(tokenizer)
    if store.about.get("stops", stops) != stops:
        differences.append(f"stop tokens: prepared with {store.about['stops']}, the model's are {stops}")
    if differences:
        listed = "\n  ".join(differences)
        raise BadInput(f"{store.name}: prepared otherwise than this run needs it:\n  {listed}\nPrepare it again.")


def account(stores: Sequence[Store]) -> tuple[Counts, list[Dropped]]:
    """Counts and the rows left out, of several stores together."""
    dropped = [Dropped(*row) for store in stores for row in store.about["dropped"]]
    return add(Counts(**store.about["counts"]) for store in stores), dropped
