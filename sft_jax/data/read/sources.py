"""Resolves the names in `data.train` (files, globs, directories, datasets) and opens files, local or remote."""

import glob
import gzip
import hashlib
import io
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from sft_jax.errors import BadInput, hub_hint, nearest
from sft_jax.storage.bucket import PACKAGES, open_path
from sft_jax.storage.bucket_errors import bucket_exceptions

KINDS = (".jsonl", ".json", ".parquet")
COMPRESSED = (".gz", ".zst")
_EXPECTED = ".jsonl or .json (also .gz, .zst) or .parquet"


def find_files(patterns: tuple[str, ...]) -> list[str]:
    """The files and datasets that `patterns` name, in the order given; files of a glob or directory are sorted.

    A directory written by `datasets.save_to_disk` is one entry, and so are `tfds://…` and `hf://…`.

    Raises:
      BadInput: nothing has that name (suggests similar names), or it is not a file of a known kind.
    """
    return [name for pattern in patterns for name in _matches(pattern)]


def is_saved_dataset(name: str) -> bool:
    """Whether `name` is a directory written by Hugging Face's `save_to_disk`."""
    return os.path.isfile(os.path.join(name, "state.json")) and os.path.isfile(os.path.join(name, "dataset_info.json"))


def kind(name: str) -> str:
    """`.jsonl`, `.json` or `.parquet` by file extension, compressed or not; empty for anything else."""
    stem, end = os.path.splitext(name.lower())
    if end in COMPRESSED:
        end = os.path.splitext(stem)[1]
        return end if end in (".jsonl", ".json") else ""
    return end if end in KINDS else ""


def _matches(pattern: str) -> list[str]:
    scheme = pattern.partition("://")[0] if "://" in pattern else ""
    if scheme in ("tfds", "hf"):
        return [pattern]
    with reading(pattern):
        if scheme:
            return _remote(pattern)
        if os.path.isdir(pattern):
            return _directory(pattern)
    if os.path.exists(pattern):
        found = [pattern]
    elif glob.has_magic(pattern):
        found = sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))
        if not found:
            raise BadInput(f"{pattern}: no file matches this pattern. {_neighbours(pattern)}")
    else:
        raise BadInput(f"{pattern}: no such file. {_neighbours(pattern)}{'' if kind(pattern) else hub_hint(pattern)}")
    return _known(found)


def _known(paths: list[str]) -> list[str]:
    for path in paths:
        if not kind(path):
            raise BadInput(
                f"{path}: found the extension {Path(path).suffix!r}, expected {_EXPECTED}. Convert or rename the file."
            )
    return paths


def _directory(folder: str) -> list[str]:
    names = sorted(os.listdir(folder))
    if is_saved_dataset(folder):
        return [folder]
    if "dataset_dict.json" in names:
        splits = [name for name in names if is_saved_dataset(os.path.join(folder, name))]
        listed = " or ".join(os.path.join(folder, split) for split in splits)
        raise BadInput(f"{folder}: a dataset with the splits {', '.join(splits)}. Pass one of them: {listed}")
    if "features.json" in names and "dataset_info.json" in names:
        raise BadInput(f"{folder}: a TFDS directory. Pass it with a split: tfds://{folder}:train")
    found = [os.path.join(folder, name) for name in names if kind(name) and not name.startswith(".")]
    found = [path for path in found if os.path.isfile(path)]
    if not found:
        raise BadInput(
            f"{folder}: a directory without a {_EXPECTED} file. It contains: {', '.join(names[:20]) or 'nothing'}. "
            f"For files in subdirectories, use a pattern: {folder.rstrip('/')}/**/*.jsonl"
        )
    return found


