"""Renders chat templates in a subprocess, with limits on time and memory enforced by the kernel.

Templates are untrusted programs. A thread can't be interrupted during one long operation (`'a' * 10**12`) or be limited
in memory; a process can. Each of our processes has one, started at the first render (a third of a second) and driven
through pipes. A batch of conversations takes one round trip and renders in the background.
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
"""CPU time limit per conversation; real templates take milliseconds."""
MEMORY_BYTES = 2 * 2**30
"""Memory limit of rendering. The longest row allowed (`rows.ROW_LIMIT`) takes less than half."""

_log = logging.getLogger(__name__)

Messages = list[dict[str, Any]]
Beginning = tuple[int, bool]
"""(number of messages, whether with a generation prompt)."""


class Settings(NamedTuple):
    """What many conversations share."""

    source: str
    """The template."""
    variables: tuple[tuple[str, Any], ...] = ()
    """Other variables of the template, such as the special tokens."""
    date: str = ""
    """The date used by `strftime_now`, YYYY-MM-DD; empty means today."""


class Request(NamedTuple):
    """A conversation to render as transformers' `render_jinja_template` does."""

    settings: Settings
    messages: Messages
    tools: list[dict[str, Any]] | None = None
    generation_prompt: bool = False
    beginnings: tuple[Beginning, ...] = ()
    """Beginnings of the conversation to render too."""
    marks: bool = False
    """Whether to return the template's `{% generation %}` blocks."""
    kwargs: dict[str, Any] | None = None
    """Template kwargs."""


class Rendered(NamedTuple):
    """A rendered conversation."""

    text: str
    beginnings: dict[Beginning, str | None]
    """None if the template fails."""
    marked: tuple[str, list[tuple[int, int]]] | None
    """The text again, and the spans of its `{% generation %}` blocks; None if not requested."""
    unused: tuple[str, ...] = ()
    """Names in the request's `kwargs` that the template never uses."""


class TemplateFails(Exception):
    """A template raised an error, such as `TypeError: can only concatenate str …`."""

    def __init__(self, message: str, line: int | None = None):
        super().__init__(message)
        self.line = line
        """Line of a syntax error in the template."""


class OverLimit(Exception):
    """A render exceeded its time or memory limit, or crashed the process; the message is a predicate."""


def render(request: Request) -> Rendered:
    """Render one conversation.

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
            raise OverLimit(f"does not finish within {SECONDS:g} s")
    raise OverLimit("crashes its rendering process every time, possibly because the machine is out of memory")


def _rendered(request: Request, about: dict[str, Any], text: str) -> Rendered:
    if "memory" in about:
        raise OverLimit(f"needs more than {MEMORY_BYTES / 2**30:g} GiB of memory")
    if "failure" in about:
        raise TemplateFails(about["failure"], about["line"])
    texts = (text[:one] if isinstance(one, int) else one for one in about["beginnings"])
    marked = about["marked"] and (about["marked"][0], [(start, end) for start, end in about["marked"][1]])
    return Rendered(text, dict(zip(request.beginnings, texts, strict=True)), marked, tuple(about.get("unused", ())))


class Batch:
    """A batch of conversations, rendered in the background."""

    def __init__(self, requests: Sequence[Request]):
        """
        Raises:
          RuntimeError: the process does not start.
        """
        self.requests = requests
        self.status: int | None = None
        """Exit status of the process if it ended without replies."""
        self._replies: list[_Reply] | None = None
        with _lock:
            self._worker = _running()
            self._worker.send(self)

    def result(self, place: int) -> Rendered:
        """The result of one request; raises as `render`."""
        replies = self.replies()
        if replies is None:  # was it this one?
            return render(self.requests[place])
        return _rendered(self.requests[place], *replies[place])

    def replies(self) -> "list[_Reply] | None":
        """Wait for the replies; None if there are none, and `status` is set."""
        with _lock:
            if self._replies is None and self.status is None:
                self.receive()
        return self._replies

    def receive(self) -> None:
        """Read the replies; requires `_lock`."""
        replies = self._worker.read()
        if replies is None:
            self.status = _reap()
        elif len(replies) == len(self.requests):
            self._replies = replies
        else:  # not enough memory for all at once: each will be rendered separately
            self.status = 0


_Reply = tuple[dict[str, Any], str]
"""(metadata, text)."""


class _Worker:
    """The worker process and what has been sent to it."""

    def __init__(self) -> None:
        package: Any = importlib.util.find_spec("transformers")
        self.process: Any = subprocess.Popen(
            [sys.executable, "-P", render_worker.__file__, os.path.dirname(package.origin), str(MEMORY_BYTES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # BLAS threads use address space, which is limited.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,  # shield it from the terminal's signals; it exits when its stdin closes
        )
        self.sent: Batch | None = None
        """The batch whose replies have not been read yet."""
        self.numbers: dict[tuple[Settings, float], int] = {}
        """(settings, time limit) -> their index in requests."""

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
        with contextlib.suppress(BrokenPipeError):  # it has exited, which `read` detects
            self.process.stdin.write(LENGTH.pack(len(data)) + data)
            self.process.stdin.flush()

    def read(self) -> list[_Reply] | None:
        """The replies to the last batch; None if the process has exited."""
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
        """Close its stdin, wait for it to exit and return its exit status."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()
        return self.process.wait()


def _packed(parts: Any) -> bytes:
    try:
        return marshal.dumps(parts)
    except ValueError:  # not JSON, such as a date in a table: transformers gives templates its type
        return marshal.dumps(json.loads(json.dumps(parts, default=lambda value: f"<{type(value).__name__}>")))


_worker: _Worker | None = None
_lock = threading.Lock()


def _running() -> _Worker:
    """The worker, with all replies read; requires `_lock`."""
    global _worker
    if _worker is not None and _worker.sent is not None:
        _worker.sent.receive()
    if _worker is None:
        _worker = _Worker()
    return _worker


def _reap() -> int:
    """Exit status of the worker, which has exited; the next one is started on demand.

    Raises:
      RuntimeError: it failed on its own.
    """
    global _worker
    assert _worker is not None
    status, _worker = _worker.end(), None
    if status >= 0:
        raise RuntimeError(f"the process that renders chat templates failed with status {status}; see above")
    if status != -signal.SIGPROF:
        _log.warning("the process that renders chat templates was killed by signal %d; restarting it", -status)
    return status


def _stop() -> None:
    """Stop the worker at exit, including in `multiprocessing` children, which run no other exit hooks."""
    global _worker
    if _worker is not None:
        _worker.process.kill()
        _worker.end()
        _worker = None


def _forget() -> None:
    """After a fork: the worker belongs to the parent."""
    global _worker, _lock
    _worker, _lock = None, threading.Lock()


Finalize(None, _stop, exitpriority=0)
os.register_at_fork(after_in_child=_forget)
