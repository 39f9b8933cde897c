"""From the entries of a config to stores: opened where they are prepared already, prepared where they are not.

Preparation is cut into parts of a few thousand rows. One process reads the rows, workers encode them, and each part is
complete or absent on disk: memory is bounded whatever the size of the files, and an interrupted preparation goes on.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import sft_jax
from sft_jax.config import Data
from sft_jax.data.chat.tokenizer import fingerprint as tokenizer_fingerprint
from sft_jax.data.pack.prepare import Counts, Dropped, add, check_any_used, encode_rows
from sft_jax.data.pack.store import INFO, Store, finish, finish_split, is_store, write_part
from sft_jax.data.read.readers import read_rows
from sft_jax.data.read.rows import Row, cut
from sft_jax.data.read.sources import content_digest, find_files
from sft_jax.errors import BadInput
from sft_jax.storage.location import Location

PART_ROWS, PART_BYTES = 8192, 2**25
"""A part ends at whichever comes first; bytes are those of the raw rows."""
SETTINGS = (
    *("format", "fields", "function", "bad_rows", "train_on", "end_of_turn", "allow_lossy", "special_text"),
    *("template_date", "over_length", "sequence_length"),
)
"""What in `Data` decides the examples, besides the files and the tokenizer."""
_VERSION = 2
"""Raise it when the code here makes other tokens or weights from the same files."""
_DROPPED_KEPT = 10_000
"""So many rows that were left out are remembered by name; the counts are always whole."""

Progress = Callable[[int], None]
"""Called with the number of rows that have been read and encoded so far."""


def prepare_split(
    data: Data,
    tokenizer: Any,
    files: tuple[str, ...],
    directory: Path,
    split: str,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Encode the rows of `files` into one split of the data set in `directory`; parts that are there are kept.

    Returns what `store.finish` needs. The result does not depend on the number of workers.

    Raises:
      BadInput: as `prepare.prepare`, or a directory that cannot be written.
    """
    about = provenance(data, tokenizer, files)
    folder = directory / f"parts-{split}-{_key(about)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{directory}: cannot be written: {error.strerror}") from error
    try:
        stems = _make_parts(data, tokenizer, read_rows(files), folder, progress)
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


def provenance(data: Data, tokenizer: Any, files: tuple[str, ...]) -> dict[str, Any]:
    """What the examples depend on: the files' contents, how they are read, the tokenizer, this code."""
    return {
        "version": _VERSION,
        "sft_jax": sft_jax.__version__,
        "settings": {name: _plain(getattr(data, name)) for name in SETTINGS},
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "sources": [[name, content_digest(name)] for name in find_files(files)],
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


def open_entry(
    data: Data,
    tokenizer: Any,
    entry: str,
    cache: Location,
    is_first_process: bool,
    deadline_seconds: float,
    progress: Progress | None = None,
    locate: Callable[[str], Location] = Location,
) -> Store:
    """The store of one entry of data.train or data.eval: a prepared data set (`DIR` or `DIR:split`), or files, which
    are prepared once under `cache`: the first process does it, the others wait.

    Args:
      locate: gives the same Location for a name again where entries share what they copy from a bucket.

    Raises:
      BadInput: anything wrong with the entry, on every process; a data set that was prepared with other settings.
      RuntimeError: the first process has not finished within `deadline_seconds`.
    """
    directory, _, split = entry.rpartition(":") if not is_store(locate(entry)) else (entry, "", "train")
    if directory and is_store(locate(directory)):
        store = Store(locate(directory), split)
        check_settings(store, data, tokenizer)
        return store
    key = _key(provenance(data, tokenizer, (entry,)))
    place, refusal = cache / key, cache / f"{key}.refused"
    if is_first_process and not is_store(place):
        with refusal.reaching():
            refusal.epath.unlink(missing_ok=True)
        _prepare_entry(data, tokenizer, entry, place, refusal, progress)
    end = time.monotonic() + deadline_seconds
    while not is_store(place):
        if refusal.exists():
            raise BadInput(refusal.epath.read_text())
        if time.monotonic() > end:
            raise RuntimeError(
                f"{place / INFO}: the first process has not prepared {entry} within {deadline_seconds:g} s. "
                "Look for its error; all processes must see the same directory; a long preparation needs a "
                "larger distributed.timeout_seconds."
            )
        time.sleep(1.0 if place.is_remote else 0.1)
    return Store(place)


def _prepare_entry(
    data: Data, tokenizer: Any, entry: str, place: Location, refusal: Location, progress: Progress | None
) -> None:
    """Make the data set in `place`; what is wrong with the entry is left in `refusal` for the other processes."""
    directory = place.local()
    try:
        made = prepare_split(data, tokenizer, (entry,), directory, "train", progress)
    except BadInput as error:
        message = str(error).encode()
        if refusal.is_remote or directory.parent.is_dir():
            refusal.write_whole(lambda file: file.write(message))
        raise
    finish(directory, {"train": made}, f"Tokenised by sft_jax from {entry}", "")
    place.publish()


def check_settings(store: Store, data: Data, tokenizer: Any) -> None:
    """Refuse a prepared data set whose examples are not those that this config would make.

    Raises:
      BadInput: a line for each setting that differs.
    """
    prepared = store.about["settings"]
    wanted = {name: _plain(getattr(data, name)) for name in SETTINGS}
    # An open date is today's, and a data set keeps the day on which it was prepared.
    wanted["template_date"] = wanted["template_date"] or prepared["template_date"]
    differences = [
        f"data.{name}: prepared with {prepared.get(name)!r}, the config says {value!r}"
        for name, value in wanted.items()
        if prepared.get(name) != value
    ]
    if store.about["tokenizer"] != tokenizer_fingerprint(tokenizer):
        differences.append("the tokenizer or its chat template is another one")
    if differences:
        listed = "\n  ".join(differences)
        raise BadInput(f"{store.name}: prepared otherwise than this run needs it:\n  {listed}\nPrepare it again.")


def account(stores: Sequence[Store]) -> tuple[Counts, list[Dropped]]:
    """Counts and the rows left out, of several stores together."""
    dropped = [Dropped(*row) for store in stores for row in store.about["dropped"]]
    return add(Counts(**store.about["counts"]) for store in stores), dropped
