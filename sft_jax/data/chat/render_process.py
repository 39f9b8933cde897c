"""Chat templates are rendered in a process of their own, with limits on time and memory that the kernel keeps.

A template is somebody else's program, and a thread can neither be stopped within one long operation (`'a' * 10**12`)
nor be given a memory of its own: a process can. It is one small process for each of ours, started at the first render
in a third of a second and asked through pipes; a block of conversations takes one exchange, and renders while this
process does something else.
"""

import contextlib
import importlib.util
import json
import logging
import marshal
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from multiprocessing.util import Finalize
from typing import Any, NamedTuple

from sft_jax.data.chat import render_worker
from sft_jax.data.chat.render_worker import LENGTH

SECONDS = 10.0
"""A template that computes longer than this on one conversation is refused; real ones take milliseconds."""
MEMORY_BYTES = 2 * 2**30
"""What rendering may take. The longest row that is read (`rows.ROW_LIMIT`) takes less than half."""

_log = logging.getLogger(__name__)

Messages = list[dict[str, Any]]
Beginning = tuple[int, bool]
"""So many of the messages, and whether with a generation prompt."""


class Settings(NamedTuple):
    """What is the same for many conversations."""

    source: str
    """The template."""
    variables: tuple[tuple[str, Any], ...] = ()
    """Names and values that it may read besides the conversation, such as the special tokens."""
    date: str = ""
    """The day that its `strftime_now` tells, YYYY-MM-DD; empty means today."""


class Request(NamedTuple):
    """A conversation to be written as transformers' `render_jinja_template` does."""

    settings: Settings
    messages: Messages
    tools: list[dict[str, Any]] | None = None
    generation_prompt: bool = False
    beginnings: tuple[Beginning, ...] = ()
    """Of the conversation, to be rendered too."""
    marks: bool = False
    """Whether the template's `{% generation %}` blocks are asked for."""
    kwargs: dict[str, Any] | None = None
    """Values that the template may read besides."""


class Rendered(NamedTuple):
    """What a template makes of one conversation."""

    text: str
    beginnings: dict[Beginning, str | None]
    """None where the template fails."""
    marked: tuple[str, list[tuple[int, int]]] | None
    """The text again, and the spans of its `{% generation %}` blocks; None where they were not asked for."""
    unused: tuple[str, ...] = ()
    """Names of the request's `kwargs` that the template never mentions."""


class TemplateFails(Exception):
    """What a template raised: `TypeError: can only concatenate str …`."""

    def __init__(self, message: str, line: int | None = None):
        super().__init__(message)
        self.line = line
        """Of the template, where its syntax is wrong."""


class OverLimit(Exception):
    """A render took too long, too much memory, or its process with it; the message says which, as a predicate."""


def render(request: Request) -> Rendered:
    """One conversation.

    Raises:
      TemplateFails: on the whole conversation.
      OverLimit: in any of its renders.
      RuntimeError: the process does not start.
    """
    for _ in range(2):
        batch = Batch([request])
        replies = batch.replies()
        if replies is not None:
            return _rendered(request, *replies[0])
        if batch.status == -signal.SIGPROF:
            raise OverLimit(f"does not come to an end within {SECONDS:g} s")
    raise OverLimit("ends the process that renders it, every time: does it take more memory than there is?")


def _rendered(request: Request, about: dict[str, Any], text: str) -> Rendered:
    if "memory" in about:
        raise OverLimit(f"needs more than {MEMORY_BYTES / 2**30:g} GiB of memory")
    if "failure" in about:
        raise TemplateFails(about["failure"], about["line"])
    texts = (text[:one] if isinstance(one, int) else one for one in about["beginnings"])
    marked = about["marked"] and (about["marked"][0], [(start, end) for start, end in about["marked"][1]])
    return Rendered(text, dict(zip(request.beginnings, texts, strict=True)), marked, tuple(about.get("unused", ())))


