"""The local copy of a bucket directory: fetched on first use, uploaded where it has changed.

Object stores can neither append nor rename, and the libraries that read tokenizers, ArrayRecord and event files do not
support them, so small files are read and written locally. The rest of the library uses copies through `Location`.
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
"""Folder of a workdir with config.json, generation_config.json and the tokenizer, so that the run is self-contained."""
COPIED_FOLDERS = (MODEL_FILES, "additional_chat_templates")
"""Subfolders copied together with a directory's own files: those of a run and of a Hugging Face tokenizer."""
WEIGHTS = (".safetensors", ".gguf")
OTHER_WEIGHTS = (".bin", ".pth", ".pt", ".ckpt", ".h5", ".msgpack", ".onnx")
"""Weight files of other frameworks, never read."""
LAST = ("features.json", "metadata.json", "dataset_info.json", "config.json")
"""Uploaded after all others, in this order: a reader that sees them also finds the rest."""
UNFINISHED = (".partial", ".tmp")
_COPIES, _HELD = "sft_jax-copies-", "held"
_SECONDS_TO_LOCK = 60


def join(*names: str) -> str:
    """`a/b/c`, without the empty ones."""
    return "/".join(filter(None, names))


class Copy:
    """The local copy of `url` and everything below it. Names are relative to `url`; "" is `url` itself.

    Exceptions of the object store propagate. Makes no request before the first `fetch`.
    """

    def __init__(self, url: str):
        self.url = url
        self.lock = threading.RLock()
        self._home: Path | None = None
        self._fetched: dict[str, bool] = {}
        """Name -> whether its weights were fetched too."""
        self._sent: dict[str, tuple[int, int]] = {}
        """Name -> (mtime in ns, bytes) of each file that is identical in the bucket."""

    def path(self, name: str = "") -> Path:
        """Path of the copy of `name`, whether or not it exists."""
        if self._home is None:
            self._home = Path(tempfile.mkdtemp(dir=home()))
        # Keeps the original's name, which appears in titles and messages.
        return self._home / self.url.rpartition("/")[2] / name

    def fetch(self, name: str, weights: bool) -> Path:
        """Path of the copy of `name`, fetched on the first call: its files and those of `COPIED_FOLDERS`. If nothing
        exists in the bucket, an empty directory.

        Args:
          weights: also fetch .safetensors and .gguf files.
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
        """Fetch one file unless it is already local."""
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

    def send(self, name: str, keep_alive: Callable[[], None]) -> None:
        """Upload the files below `name` that are new or changed since they were fetched or uploaded.

        Args:
          keep_alive: called after each file.
        """
        if self._home is None:
            return
        with self.lock:
            folder = self.path(name)
            files = [file for file in folder.rglob("*") if file.is_file() and not file.name.endswith(UNFINISHED)]
            named = {str(file.relative_to(folder)): file for file in files}
            for relative in sorted(named, key=lambda name: (LAST.index(name) if name in LAST else -1, name)):
                # Taken before the file is read, so that concurrent writes are uploaded the next time.
                full, signature = join(name, relative), _signature(named[relative])
                if self._sent.get(full) != signature:
                    store, target = file_system(join(self.url, full))
                    store.put_file(str(named[relative]), target)
                    self._sent[full] = signature
                    keep_alive()

    def with_url(self, message: str) -> str:
        """The message with the path of the copy replaced by `url`."""
        return message if self._home is None else message.replace(str(self.path()), self.url)

    def remove(self) -> None:
        """Delete the copy; the next `fetch` reads the bucket again."""
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
    """The directory of this process's copies. Directories of killed processes are removed first."""
    for old in Path(tempfile.gettempdir()).glob(f"{_COPIES}*"):
        _remove_if_stale(old)
    home = Path(tempfile.mkdtemp(prefix=_COPIES))
    # Stays open until the process exits: the lock shows that it is alive.
    fcntl.flock(os.open(home / _HELD, os.O_RDWR | os.O_CREAT), fcntl.LOCK_EX)
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    return home


def _remove_if_stale(home: Path) -> None:
    """Remove the copies of a dead process, whose lock the kernel has released."""
    try:
        with (home / _HELD).open("r+") as file:
            # A directory that is just being created has no lock yet.
            if time.time() - os.fstat(file.fileno()).st_mtime > _SECONDS_TO_LOCK:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(home)
    except OSError:
        return  # belongs to another user, is in use, or is being removed by another process
