"""Other people's templates: the date they print, what they cannot reach, and how long they may take."""

import sys
import threading
import time
from datetime import date
from typing import Any

import numpy as np
import pytest

from sft_jax.config import Data
from sft_jax.data.chat import render_process
from sft_jax.data.chat.encode import encode, generation_prompt, rendered
from sft_jax.data.chat.rendering import RenderOptions, render_options_of
from sft_jax.data.forms.formats import Conversation
from sft_jax.errors import BadInput

TALK = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "world"}]
DATED = "{{ 'Today is ' + strftime_now('%d %b %Y') + '.' if strftime_now is defined else 'No day.' }}"
ENDLESS = "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}"


def text(tokenizer: Any, policy: RenderOptions) -> str:
    return tokenizer.decode(encode("f:1", Conversation(TALK), tokenizer, "assistant", policy)[0])


def test_a_template_prints_the_date_of_the_config(make_tokenizer, templates):
    policy = RenderOptions(date="2026-02-03")
    for template in (DATED + templates.CHATML, DATED + templates.MARKED):
        tokenizer = make_tokenizer(template)
        assert text(tokenizer, policy).startswith("Today is 03 Feb 2026.<|im_start|>")
        assert rendered("f:1", TALK, tokenizer, policy).startswith("Today is 03 Feb 2026.<|im_start|>")
        assert tokenizer.decode(generation_prompt("f:1", TALK[:1], None, tokenizer, policy)).startswith(
            "Today is 03 Feb 2026.<|im_start|>"
        )


def test_without_a_date_a_template_prints_today_also_after_a_fixed_one(make_tokenizer, templates):
    tokenizer = make_tokenizer(DATED + templates.CHATML)
    assert "03 Feb 2026" in text(tokenizer, RenderOptions(date="2026-02-03"))
    for _ in range(2):  # twice: midnight may pass in between
        before = date.today().strftime("Today is %d %b %Y.")
        found = text(tokenizer, RenderOptions())
        if found.startswith(before):
            break
    assert found.startswith(before)
    assert tokenizer.apply_chat_template(TALK, tokenize=False).startswith(before)


def test_the_policy_is_that_of_the_config():
    data = Data(
        end_of_turn=False, allow_lossy=True, special_text="text", template_date="2026-02-03", template_kwargs=("x=1",)
    )
    assert render_options_of(data) == RenderOptions(False, True, "text", "2026-02-03", ("x=1",))
    assert render_options_of(Data()) == RenderOptions()


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append({}) }}",
        "{{ strftime_now.__class__.__mro__ }}",
        "{% for c in ''.__class__.__base__.__subclasses__() %}{{ c }}{% endfor %}",
    ],
)
def test_a_template_cannot_reach_into_python(make_tokenizer, attack: str):
    for policy in (RenderOptions(), RenderOptions(date="2026-02-03")):
        with pytest.raises(
            BadInput, match=r"f:1: the chat template fails on this conversation: SecurityError: .*unsafe"
        ):
            text(make_tokenizer("x" + attack), policy)


def test_an_endless_template_is_refused_naming_it_and_the_limit(make_tokenizer, monkeypatch):
    monkeypatch.setattr(render_process, "SECONDS", 0.2)
    begun = time.monotonic()
    with pytest.raises(BadInput, match=r"f:1: the chat template [0-9a-f]{8} of .*\{% for i .* within 0.2 s"):
        text(make_tokenizer(ENDLESS), RenderOptions())
    assert time.monotonic() - begun < 5
    with pytest.raises(BadInput, match=r"within 0.2 s"):
        rendered("f:1", TALK, make_tokenizer(ENDLESS))


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS takes the limit on memory and does not keep it")
def test_a_template_that_needs_too_much_memory_is_refused_naming_it_and_the_limit(make_tokenizer):
    with pytest.raises(
        BadInput,
        match=r"f:1: the chat template [0-9a-f]{8} of .* needs more than 2 GiB of memory on .*data.chat_template",
    ):
        text(make_tokenizer("{{ 'a' * 10**12 }}"), RenderOptions())