def _remote(pattern: str) -> list[str]:
    path = open_path(pattern)
    if "**" in pattern:
        raise BadInput(f"{pattern}: ** is not supported in a bucket (it would list every folder): name the folders")
    if glob.has_magic(pattern):
        parts = pattern.split("/")
        first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
        found = sorted(str(match) for match in open_path("/".join(parts[:first])).glob("/".join(parts[first:])))
        if not found:
            raise BadInput(f"{pattern}: no file matches this pattern")
        return _known(found)
    if path.is_dir():
        found = sorted(str(child) for child in path.iterdir() if kind(child.name))
        if not found:
            raise BadInput(f"{pattern}: a directory without a {_EXPECTED} file")
        return found
    if not path.exists():
        raise BadInput(f"{pattern}: no such file")
    return _known([pattern])


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Context that turns errors while reading `name` into BadInput.

    Raises:
      BadInput: unreadable, truncated or damaged, or the package for its scheme is missing.
    """
    import zstandard

    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise BadInput(
            f"{name}: the compressed file is damaged or truncated ({error}). Copy or compress it again."
        ) from error
    except ImportError as error:
        package = PACKAGES.get(name.partition("://")[0], error.name or "a package")
        raise BadInput(f"{name}: cannot be opened without {package} ({error}): pip install {package}") from error
    except bucket_exceptions() as error:
        said = getattr(error, "strerror", None) or error
        raise BadInput(f"{name}: cannot be read: {said}. Check the path and its permissions.") from error


@contextmanager
def open_file(name: str) -> Iterator[BinaryIO]:
    """Open a file for streaming; compressed files are decompressed."""
    with open_path(name).open("rb") as file:
        if name.lower().endswith(".gz"):
            with gzip.open(file) as plain:
                yield plain  # type: ignore[misc]
        elif name.lower().endswith(".zst"):
            yield io.BufferedReader(_Zstandard(file), 2**16)
        else:
            yield file


class _Zstandard(io.RawIOBase):
    """Reader for `.zst` files that detects truncation, which zstandard's own reader does not."""

    _STEP = 2**11
    """Compressed bytes per read: a block of four bytes may expand to 128 KiB."""

    def __init__(self, file: BinaryIO):
        self._file, self._frame, self._ready, self._left = file, None, b"", b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        import zstandard

        while not self._ready:
            data = self._left or self._file.read(self._STEP)
            if not data:
                if self._frame is not None:
                    raise EOFError("the last frame is incomplete")
                return 0
            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            self._ready, self._left = self._frame.decompress(data), b""
            if self._frame.eof:
                self._left, self._frame = self._frame.unused_data, None
        taken = self._ready[: len(buffer)]
        buffer[: len(taken)] = taken
        self._ready = self._ready[len(taken) :]
        return len(taken)


def content_digest(name: str, keep_alive: Callable[[], None] = lambda: None) -> str:
    """SHA-256 (hex) of the contents of a file or directory from `find_files`.

    Args:
      keep_alive: called after every mebibyte.

    Raises:
      BadInput: unreadable.
    """
    if name.startswith("tfds://"):
        from sft_jax.data.read.tfds_source import prepared_directory

        name = prepared_directory(name)
    elif name.startswith("hf://"):
        return hashlib.sha256(name.encode()).hexdigest()  # finding the hub's revision would need the network
    paths = [name]
    if "://" not in name and os.path.isdir(name):
        paths = sorted(str(path) for path in Path(name).rglob("*") if path.is_file())
    digest = hashlib.sha256()
    for path in paths:
        with reading(path), open_path(path).open("rb") as file:
            for block in iter(lambda file=file: file.read(2**20), b""):
                digest.update(block)
                keep_alive()
    return digest.hexdigest()


def _neighbours(pattern: str) -> str:
    """A hint with existing files for a name that does not exist."""
    folder = Path(pattern).parent
    while not folder.is_dir():
        folder = folder.parent
    try:
        names = sorted(entry.name for entry in folder.iterdir() if kind(entry.name))
    except OSError as error:
        return f"{folder} cannot be listed: {error.strerror}."
    if not names:
        return f"{folder.resolve()} has no {_EXPECTED} file."
    return f"In {folder}: {nearest(Path(pattern).name, names[:50])}"
