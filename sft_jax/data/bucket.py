"""Directories in an object store, `gs://bucket/path`: small files by a copy on this machine, checkpoints in place.

An object store neither appends nor renames, and the libraries that read tokenizers, ArrayRecord and event files know
none. So a directory there has a copy here: `local` makes it when it is first asked for, `publish` sends what has
changed in it. Checkpoints, which are large, are no part of it: Orbax writes and reads them in the bucket (`place`).
"""

import atexit
import contextlib
import fcntl
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sft_jax.errors import BadInput

PACKAGES = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs"}
"""URL scheme -> the package that etils.epath needs to open it."""
MODEL_FILES = "model"
"""In a workdir: config.json, generation_config.json and the tokenizer, so that the run needs no other file."""
COPIED_FOLDERS = (MODEL_FILES, "additional_chat_templates")
"""What is copied with a directory's own files: of a run and of a Hugging Face tokenizer."""
WEIGHTS = (".safetensors", ".gguf")
LAST = ("features.json", "metadata.json", "dataset_info.json", "config.json")
"""Sent after all others, in this order: whoever sees them finds the rest."""
UNFINISHED = (".partial", ".tmp")
PUBLISH_SECONDS = 30.0
"""So far may what is in the bucket lag behind, between two checkpoints."""
_COPIES, _HELD = "sft_jax-copies-", "held"
_SECONDS_TO_LOCK = 60
_BLOCK_BYTES = 2**22