def test_an_endless_template_is_refused_in_any_thread(make_tokenizer, monkeypatch):
    monkeypatch.setattr(render_process, "SECONDS", 0.2)
    found: list[str] = []

    def read() -> None:
        try:
            text(make_tokenizer(ENDLESS), RenderOptions())
        except BadInput as error:
            found.append(str(error))
        found.append(text(make_tokenizer(), RenderOptions()))

    thread = threading.Thread(target=read)
    thread.start()
    thread.join(30)
    assert len(found) == 2 and "within 0.2 s" in found[0] and "world" in found[1]


def test_arguments_are_written_out_for_a_template_that_joins_them_to_a_string(make_tokenizer, templates):
    joining = templates.CHATML.replace("call.function.arguments | tojson", "'<' + call.function.arguments + '>'")
    call = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Zürich"}}}
    talk = [TALK[0], {"role": "assistant", "content": None, "tool_calls": [call]}]
    assert '"arguments": <{"city": "Zürich"}>}' in rendered("f:1", talk, make_tokenizer(joining))


KWARGS = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ style | default('') }}{{ (documents or []) | length }}{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{{ style | default('') }}{{ (documents or []) | length }}{% endif %}"""
"""Says its values in every turn, and in front of what the model writes."""


@pytest.mark.parametrize("kwargs", [None, {"style": "ab"}, {"style": "ab", "documents": [{"text": "c"}]}])
@pytest.mark.parametrize("special_text", ["special", "text"])
def test_ids_are_those_of_apply_chat_template_with_the_rows_values(make_tokenizer, kwargs, special_text):
    tokenizer, options = make_tokenizer(KWARGS), RenderOptions(special_text=special_text)
    talk = [*TALK, {"role": "user", "content": "<|endoftext|>" if special_text == "text" else "?"}, TALK[1]]
    encoded = encode("f:1", Conversation(talk, template_kwargs=kwargs), tokenizer, "assistant", options)
    given = kwargs or {}
    if special_text == "special":
        assert encoded.tokens.tolist() == tokenizer.apply_chat_template(talk, return_dict=False, **given)
    assert tokenizer.decode(encoded.tokens) == tokenizer.apply_chat_template(talk, tokenize=False, **given)
    assert tokenizer.decode(encoded.tokens[encoded.weights > 0]) == "world<|im_end|>" * 2
    prompt = generation_prompt("f:1", talk[:3], None, tokenizer, options, kwargs)
    last = int(np.flatnonzero(np.diff(encoded.weights) > 0)[-1]) + 1
    assert prompt == encoded.tokens[:last].tolist(), "what the model is given in training"


def test_a_runs_values_go_to_every_render_and_the_rows_own_win(make_tokenizer):
    tokenizer, options = make_tokenizer(KWARGS), RenderOptions(template_kwargs=("style=cd",))
    for kwargs, style in ((None, "cd"), ({"style": "ab"}, "ab")):
        encoded = encode("f:1", Conversation(TALK, template_kwargs=kwargs), tokenizer, "assistant", options)
        assert encoded.tokens.tolist() == tokenizer.apply_chat_template(TALK, style=style, return_dict=False)
        prompt = generation_prompt("f:1", TALK[:1], None, tokenizer, options, kwargs)
        assert tokenizer.decode(prompt).endswith(f"assistant\n{style}0")
    assert "cd0hello" in rendered("f:1", TALK, tokenizer, options)


def test_names_that_the_template_never_mentions_are_told(make_tokenizer, templates):
    kwargs = {"style": "ab", "sytle": "ab"}
    for template, unused in (
        (KWARGS, ("chat_template_kwargs.sytle",)),
        (templates.CHATML, ("chat_template_kwargs.style", "chat_template_kwargs.sytle")),
    ):
        conversation = Conversation(TALK, template_kwargs=kwargs)
        assert encode("f:1", conversation, make_tokenizer(template), "assistant").unused == unused
    assert encode("f:1", Conversation(TALK), make_tokenizer(KWARGS), "assistant").unused == ()
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    shows = make_tokenizer("{% if tools %}{{ tools | length }}{% endif %}" + templates.CHATML)
    for tokenizer, unused in ((make_tokenizer(KWARGS), ("tools, which the chat template ignores",)), (shows, ())):
        assert encode("f:1", Conversation(TALK, tools), tokenizer, "assistant").unused == unused
    assigned = "{% set style = style | default('x') %}" + templates.CHATML
    assert (
        encode("f:1", Conversation(TALK, template_kwargs={"style": "a"}), make_tokenizer(assigned), "assistant").unused
        == ()
    )
