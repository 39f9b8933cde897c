"""The process that renders chat templates: it reads requests and writes replies until its input ends.

`render_process` runs this as a script: `render_worker.py TRANSFORMERS MEMORY_BYTES`. It imports only the file of
transformers that renders templates, not the package (which takes a second), and nothing from sft_jax. The kernel kills
it if a render takes too long, so it has no state that matters.

Messages in both directions start with their length. Requests are marshalled; replies, which may contain untrusted
text, are a line of JSON followed by the texts.
"""

import contextlib
import json
import marshal
import os
import resource
import signal
import struct
import sys
from datetime import date
from types import ModuleType
from typing import Any, BinaryIO

LENGTH = struct.Struct("<Q")


def chat_templates(transformers: str) -> Any:
    """Import transformers' chat template module from the package's directory without importing the package."""
    for name, path in (("transformers", transformers), ("transformers.utils", os.path.join(transformers, "utils"))):
        sys.modules[name] = package = ModuleType(name)
        package.__path__ = [path]
    from transformers.utils import chat_template_utils

    return chat_template_utils


def limit_memory(more_bytes: int) -> None:
    """Allow this process to map `more_bytes` more than now. macOS accepts the limit but doesn't enforce it."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            mapped = int(file.read().split()[0]) * resource.getpagesize()
    except FileNotFoundError:
        mapped = 0
    _, highest = resource.getrlimit(resource.RLIMIT_AS)
    limit = mapped + more_bytes
    if highest == resource.RLIM_INFINITY or limit < highest:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


UNUSED_TOOLS = "tools, which the chat template ignores"


class Renderer:
    """Renders requests with transformers' own functions; their only caller in this process."""

    def __init__(self, templates: Any):
        import jinja2

        self.templates = templates
        self.settings: list[tuple[str, dict[str, Any], str, float]] = []
        """For each index: template, variables, date, seconds."""
        self.names: dict[str, set[str]] = {}
        """Template -> the names it uses."""
        self.failures = (  # what a failing template may raise
            *(jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError),
            *(RuntimeError, SyntaxError),
        )

    def answer(
        self,
        number: int,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None,
        generation_prompt: bool,
        beginnings: list[tuple[int, bool]],
        marks: bool,
        kwargs: dict[str, Any] | None,
    ) -> tuple[dict[str, Any], str]:
        """Reply to one `render_process.Request` with (metadata, text)."""
        try:
            whole, _ = self.render(number, messages, tools, kwargs, generation_prompt)
            texts: list[int | str | None] = []
            for count, prompted in beginnings:
                text = self.beginning(number, messages[:count], tools, kwargs, prompted)
                # Most are prefixes of the whole text and need not be sent.
                texts.append(len(text) if text is not None and whole.startswith(text) else text)
            marked = None
            if marks:
                with contextlib.suppress(*self.failures):
                    marked = self.render(number, messages, tools, kwargs, marks=True)
            unused = self.unused(number, tools, kwargs)
        except MemoryError:
            return {"length": 0, "memory": True}, ""
        except self.failures as error:
            line = getattr(error, "lineno", None)
            return {"length": 0, "failure": f"{type(error).__name__}: {error}", "line": line}, ""
        return {"length": len(whole), "beginnings": texts, "marked": marked, "unused": unused}, whole

    def unused(self, number: int, tools: list[Any] | None, kwargs: dict[str, Any] | None) -> list[str]:
        """What the row gives that the template never mentions: `chat_template_kwargs.NAME`, and its tools."""
        if not tools and not kwargs:
            return []
        names = self.names_in(number)
        missing = [f"chat_template_kwargs.{name}" for name in kwargs or () if name not in names]
        return missing + ([UNUSED_TOOLS] if tools and "tools" not in names else [])

    def names_in(self, number: int) -> set[str]:
        """The names a template uses; it has already been compiled, so it can be parsed."""
        from jinja2 import nodes

        source = self.settings[number][0]
        if source not in self.names:
            tree = self.templates._compile_jinja_template(source).environment.parse(source)
            self.names[source] = {name.name for name in tree.find_all(nodes.Name)}
        return self.names[source]

    def beginning(self, *args: Any) -> str | None:
        """As `render`; None if the template fails."""
        try:
            return self.render(*args)[0]
        except self.failures:
            return None

    def render(
        self,
        number: int,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None,
        kwargs: dict[str, Any] | None = None,
        generation_prompt: bool = False,
        marks: bool = False,
    ) -> tuple[str, list[tuple[int, int]]]:
        """Render messages; with `marks` also return the spans of the `{% generation %}` blocks."""
        source, variables, day, seconds = self.settings[number]
        # Includes compilation, where Jinja folds constants. When the time is up, the kernel kills this process.
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            names = self.templates._compile_jinja_template(source).globals
            # transformers converts all template variables to plain JSON, including functions, so the date can't be
            # passed as one. It caches the compiled template together with these globals.
            names.maps[0].pop("strftime_now", None)
            if day:
                names["strftime_now"] = date.fromisoformat(day).strftime
            texts, spans = self.templates.render_jinja_template(
                [messages],
                tools=tools,
                chat_template=source,
                add_generation_prompt=generation_prompt,
                return_assistant_tokens_mask=marks,
                **{**variables, **(kwargs or {})},
            )
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        return texts[0], spans[0] if marks else []


def main() -> None:
    transformers, memory_bytes = sys.argv[1], int(sys.argv[2])
    requests, replies = os.fdopen(0, "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # print() must not write to the reply pipe
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    renderer = Renderer(chat_templates(transformers))
    limit_memory(memory_bytes)
    while header := requests.read(LENGTH.size):
        _reply(renderer, requests.read(*LENGTH.unpack(header)), replies)


def _reply(renderer: Renderer, requests: bytes, replies: BinaryIO) -> None:
    try:
        settings, parts = marshal.loads(requests)
        renderer.settings += settings
        answers = [renderer.answer(*part) for part in parts]
        about = json.dumps([about for about, _ in answers])
        reply = "\n".join((about, "".join(text for _, text in answers))).encode("utf-8", "surrogatepass")
    except MemoryError:
        reply = b'[{"length": 0, "memory": true}]\n'
    replies.write(LENGTH.pack(len(reply)) + reply)
    replies.flush()


if __name__ == "__main__":
    main()
