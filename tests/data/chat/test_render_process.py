"""Somebody else's template may do what it likes: its process ends, this one says what happened, and goes on."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from sft_jax.data.chat import render_process
from sft_jax.data.chat.render_process import Batch, OverLimit, Request, Settings, TemplateFails, render

TALK = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "world"}]
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
ENDLESS = "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}"
GROWS = "{% set ns = namespace(s='ab') %}{% for i in range(29) %}{% set ns.s = ns.s + ns.s %}{% endfor %}done"
ON_LINUX = pytest.mark.skipif(sys.platform == "darwin", reason="macOS takes the limit on memory and does not keep it")


def text(source: str, messages: list[dict[str, Any]] = TALK) -> str:
    return render(Request(Settings(source), messages)).text


def pid() -> int:
    assert render_process._worker is not None
    return render_process._worker.process.pid


def is_gone(process: int) -> bool:
    """Neither running nor a zombie."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    return False


def is_gone_soon(process: int) -> bool:
    end = time.monotonic() + 20
    while not is_gone(process) and time.monotonic() < end:
        time.sleep(0.05)
    return is_gone(process)


@pytest.fixture(autouse=True)
def short_of_time(monkeypatch):
    monkeypatch.setattr(render_process, "SECONDS", 0.5)


@pytest.fixture
def short_of_memory(monkeypatch):
    """A process that may take a quarter of a gibibyte, for one test."""
    render_process._stop()
    monkeypatch.setattr(render_process, "MEMORY_BYTES", 2**28)
    monkeypatch.setattr(render_process, "SECONDS", 10.0)  # new pages may take their time
    yield
    render_process._stop()


@ON_LINUX
@pytest.mark.usefixtures("short_of_memory")
@pytest.mark.parametrize(
    "source",
    [
        GROWS,
        "{{ 'a' * 10**12 }}",
        "{{ ('a' * (10**9 // (messages | length))) | length }}",
        "{{ ([0] * 10**8) | length }}",
        "{{ 'x' | center(10**9) | length }}",
        "{{ '%1000000000d' % 3 }}",
    ],
)
def test_a_template_that_asks_for_too_much_memory_is_refused_and_the_next_one_is_rendered(source: str):
    text(PLAIN)
    before = pid()
    with pytest.raises(OverLimit, match=r"^needs more than 0.25 GiB of memory$"):
        text(source)
    assert text(PLAIN).startswith("user: hello") and pid() == before


@pytest.mark.parametrize(
    "source",
    [
        ENDLESS,
        "{{ 9 ** (9 ** 9) }}",  # one operation of the interpreter, which Jinja does where it compiles
        "{{ (7 + messages | length) ** (9 ** 9) }}",
        "{% macro f(n) %}{{ f(n - 1) + f(n - 1) if n else '' }}{% endmacro %}{{ f(60) }}",
    ],
)
def test_a_template_without_an_end_is_refused_its_process_gone_and_the_next_one_is_rendered(source: str):
    text(PLAIN)
    before, begun = pid(), time.monotonic()
    with pytest.raises(OverLimit, match=r"^does not finish within 0.5 s$"):
        text(source)
    assert time.monotonic() - begun < 20
    assert is_gone(before)
    assert text(PLAIN).startswith("user: hello")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}", "RecursionError: maximum recursion depth"),
        ("{% for i in range(10**9) %}{% endfor %}", "OverflowError: Range too big"),
        ("{% for m in messages", "TemplateSyntaxError: "),
        ("{{ raise_exception('roles must alternate') }}", "TemplateError: roles must alternate"),
        ("{{ messages + 'a' }}", "TypeError: "),
        ("{{ " + "(" * 5000 + ")" * 5000 + " }}", "Error: "),
        ("{% include 'x' %}", "TypeError: no loader"),
    ],
)
def test_a_template_that_fails_does_no_harm_and_says_why(source: str, said: str):
    text(PLAIN)
    before = pid()
    with pytest.raises(TemplateFails) as caught:
        text(source)
    assert said in str(caught.value)
    assert text(PLAIN).startswith("user: hello") and pid() == before


def test_a_process_that_is_killed_is_said_to_be_and_started_again(caplog):
    text(PLAIN)
    before = pid()
    os.kill(before, signal.SIGKILL)
    with caplog.at_level(logging.WARNING):
        assert text(PLAIN).startswith("user: hello")
    assert "killed by signal 9; restarting it" in caplog.text
    assert is_gone(before) and pid() != before


def test_a_process_that_is_killed_within_a_render_renders_again_and_twice_is_the_templates_fault(monkeypatch):
    text(PLAIN)
    send, left = render_process._Worker.send, []

    def send_and_kill(worker: Any, batch: Batch) -> None:
        if left:
            os.kill(worker.process.pid, signal.SIGSTOP)  # so that it has not answered when it is killed
        send(worker, batch)
        if left:
            os.kill(worker.process.pid, left.pop())

    monkeypatch.setattr(render_process._Worker, "send", send_and_kill)
    left += [signal.SIGKILL]
    assert text(PLAIN).startswith("user: hello") and not left
    left += [signal.SIGKILL] * 2
    with pytest.raises(OverLimit, match="crashes its rendering process every time"):
        text(PLAIN)
    assert text(PLAIN).startswith("user: hello") and not left


