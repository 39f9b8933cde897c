"""The copy of a bucket's directory on this machine: fetched when it is first asked for, sent where it has changed.

An object store neither appends nor renames, and the libraries that read tokenizers, ArrayRecord and event files know
none: so small files are read and written here. `Location` is how the rest of the program sees a copy.
"""

import atexit
import fcntl
import functools
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from sft_jax.storage.bucket import file_system, kind_of

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
_COPIES, _HELD = "sft_jax-copies-", "held"
_SECONDS_TO_LOCK = 60


def join(*names: str) -> str:
    """`a/b/c`, without the empty ones."""
    return "/".join(filter(None, names))


class Copy:
    """What is on this machine of `url` and of what lies below it. Names are relative to `url`; the empty one is itself.

    What an object store raises passes through; nothing here is asked before the first `fetch`.
    """

    def __init__(self, url: str):
        self.url = url
        self.lock = threading.RLock()
        self._home: Path | None = None
        self._fetched: dict[str, bool] = {}
        """Name -> whether its weights were copied too."""
        self._sent: dict[str, tuple[int, int]] = {}
        """Name -> (mtime in ns, bytes) of the files that are the same in the bucket."""

    def path(self, name: str = "") -> Path:
        """Where the copy of `name` is, or would be."""
        if self._home is None:
            self._home = Path(tempfile.mkdtemp(dir=home()))
        # It has the name of what it is a copy of: titles and messages show it.
        return self._home / self.url.rpartition("/")[2] / name

    def fetch(self, name: str, weights: bool) -> Path:
        """The copy of `name`, made at the first call: its files and those of `COPIED_FOLDERS`; for nothing an empty
        directory.

        Args:
          weights: copy .safetensors and .gguf files too.
        """
        with self.lock:
            if name not in self._fetched or (weights and not self._fetched[name]):
                kind = kind_of(join(self.url, name))
                if kind == "file":
                    self.fetch_file(name)
                else:
                    self.path(name).mkdir(parents=True, exist_ok=True)
                    for folder in ("", *COPIED_FOLDERS) if kind else ():
                        self._fetch_files(join(name, folder), OTHER_WEIGHTS if weights else OTHER_WEIGHTS + WEIGHTS)
                self._fetched[name] = weights or kind == "file"
        return self.path(name)

    def _fetch_files(self, folder: str, left_out: tuple[str, ...]) -> None:
        directory = join(self.url, folder)
        files, path = file_system(directory)
        for one in files.ls(path, detail=True) if kind_of(directory) else ():
            name = one["name"].rpartition("/")[2]
            if one["type"] == "file" and name and not name.endswith(left_out):
                self.fetch_file(join(folder, name))

    def fetch_file(self, name: str) -> None:
        """Copy one file, unless it is here already."""
        target = self.path(name)
        with self.lock:
            if target.exists():
                return
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f"{target.name}.partial")
            files, path = file_system(join(self.url, name))
            files.get_file(path, str(partial))
            partial.rename(target)
            self._sent[name] = _signature(target)

    def send(self, name: str, gets_on: Callable[[], None]) -> None:
        """Send the files below `name` that were written or changed since they were fetched or sent.

        Args:
          gets_on: called after each.
        """
        if self._home is None:
            return
        with self.lock:
            folder = self.path(name)
            files = [file for file in folder.rglob("*") if file.is_file() and not file.name.endswith(UNFINISHED)]
            named = {str(file.relative_to(folder)): file for file in files}
            for relative in sorted(named, key=lambda name: (LAST.index(name) if name in LAST else -1, name)):
                # Before it is read: what is written meanwhile is sent the next time.
                full, signature = join(name, relative), _signature(named[relative])
                if self._sent.get(full) != signature:
                    store, target = file_system(join(self.url, full))
                    store.put_file(str(named[relative]), target)
                    self._sent[full] = signature
                    gets_on()

    def naming_the_url(self, message: str) -> str:
        """The message with `url` in place of where the copy is."""
        return message if self._home is None else message.replace(str(self.path()), self.url)

    def remove(self) -> None:
        """Remove all of it; the next `fetch` gets what is in the bucket then."""
        with self.lock:
            if self._home is not None:
                shutil.rmtree(self._home)
            self._home = None
            self._fetched.clear()
            self._sent.clear()


def _signature(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_mtime_ns, found.st_size


# --- where the copies are ---------------------------------------------------------------------------------------------


@functools.cache
def home() -> Path:
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
