"""A path on this machine or in a bucket (`gs://bucket/path`), resolved once and passed on.

    workdir = Location("gs://bucket/run")
    (workdir / "checkpoints").exists()
    workdir.local() / "metrics.jsonl"       # a local file; `publish` uploads it
    (workdir / "checkpoints").epath         # the bucket itself: Orbax writes large checkpoints there directly

A bucket directory has a local copy, shared by the Location and every Location derived from it with `/`. A second
Location of the same URL fetches a second copy, so pass one Location on to share one copy.
"""

import contextlib
import copy
import logging
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from sft_jax.config import url_problem
from sft_jax.errors import BadInput, Preempted
from sft_jax.storage.atomic import write_atomic
from sft_jax.storage.bucket import file_system, is_remote, kind_of, open_path
from sft_jax.storage.bucket_errors import explain_bucket_errors
from sft_jax.storage.copies import Copy, join

_log = logging.getLogger(__name__)

PUBLISH_SECONDS = 30.0
"""Upload interval: how far the bucket may lag behind between two checkpoints."""


class Location:
    """A file or directory, which need not exist yet; creating a Location does no I/O."""

    def __init__(self, path: str | Path):
        self._name, self._below = str(path), ""
        self._copy: Copy | None = None
        """Shared with the Location that this one was derived from by `/`; `_below` is the path relative to it."""
        if is_remote(path):
            self._name = self._name.rstrip("/")
            self._copy = Copy(self._name)

    def __str__(self) -> str:
        """As the user wrote it."""
        return self._name

    def __repr__(self) -> str:
        return f"Location({self._name!r})"

    def __truediv__(self, name: str) -> "Location":
        child = copy.copy(self)
        child._name = f"{self._name}/{name}" if self.is_remote else str(Path(self._name, name))
        child._below = join(self._below, name)
        return child

    @property
    def is_remote(self) -> bool:
        """Whether this is in a bucket."""
        return self._copy is not None

    @property
    def epath(self) -> Any:
        """The file or directory itself, absolute, as an `etils.epath.Path` in the bucket or on this machine."""
        return open_path(self._name if self.is_remote else str(Path(self._name).resolve()))

    def kind(self) -> str:
        """`file`, `directory`, or "" if nothing exists.

        Raises:
          BadInput: the bucket denies access; epath's own `exists` would return False.
        """
        with self.explain_bucket_errors():
            return kind_of(str(self.epath))

    def exists(self) -> bool:
        """Whether a file or directory exists. Raises as `kind`."""
        return bool(self.kind())

    def check_writable(self, directory: bool = True) -> None:
        """Check that files here can be written and removed; does nothing for a local path.

        Writes and removes an empty object, inside a directory or next to a file.

        Raises:
          BadInput: no permission, or a URL that packages parse differently.
        """
        if not self.is_remote:
            return
        if problem := url_problem(self._name):
            raise BadInput(problem)
        with self.explain_bucket_errors():
            # A unique name: several processes may check at once.
            probe = open_path(f"{self._name}{'/' if directory else ''}.probe-{uuid.uuid4().hex}")
            probe.write_text("")
            probe.unlink()

    def local(self, weights: bool = False) -> Path:
        """Local path of the files: the path itself, or for a URL a copy of its files and of `model/`.

        The copy is fetched on the first call and removed when the process exits. For a URL where nothing exists it is
        an empty directory, to be filled and published; for the URL of a file it is that file.

        Args:
          weights: also fetch .safetensors and .gguf files.

        Raises:
          BadInput: the bucket cannot be reached or read.
        """
        if self._copy is None:
            return Path(self._name)
        with self.explain_bucket_errors():
            return self._copy.fetch(self._below, weights)

    def local_file(self, name: str) -> Path:
        """One file of `local()`, also in a folder that is not copied as a whole; it need not exist yet."""
        path = self.local() / name
        if self._copy is not None and (self / name).exists():
            with self.explain_bucket_errors():
                self._copy.fetch_file(join(self._below, name))
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def publish(self, keep_alive: Callable[[], None] = lambda: None) -> None:
        """Upload new and changed files of `local()`; does nothing for a local path.

        Args:
          keep_alive: called after each uploaded file.

        Raises:
          BadInput: the bucket cannot be reached or written.
        """
        if self._copy is not None:
            with self.explain_bucket_errors():
                self._copy.send(self._below, keep_alive)

    def publish_results(self) -> None:
        """`publish`, for a run in progress.

        Raises:
          Preempted: the bucket can no longer be reached or written. A restart resumes from what is there, and reports
            the error if it persists.
        """
        try:
            self.publish()
        except BadInput as error:
            raise Preempted(f"some of the run's files are not in the bucket yet: {error}") from error

    @contextlib.contextmanager
    def publishing(self) -> Iterator[None]:
        """Publish `local()` every `PUBLISH_SECONDS` and on exit, including exit by an exception.

        Raises:
          Preempted: as `publish_results`, if the body succeeded. Upload errors during the body, or after it has raised,
            are only logged.
        """
        if not self.is_remote:
            yield
            return
        done = threading.Event()

        def publish_or_warn() -> None:
            try:
                self.publish()
            except BadInput as error:
                _log.warning("some files are not in the bucket yet: %s", error)

        def repeat() -> None:
            while not done.wait(PUBLISH_SECONDS):
                publish_or_warn()

        thread = threading.Thread(target=repeat, daemon=True, name="publishing")
        thread.start()
        ended = False
        try:
            yield
            ended = True
        finally:
            done.set()
            thread.join()
            if not ended:
                publish_or_warn()  # do not mask the exception that ended the run
        self.publish_results()

    def write_atomic(self, write: Callable[[BinaryIO], Any]) -> None:
        """Write a file atomically, locally or directly to the bucket: readers see the old content or the new.

        Args:
          write: called with an open binary file.

        Raises:
          BadInput: the bucket cannot be reached or written.
        """
        if not self.is_remote:
            write_atomic(Path(self._name), write)
            return
        with tempfile.NamedTemporaryFile() as file:
            write(file)  # type: ignore[arg-type]
            file.flush()
            with self.explain_bucket_errors():
                files, target = file_system(self._name)
                files.put_file(file.name, target)

    def discard_copy(self) -> None:
        """Delete the local copy of a bucket directory; the next use fetches it again."""
        if self._copy is not None:
            self._copy.remove()

    def explain_bucket_errors(self) -> contextlib.AbstractContextManager[None]:
        """Convert bucket errors to BadInput; does nothing for a local path.

        Raises:
          BadInput: no such bucket, no credentials, no permission, no network, or a missing package.
        """
        return explain_bucket_errors(self._name)

    @contextlib.contextmanager
    def url_in_errors(self) -> Iterator[None]:
        """Replace the path of the local copy by the URL in error messages.

        Raises:
          BadInput: raised by the body.
        """
        try:
            yield
        except BadInput as error:
            message = str(error) if self._copy is None else self._copy.with_url(str(error))
            if message == str(error):
                raise
            raise BadInput(message) from error


def as_location(path: Location | str | Path) -> Location:
    """Convert a path to a Location; a Location is returned unchanged."""
    return path if isinstance(path, Location) else Location(path)


def require_local(path: str, option: str) -> None:
    """Raises BadInput if `path` is in an object store, for features that need a local path."""
    if "://" in path:
        raise BadInput(f"{option} is {path}, expected a local path")