def test_one_bad_conversation_of_a_batch_is_told_from_the_others():
    settings = Settings("{% if messages[0].content == 'loop' %}" + ENDLESS + "{% endif %}" + PLAIN)
    talks = [[{"role": "user", "content": word}] for word in ("a", "loop", "b")]
    batch = Batch([Request(settings, talk) for talk in talks])
    assert batch.result(0).text == "user: a\n"
    with pytest.raises(OverLimit, match="does not finish"):
        batch.result(1)
    assert batch.result(2).text == "user: b\n"


def test_batches_larger_than_a_pipe_holds_may_wait_for_one_another():
    talk = [{"role": "user", "content": "é" * 2**20}]
    batches = [Batch([Request(Settings(PLAIN), talk)] * 3) for _ in range(3)]
    assert text(PLAIN, TALK[:1]) == "user: hello\n"
    for batch in reversed(batches):
        assert [len(batch.result(k).text) for k in range(3)] == [2**20 + len("user: \n")] * 3


def test_threads_get_their_own_texts():
    found: dict[int, list[str]] = {}

    def work(number: int) -> None:
        talks = [[{"role": "user", "content": f"{number} {k}"}] for k in range(50)]
        found[number] = [text(PLAIN, talk) for talk in talks]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == {number: [f"user: {number} {k}\n" for k in range(50)] for number in range(4)}


SHAPES: dict[str, list[dict[str, Any]]] = {
    "plain": TALK,
    "null": [{"role": "user", "content": "a", "name": None}, {"role": "assistant", "content": None}],
    "reasoning": [TALK[0], {"role": "assistant", "thinking": "well", "content": "yes"}],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "é😀"}, {"type": "image"}]}],
    "odd": [{"role": "user", "content": "a\n b\r\n\u2028\ud800", "n": 1.5, "many": (1, 2), "on": True, "big": 2**70}],
    "calls": [
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"a": []}}}]}
    ],
}
SHOWS = "{{ bos_token }}{{ messages | tojson }}{{ messages[0] }}{{ tools | tojson }}{{ messages[0].name is defined }}"


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("prompted", [False, True])
def test_a_text_is_that_of_apply_chat_template(make_tokenizer, templates, shape: str, prompted: bool):
    from sft_jax.data.chat.rendering import Template

    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    for source in (SHOWS, templates.CHATML_THINKS, templates.REWRITES_HISTORY, templates.MARKED):
        tokenizer = make_tokenizer(source)
        try:
            expected = tokenizer.apply_chat_template(
                SHAPES[shape], tools=tools, tokenize=False, add_generation_prompt=prompted
            )
        except (TypeError, ValueError):  # the template wants another shape
            continue
        assert Template("f:1", SHAPES[shape], tools, tokenizer, generation_prompt=prompted).whole == expected


def test_a_value_that_is_no_json_is_shown_as_transformers_shows_it(make_tokenizer):
    messages = [{"role": "user", "content": "a", "day": date(2026, 2, 3)}]
    tokenizer = make_tokenizer("{{ messages[0].day }}")
    assert text("{{ messages[0].day }}", messages) == tokenizer.apply_chat_template(messages, tokenize=False)


def test_the_process_starts_without_the_package_of_transformers():
    code = (
        "import sys\nfrom sft_jax.data.chat.render_worker import chat_templates\n"
        f"chat_templates({str(transformers_directory())!r})\n"
        "print([name for name in ('torch', 'jax', 'transformers.models', 'tokenizers') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def transformers_directory() -> Path:
    import transformers

    return Path(str(transformers.__file__)).parent


RENDERS = """
import os, sys, time
from sft_jax.data.chat import render_process
from sft_jax.data.chat.render_process import Request, Settings, render
print(render(Request(Settings("{{ messages[0].content }}"), [{"content": "up"}])).text)
print(render_process._worker.process.pid, flush=True)
"""


@pytest.mark.parametrize("doing", ["", "render(Request(Settings(sys.argv[1]), [{'content': 'x'}]))"])
def test_a_process_whose_parent_is_killed_ends_too_also_within_a_render(doing: str):
    code = RENDERS + (doing or "time.sleep(100)")
    code = code.replace("from sft_jax.data.chat import render_process\n", "", 1).replace(
        "import os, sys, time", "import os, sys, time\nfrom sft_jax.data.chat import render_process\n"
        "render_process.SECONDS = 2.0"
    )  # fmt: skip
    parent = subprocess.Popen([sys.executable, "-c", code, ENDLESS], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None and parent.stdout.readline() == "up\n"
    child = int(parent.stdout.readline())
    time.sleep(0.5)
    assert not is_gone(child)
    parent.kill()
    parent.communicate()
    assert is_gone_soon(child)


def _render_there(_: int) -> int:
    text(PLAIN)
    return pid()


def test_a_worker_of_a_pool_takes_its_process_with_it():
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        child = pool.submit(_render_there, 0).result()
        assert child != os.getpid() and not is_gone(child)
    assert is_gone_soon(child)


def test_a_fork_has_a_process_of_its_own():
    code = RENDERS + (
        "mine = render_process._worker.process.pid\n"
        "if os.fork() == 0:\n"
        "    render(Request(Settings('{{ messages[0].content }}'), [{'content': 'up'}]))\n"
        "    sys.exit(render_process._worker.process.pid == mine)\n"
        "status = os.wait()[1]\n"
        "print(render(Request(Settings('{{ messages[0].content }}'), [{'content': 'again'}])).text, status)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.splitlines()[2] == "again 0", found
