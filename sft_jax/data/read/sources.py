"""What `data.train` may name: files, globs, directories and data sets; and how a file is opened, wherever it lies."""

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
    """The files and data sets that `patterns` name, in the order given; a glob's or a directory's files sorted.

    A directory made by `datasets.save_to_disk` stands for itself, and so do `tfds://…` and `hf://…`.

    Raises:
      BadInput: nothing has that name (with the nearest names that exist), or it is no file of a known kind.
    """
    return [name for pattern in patterns for name in _matches(pattern)]


def is_saved_dataset(name: str) -> bool:
    """Whether `name` is a directory that Hugging Face's `save_to_disk` wrote."""
    return os.path.isfile(os.path.join(name, "state.json")) and os.path.isfile(os.path.join(name, "dataset_info.json"))


def kind(name: str) -> str:
    """`.jsonl`, `.json` or `.parquet` by the name's end, compressed or not; empty for anything else."""
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
                f"{path}: found the ending {Path(path).suffix!r}, expected {_EXPECTED}. Convert or rename the file."
            )
    return paths


def _directory(folder: str) -> list[str]:
    names = sorted(os.listdir(folder))
    if is_saved_dataset(folder):
        return [folder]
    if "dataset_dict.json" in names:
        splits = [name for name in names if is_saved_dataset(os.path.join(folder, name))]
        listed = " or ".join(os.path.join(folder, split) for split in splits)
        raise BadInput(f"{folder}: a data set with the splits {', '.join(splits)}: name one: {listed}")
    if "features.json" in names and "dataset_info.json" in names:
        raise BadInput(f"{folder}: a TFDS directory: name it with its split: tfds://{folder}:train")
    found = [os.path.join(folder, name) for name in names if kind(name) and not name.startswith(".")]
    found = [path for path in found if os.path.isfile(path)]
    if not found:
        raise BadInput(
            f"{folder}: a directory without a {_EXPECTED} file. It holds: {', '.join(names[:20]) or 'nothing'}. "
            f"For files further down, use a pattern: {folder.rstrip('/')}/**/*.jsonl"
        )
    return found


def _remote(pattern: str) -> list[str]:
    path = open_path(pattern)
    if "**" in pattern:
        raise BadInput(f"{pattern}: ** is not supported in a bucket (it asks for every folder): name the folders")
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
    """Turns what goes wrong while `name` is read into a message about it.

    Raises:
      BadInput: unreadable, cut off or damaged, or a package is missing that its scheme needs.
    """
    import zstandard

    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise BadInput(
            f"{name}: the compressed file is damaged or cut off ({error}). Copy or compress it again."
        ) from error
    except ImportError as error:
        package = PACKAGES.get(name.partition("://")[0], error.name or "a package")
        raise BadInput(f"{name}: cannot be opened without {package} ({error}): pip install {package}") from error
    except bucket_exceptions() as error:
        said = getattr(error, "strerror", None) or error
        raise BadInput(f"{name}: cannot be read: {said}. Check the path and its permissions.") from error


@contextmanager
def open_file(name: str) -> Iterator[BinaryIO]:
    """The (uncompressed) bytes of a file, streamed."""
    with open_path(name).open("rb") as file:
        if name.lower().endswith(".gz"):
            with gzip.open(file) as plain:
                yield plain  # type: ignore[misc]
        elif name.lower().endswith(".zst"):
            yield io.BufferedReader(_Zstandard(file), 2**16)
        else:
            yield file


class _Zstandard(io.RawIOBase):
    """Bytes of a `.zst` file. zstandard's own reader takes a cut-off file for one that ends there."""

    _STEP = 2**11
    """Compressed bytes taken at once: a block of four may stand for 128 KiB."""

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
                    raise EOFError("the last frame does not end")
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


def content_digest(name: str, gets_on: Callable[[], None] = lambda: None) -> str:
    """SHA-256 (hex) of what a file or a directory of `find_files` holds.

    Args:
      gets_on: called after every mebibyte.

    Raises:
      BadInput: unreadable.
    """
    if name.startswith("tfds://"):
        from sft_jax.data.read.tfds_source import prepared_directory

        name = prepared_directory(name)
    elif name.startswith("hf://"):
        return hashlib.sha256(name.encode()).hexdigest()  # the hub's revision is not known without asking it
    paths = [name]
    if "://" not in name and os.path.isdir(name):
        paths = sorted(str(path) for path in Path(name).rglob("*") if path.is_file())
    digest = hashlib.sha256()
    for path in paths:
        with reading(path), open_path(path).open("rb") as file:
            for block in iter(lambda file=file: file.read(2**20), b""):
                digest.update(block)
                gets_on()
    return digest.hexdigest()


def _neighbours(pattern: str) -> str:
    """Files that exist near a name that does not."""
    folder = Path(pattern).parent
    while not folder.is_dir():
        folder = folder.parent
    try:
        names = sorted(entry.name for entry in folder.iterdir() if kind(entry.name))
    except OSError as error:
        return f"{folder} cannot be listed: {error.strerror}."
    if not names:
        return f"There is no {_EXPECTED} file in {folder.resolve()}."
    return f"In {folder}: {nearest(Path(pattern).name, names[:50])}"