@dataclass
class _Copy:
    folder: Path
    sent: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Relative path -> (mtime in ns, bytes) of the files that are the same in the bucket."""
    made: bool = False
    with_weights: bool = False
    is_file: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)


_copies: dict[str, _Copy] = {}
"""Of this process, by URL."""


def is_remote(path: str | Path) -> bool:
    """Whether `path` names something in an object store."""
    return str(path).partition("://")[0] in PACKAGES and "://" in str(path)


def open_path(name: str) -> Any:
    """The epath of a file or directory, wherever it lies.

    Raises:
      BadInput: a scheme that nobody knows.
    """
    from etils import epath

    scheme = name.partition("://")[0] if "://" in name else ""
    if scheme:
        import fsspec.config

        # Other processes write too: what was listed once may be old.
        for known in (*PACKAGES, "gcs"):
            fsspec.config.conf.setdefault(known, {}).setdefault("use_listings_cache", False)
    try:
        return epath.Path(name)
    except KeyError as error:
        known = ", ".join(f"{known}://" for known in (*PACKAGES, "tfds", "hf"))
        raise BadInput(f"{name}: unknown scheme {scheme}://. Known: {known}, and paths of this machine") from error


def place(path: str | Path) -> Any:
    """Where a directory itself lies, absolute, as an epath: in the bucket or on this machine."""
    return open_path(str(path) if is_remote(path) else str(Path(path).resolve()))


def below(path: str | Path, *names: str) -> str:
    """`path/name/...` of a URL or a path of this machine."""
    return "/".join((str(path).rstrip("/"), *names)) if is_remote(path) else str(Path(path, *names))


def exists(path: str | Path) -> bool:
    """Whether a file or directory is there, in a bucket or here."""
    with reaching(path):
        return open_path(str(path)).exists()


def check_writable(path: str | Path) -> None:
    """Find out now, by an empty object beside it, whether `path` can be written; nothing for a path of this machine.

    Raises:
      BadInput: it cannot.
    """
    if is_remote(path):
        with reaching(path):
            probe = open_path(f"{str(path).rstrip('/')}.probe")
            probe.write_text("")
            probe.unlink()


def local(path: str | Path, weights: bool = False) -> Path:
    """Where the files of `path` are on this machine: itself, or for a URL a copy of its files and of `model/`.

    The copy is made at the first call and is gone when the process ends. A URL that names nothing gets an empty
    directory, to be filled and published; one that names a file gets that file.

    Args:
      weights: copy .safetensors and .gguf files too.

    Raises:
      BadInput: the bucket cannot be reached or read.
    """
    if not is_remote(path):
        return Path(path)
    url = str(path).rstrip("/")
    copy = _copies.get(url)
    if copy is None:
        # It has the name of what it is a copy of: titles and messages show it.
        copy = _copies[url] = _Copy(Path(tempfile.mkdtemp(dir=_home())) / url.rpartition("/")[2])
        copy.folder.mkdir()
    with reaching(url), copy.lock:
        source = open_path(url)
        if not copy.made or (weights and not copy.with_weights):
            copy.is_file = source.is_file()
            if copy.is_file:
                _fetch(copy, source, source.name)
            else:
                _fetch_folders(copy, source, weights)
            copy.made, copy.with_weights = True, weights or copy.is_file
    return copy.folder / source.name if copy.is_file else copy.folder


def _fetch_folders(copy: _Copy, source: Any, weights: bool) -> None:
    for folder in ("", *COPIED_FOLDERS):
        directory = source / folder
        for one in directory.iterdir() if directory.is_dir() else ():
            if one.name and (weights or not one.name.endswith(WEIGHTS)) and one.is_file():
                _fetch(copy, one, f"{folder}/{one.name}".lstrip("/"))


def _fetch(copy: _Copy, source: Any, name: str) -> None:
    target = copy.folder / name
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.partial")
    with source.open("rb") as file, partial.open("wb") as out:
        shutil.copyfileobj(file, out, _BLOCK_BYTES)
    partial.rename(target)
    copy.sent[name] = _signature(target)


def local_file(path: str | Path, name: str) -> Path:
    """One file of `local(path)`, also from a folder that is not copied as a whole; it need not be there yet."""
    found = local(path) / name
    if is_remote(path):
        with reaching(path):
            source = open_path(below(path, name))
            if source.exists():
                _fetch(_copies[str(path).rstrip("/")], source, name)
    found.parent.mkdir(parents=True, exist_ok=True)
    return found


def publish(path: str | Path) -> None:
    """Send what was written or changed in `local(path)` since it was copied or sent; nothing of this machine's paths.

    Raises:
      BadInput: the bucket cannot be reached or written.
    """
    copy = _copies.get(str(path).rstrip("/"))
    if copy is None:
        return
    with reaching(path), copy.lock:
        files = [file for file in copy.folder.rglob("*") if file.is_file() and not file.name.endswith(UNFINISHED)]
        named = {str(file.relative_to(copy.folder)): file for file in files}
        order = sorted(named, key=lambda name: (LAST.index(name) if name in LAST else -1, name))
        for name in order:
            # Before it is read: what is written meanwhile is sent the next time.
            signature = _signature(named[name])
            if copy.sent.get(name) != signature:
                with named[name].open("rb") as file, open_path(below(path, name)).open("wb") as out:
                    shutil.copyfileobj(file, out, _BLOCK_BYTES)
                copy.sent[name] = signature


def publish_results(path: str | Path) -> None:
    """`publish` for a run that is under way: nothing is wrong with its input.

    Raises:
      RuntimeError: the bucket cannot be reached or written any more.
    """
    try:
        publish(path)
    except BadInput as error:
        raise RuntimeError(f"what the run has written is not all in the bucket: {error}") from error


@contextlib.contextmanager
def publishing(path: str | Path) -> Iterator[None]:
    """Publish every `PUBLISH_SECONDS` what is written in `local(path)`, and the rest at the end, however it ends.

    Raises:
      RuntimeError: at the end, as `publish_results`; until then it is told, and tried again.
    """
    if not is_remote(path):
        yield
        return
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(PUBLISH_SECONDS):
            try:
                publish(path)
            except BadInput as error:
                print(f"{error}; trying again", file=sys.stderr, flush=True)

    thread = threading.Thread(target=repeat, daemon=True, name="publishing")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        publish_results(path)


def forget(path: str | Path) -> None:
    """Remove the copy, if there is one; who asks for it next gets what is in the bucket then."""
    copy = _copies.pop(str(path).rstrip("/"), None)
    if copy is not None:
        shutil.rmtree(copy.folder.parent)


@contextlib.contextmanager
def reaching(path: str | Path) -> Iterator[None]:
    """Turns what goes wrong with a bucket into a message about it; nothing for a path of this machine.

    Raises:
      BadInput: no such bucket, no credentials, no permission, no network, or a package is missing.
    """
    if not is_remote(path):
        yield
        return
    try:
        yield
    except ImportError as error:
        package = PACKAGES[str(path).partition("://")[0]]
        raise BadInput(f"{path}: cannot be opened without {package} ({error}): pip install {package}") from error
    except refusals() as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise BadInput(
            f"{path}: cannot be reached: {said}. Check the bucket's name, this machine's credentials and their "
            "permissions."
        ) from error


def refusals() -> tuple[type[Exception], ...]:
    """What the packages that have been loaded raise where a bucket does not answer as it should."""
    named = (
        ("gcsfs.retry", "HttpError"),
        ("google.auth.exceptions", "GoogleAuthError"),
        ("google.api_core.exceptions", "GoogleAPIError"),
        ("aiohttp", "ClientError"),
        ("botocore.exceptions", "BotoCoreError"),
        ("botocore.exceptions", "ClientError"),
    )
    return (OSError, *(getattr(sys.modules[module], name) for module, name in named if module in sys.modules))


def _signature(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_mtime_ns, found.st_size


# --- where the copies are ---------------------------------------------------------------------------------------------

_home_of_copies: list[Path] = []


def _home() -> Path:
    """The directory of this process's copies; those of processes that were killed are removed before it is made."""
    if not _home_of_copies:
        for old in Path(tempfile.gettempdir()).glob(f"{_COPIES}*"):
            _remove_if_left(old)
        home = Path(tempfile.mkdtemp(prefix=_COPIES))
        # Open until the process ends: its lock says that it lives.
        fcntl.flock(os.open(home / _HELD, os.O_RDWR | os.O_CREAT), fcntl.LOCK_EX)
        atexit.register(shutil.rmtree, home, ignore_errors=True)
        _home_of_copies.append(home)
    return _home_of_copies[0]


def _remove_if_left(home: Path) -> None:
    """Remove the copies of a process that is gone: the kernel has given up its lock."""
    try:
        with (home / _HELD).open("r+") as file:
            # One that is just being made has no lock yet.
            if time.time() - os.fstat(file.fileno()).st_mtime > _SECONDS_TO_LOCK:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(home)
    except OSError:
        return  # another user's, one in use, or one that another process removes