class Batch:
    """Conversations that are rendered from now on, while this process does something else."""

    def __init__(self, requests: Sequence[Request]):
        """
        Raises:
          RuntimeError: the process does not start.
        """
        self.requests = requests
        self.status: int | None = None
        """Where there are no replies: that of the process which has ended."""
        self._replies: list[_Reply] | None = None
        with _lock:
            self._worker = _running()
            self._worker.send(self)

    def result(self, place: int) -> Rendered:
        """Of one of the requests; raises as `render`."""
        replies = self.replies()
        if replies is None:  # was it this one?
            return render(self.requests[place])
        return _rendered(self.requests[place], *replies[place])

    def replies(self) -> "list[_Reply] | None":
        """Waits for them; None where there are none: `status` is set."""
        with _lock:
            if self._replies is None and self.status is None:
                self.receive()
        return self._replies

    def receive(self) -> None:
        """Read the replies; `_lock` is held."""
        replies = self._worker.read()
        if replies is None:
            self.status = _bury()
        elif len(replies) == len(self.requests):
            self._replies = replies
        else:  # no memory for them all: each will be asked for by itself
            self.status = 0


_Reply = tuple[dict[str, Any], str]
"""What there is to say of a text, and the text."""


class _Worker:
    """The process, and what it has been told."""

    def __init__(self) -> None:
        package: Any = importlib.util.find_spec("transformers")
        self.process: Any = subprocess.Popen(
            [sys.executable, "-P", render_worker.__file__, os.path.dirname(package.origin), str(MEMORY_BYTES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # The threads of a BLAS take address space, which is what is limited.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,  # away from the terminal's signals: it ends when its input does
        )
        self.sent: Batch | None = None
        """Whose replies are still to be read."""
        self.numbers: dict[tuple[Settings, float], int] = {}
        """Settings and time limit -> their number in requests."""

    def send(self, batch: Batch) -> None:
        numbers, told, parts = dict(self.numbers), [], []
        for settings, *rest in batch.requests:
            number = numbers.get((settings, SECONDS))
            if number is None:
                number = numbers[settings, SECONDS] = len(numbers)
                told.append((settings.source, dict(settings.variables), settings.date, SECONDS))
            parts.append((number, *rest))
        data = _packed((told, parts))
        self.sent, self.numbers = batch, numbers
        with contextlib.suppress(BrokenPipeError):  # it has ended: reading tells
            self.process.stdin.write(LENGTH.pack(len(data)) + data)
            self.process.stdin.flush()

    def read(self) -> list[_Reply] | None:
        """The replies to what was sent; None where the process has ended."""
        self.sent = None
        header = self.process.stdout.read(LENGTH.size)
        length = LENGTH.unpack(header)[0] if len(header) == LENGTH.size else 0
        data = self.process.stdout.read(length)
        if not length or len(data) < length:
            return None
        line, _, text = data.decode("utf-8", "surrogatepass").partition("\n")
        replies, at = [], 0
        for about in json.loads(line):
            replies.append((about, text[at : at + about["length"]]))
            at += about["length"]
        return replies

    def end(self) -> int:
        """Its exit status, once it has ended: it does so when its input does."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()
        return self.process.wait()


def _packed(parts: Any) -> bytes:
    try:
        return marshal.dumps(parts)
    except ValueError:  # a value that is no JSON, such as a date in a table: transformers shows templates its type
        return marshal.dumps(json.loads(json.dumps(parts, default=lambda value: f"<{type(value).__name__}>")))


_worker: _Worker | None = None
_lock = threading.Lock()


def _running() -> _Worker:
    """The process, with all its replies read; `_lock` is held."""
    global _worker
    if _worker is not None and _worker.sent is not None:
        _worker.sent.receive()
    if _worker is None:
        _worker = _Worker()
    return _worker


def _bury() -> int:
    """Exit status of the process, which has ended; the next one is started where it is needed.

    Raises:
      RuntimeError: it has failed by itself.
    """
    global _worker
    assert _worker is not None
    status, _worker = _worker.end(), None
    if status >= 0:
        raise RuntimeError(f"the process that renders chat templates has failed with status {status}; see above")
    if status != -signal.SIGPROF:
        _log.warning("the process that renders chat templates was ended by signal %d; it is started again", -status)
    return status


def _stop() -> None:
    """End the process with this one, also where this one is of `multiprocessing`, which runs no other exit hooks."""
    global _worker
    if _worker is not None:
        _worker.process.kill()
        _worker.end()
        _worker = None


def _forget() -> None:
    """In a fork: the process is the parent's."""
    global _worker, _lock
    _worker, _lock = None, threading.Lock()


Finalize(None, _stop, exitpriority=0)
os.register_at_fork(after_in_child=_forget)
