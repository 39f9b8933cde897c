"""Directories in an object store, `gs://bucket/path`: small files by a copy on this machine, checkpoints in place.

An object store neither appends nor renames, and the libraries that read tokenizers, ArrayRecord and event files know
none. So a directory there has a copy here: `local` makes it when it is first asked for, `publish` sends what has
changed in it. Checkpoints, which are large, are no part of it: Orbax writes and reads them in the bucket (`place`).
"""

import atexit
import contextlib
import errno
import fcntl
import functools
import os
import shutil
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sft_jax.config import url_problem
from sft_jax.errors import BadInput, Preempted

PACKAGES = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs"}
"""URL scheme -> the package that etils.epath needs to open it."""
MODEL_FILES = "model"
"""In a workdir: config.json, generation_config.json and the tokenizer, so that the run needs no other file."""
COPIED_FOLDERS = (MODEL_FILES, "additional_chat_templates")
"""What is copied with a directory's own files: of a run and of a Hugging Face tokenizer."""
WEIGHTS = (".safetensors", ".gguf")
OTHER_WEIGHTS = (".bin", ".pth", ".pt", ".ckpt", ".h5", ".msgpack", ".onnx")
"""Of other programs, never read."""
LAST = ("features.json", "metadata.json", "dataset_info.json", "config.json")
"""Sent after all others, in this order: whoever sees them finds the rest."""
UNFINISHED = (".partial", ".tmp")
PUBLISH_SECONDS = 30.0
"""So far may what is in the bucket lag behind, between two checkpoints."""
_COPIES, _HELD = "sft_jax-copies-", "held"
_SECONDS_TO_LOCK = 60


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


def kind_of(path: str | Path) -> str:
    """`file`, `directory`, or empty for nothing, in a bucket or here.

    Raises:
      BadInput: the bucket does not let this be seen; epath's own questions say then that nothing is there.
    """
    with reaching(path):
        try:
            return "directory" if open_path(str(path)).stat().is_directory else "file"
        except (FileNotFoundError, NotADirectoryError):
            return ""


def exists(path: str | Path) -> bool:
    """Whether a file or directory is there, in a bucket or here."""
    return bool(kind_of(path))


def file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path there; it copies whole files, much faster than block by block."""
    import fsspec.core

    open_path(url)  # first: it says that nothing is to be remembered
    return fsspec.core.url_to_fs(url)


def check_writable(path: str | Path, directory: bool = True) -> None:
    """Find out now whether what is at `path` can be written and removed; nothing for a path of this machine.

    By an empty object in it, or beside it where it is to be a file.

    Raises:
      BadInput: it cannot, or the URL is none that every package reads alike.
    """
    if is_remote(path):
        if problem := url_problem(str(path)):
            raise BadInput(problem)
        with reaching(path):
            name = f"{str(path).rstrip('/')}{'/' if directory else ''}.probe-{uuid.uuid4().hex}"
            probe = open_path(name)  # of this process's own: several may ask
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
            kind = kind_of(url)
            copy.is_file = kind == "file"
            if copy.is_file:
                _fetch(copy, url, source.name)
            elif kind:
                _fetch_folders(copy, url, weights)
            copy.made, copy.with_weights = True, weights or copy.is_file
    return copy.folder / source.name if copy.is_file else copy.folder


def _fetch_folders(copy: _Copy, url: str, weights: bool) -> None:
    left = OTHER_WEIGHTS if weights else OTHER_WEIGHTS + WEIGHTS
    for folder in ("", *COPIED_FOLDERS):
        directory = f"{url}/{folder}".rstrip("/")
        files, path = file_system(directory)
        for one in files.ls(path, detail=True) if kind_of(directory) else ():
            name = one["name"].rpartition("/")[2]
            if one["type"] == "file" and name and not name.endswith(left):
                _fetch(copy, f"{directory}/{name}", f"{folder}/{name}".lstrip("/"))


def _fetch(copy: _Copy, source: str, name: str) -> None:
    target = copy.folder / name
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.partial")
    files, path = file_system(source)
    files.get_file(path, str(partial))
    partial.rename(target)
    copy.sent[name] = _signature(target)


def local_file(path: str | Path, name: str) -> Path:
    """One file of `local(path)`, also from a folder that is not copied as a whole; it need not be there yet."""
    found = local(path) / name
    if is_remote(path):
        source = below(path, name)
        with reaching(path):
            if kind_of(source):
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
                files, target = file_system(below(path, name))
                files.put_file(str(named[name]), target)
                copy.sent[name] = signature


def publish_results(path: str | Path) -> None:
    """`publish` for a run that is under way.

    Raises:
      Preempted: the bucket cannot be reached or written any more. It is a matter of starting again, from what is there;
        a start finds out whether it is for good.
    """
    try:
        publish(path)
    except BadInput as error:
        raise Preempted(f"what the run has written is not all in the bucket: {error}") from error


@contextlib.contextmanager
def publishing(path: str | Path) -> Iterator[None]:
    """Publish every `PUBLISH_SECONDS` what is written in `local(path)`, and the rest at the end, however it ends.

    Raises:
      Preempted: after a clean end, as `publish_results`; where the run ends by an error, or goes on, it is told only.
    """
    if not is_remote(path):
        yield
        return
    over = threading.Event()

    def try_to() -> None:
        try:
            publish(path)
        except BadInput as error:
            print(f"not all is in the bucket yet: {error}", file=sys.stderr, flush=True)

    def repeat() -> None:
        while not over.wait(PUBLISH_SECONDS):
            try_to()

    thread = threading.Thread(target=repeat, daemon=True, name="publishing")
    thread.start()
    ended = False
    try:
        yield
        ended = True
    finally:
        over.set()
        thread.join()
        if not ended:
            try_to()  # how the run ended is the news
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
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise BadInput(
                f"{path}: its copy on this machine does not fit into {tempfile.gettempdir()} ({error.strerror}). Name "
                "another directory by TMPDIR."
            ) from error
        said = " ".join(str(error).split()) or type(error).__name__
        raise BadInput(
            f"{path}: cannot be reached: {said}. Check the bucket's name, this machine's credentials and their "
            "permissions."
        ) from error


@contextlib.contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Messages about the copy of `path` name `path` itself.

    Raises:
      BadInput: as inside.
    """
    try:
        yield
    except BadInput as error:
        copy = _copies.get(str(path).rstrip("/"))
        if copy is None or str(copy.folder) not in str(error):
            raise
        raise BadInput(str(error).replace(str(copy.folder), str(path).rstrip("/"))) from error


def require_local(path: str | Path, option: str) -> None:
    """Raises BadInput where `path` is in an object store, for what works on this machine alone."""
    if "://" in str(path):
        raise BadInput(f"{option} is {path}, expected a path of this machine")


def refusals() -> tuple[type[Exception], ...]:
    """What the packages that have been loaded raise where a bucket does not answer as it should."""
    named = (
        ("gcsfs.retry", "HttpError"),
        ("gcsfs.retry", "ChecksumError"),
        ("gcsfs.retry", "NonRetryableError"),
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


@functools.cache
def _home() -> Path:
    """The directory of this process's copies; those of processes that were killed are removed before it is made."""
    for old in Path(tempfile.gettempdir()).glob(f"{_COPIES}*"):
        _remove_if_left(old)
    home = Path(tempfile.mkdtemp(prefix=_COPIES))
    # Open until the process ends: its lock says that it lives.
    fcntl.flock(os.open(home / _HELD, os.O_RDWR | os.O_CREAT), fcntl.LOCK_EX)
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    return home


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
