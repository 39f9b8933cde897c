"""A place for files, resolved once and passed on: a path of this machine, or one in a bucket (`gs://bucket/path`).

    workdir = Location("gs://bucket/run")
    (workdir / "checkpoints").exists()
    workdir.local() / "metrics.jsonl"       # a file of this machine; `publish` sends it
    (workdir / "checkpoints").epath         # the bucket itself: Orbax writes checkpoints, which are large, in place

A directory in a bucket has a copy here. It belongs to the Location and to all that is reached from it by `/`. Another
Location of the same URL has another copy, with what is in the bucket when it is made: whoever wants one copy passes
one Location on.
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
from sft_jax.storage.atomic import write_whole
from sft_jax.storage.bucket import file_system, is_remote, kind_of, open_path
from sft_jax.storage.bucket_errors import reaching
from sft_jax.storage.copies import Copy, join

_log = logging.getLogger(__name__)

PUBLISH_SECONDS = 30.0
"""So far may what is in the bucket lag behind, between two checkpoints."""


class Location:
    """A file or directory, which need not be there yet; making one asks nothing of a bucket or disk."""

    def __init__(self, path: str | Path):
        self._name, self._below = str(path), ""
        self._copy: Copy | None = None
        """Of the Location that this one was reached from by `/`; `_below` leads here from there."""
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
        """Whether it is in a bucket."""
        return self._copy is not None

    @property
    def epath(self) -> Any:
        """The file or directory itself, absolute, as an `etils.epath.Path`: in the bucket or on this machine."""
        return open_path(self._name if self.is_remote else str(Path(self._name).resolve()))

    def kind(self) -> str:
        """`file`, `directory`, or empty for nothing.

        Raises:
          BadInput: the bucket does not let this be seen; epath's own questions say then that nothing is there.
        """
        with self.reaching():
            return kind_of(str(self.epath))

    def exists(self) -> bool:
        """Whether a file or directory is there. Raises as `kind`."""
        return bool(self.kind())

    def check_writable(self, directory: bool = True) -> None:
        """Find out now whether what is here can be written and removed; nothing for a path of this machine.

        By an empty object in it, or beside it where it is to be a file.

        Raises:
          BadInput: it cannot, or the URL is none that every package reads alike.
        """
        if not self.is_remote:
            return
        if problem := url_problem(self._name):
            raise BadInput(problem)
        with self.reaching():
            # Of this process's own: several may ask.
            probe = open_path(f"{self._name}{'/' if directory else ''}.probe-{uuid.uuid4().hex}")
            probe.write_text("")
            probe.unlink()

    def local(self, weights: bool = False) -> Path:
        """Where its files are on this machine: itself, or for a URL a copy of its files and of `model/`.

        The copy is made at the first call and is gone when the process ends. A URL that names nothing gets an empty
        directory, to be filled and published; one that names a file gets that file.

        Args:
          weights: copy .safetensors and .gguf files too.

        Raises:
          BadInput: the bucket cannot be reached or read.
        """
        if self._copy is None:
            return Path(self._name)
        with self.reaching():
            return self._copy.fetch(self._below, weights)

    def local_file(self, name: str) -> Path:
        """One file of `local()`, also from a folder that is not copied as a whole; it need not be there yet."""
        path = self.local() / name
        if self._copy is not None and (self / name).exists():
            with self.reaching():
                self._copy.fetch_file(join(self._below, name))
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def publish(self, gets_on: Callable[[], None] = lambda: None) -> None:
        """Send what was written or changed in `local()` since it was copied or sent; nothing of this machine's paths.

        Args:
          gets_on: called after every file that is sent.

        Raises:
          BadInput: the bucket cannot be reached or written.
        """
        if self._copy is not None:
            with self.reaching():
                self._copy.send(self._below, gets_on)

    def publish_results(self) -> None:
        """`publish` for a run that is under way.

        Raises:
          Preempted: the bucket cannot be reached or written any more. It is a matter of starting again, from what is
            there; a start finds out whether it is for good.
        """
        try:
            self.publish()
        except BadInput as error:
            raise Preempted(f"what the run has written is not all in the bucket: {error}") from error

    @contextlib.contextmanager
    def publishing(self) -> Iterator[None]:
        """Publish every `PUBLISH_SECONDS` what is written in `local()`, and the rest at the end, however it ends.

        Raises:
          Preempted: after a clean end, as `publish_results`; where the run ends by an error, or goes on, it is told
            only.
        """
        if not self.is_remote:
            yield
            return
        over = threading.Event()

        def try_to() -> None:
            try:
                self.publish()
            except BadInput as error:
                _log.warning("not all is in the bucket yet: %s", error)

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
        self.publish_results()

    def write_whole(self, write: Callable[[BinaryIO], Any]) -> None:
        """Write a file, here or straight into the bucket; whoever reads it sees the old content or the new one.

        Args:
          write: called with an open binary file.

        Raises:
          BadInput: the bucket cannot be reached or written.
        """
        if not self.is_remote:
            write_whole(Path(self._name), write)
            return
        with tempfile.NamedTemporaryFile() as file:
            write(file)  # type: ignore[arg-type]
            file.flush()
            with self.reaching():
                files, target = file_system(self._name)
                files.put_file(file.name, target)

    def forget(self) -> None:
        """Remove the whole copy, if there is one; who asks for it next gets what is in the bucket then."""
        if self._copy is not None:
            self._copy.remove()

    def reaching(self) -> contextlib.AbstractContextManager[None]:
        """Turns what goes wrong with the bucket into a message about it; nothing for a path of this machine.

        Raises:
          BadInput: no such bucket, no credentials, no permission, no network, or a package is missing.
        """
        return reaching(self._name)

    @contextlib.contextmanager
    def naming(self) -> Iterator[None]:
        """Messages about the copy name the bucket.

        Raises:
          BadInput: as inside.
        """
        try:
            yield
        except BadInput as error:
            message = str(error) if self._copy is None else self._copy.naming_the_url(str(error))
            if message == str(error):
                raise
            raise BadInput(message) from error


def as_location(path: Location | str | Path) -> Location:
    """A Location of what may be one already."""
    return path if isinstance(path, Location) else Location(path)


def require_local(path: str, option: str) -> None:
    """Raises BadInput where `path` is in an object store, for what works on this machine alone."""
    if "://" in path:
        raise BadInput(f"{option} is {path}, expected a path of this machine")
