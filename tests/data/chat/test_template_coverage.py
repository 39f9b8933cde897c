"""What a chat template leaves out of what should train: refused, or told."""

from typing import Any

import pytest

from sft_jax.config import Data
from sft_jax.data.chat.encode import Encoded, encode
from sft_jax.data.chat.rendering import RenderOptions
from sft_jax.data.chat.template_coverage import losses
from sft_jax.data.forms.formats import Conversation
from sft_jax.data.forms.messages import check_messages
from sft_jax.data.pack.prepare import describe_counts, prepare
from sft_jax.errors import BadInput
from tests.data.chat.test_encode import TALK, chat, trained, weather


def test_an_earlier_turn_may_be_lost_when_only_the_last_one_trains(make_tokenizer, templates):
    tokenizer = make_tokenizer(templates.REWRITES_HISTORY)
    messages = [dict(m) for m in TALK]
    messages[2]["content"] = "<think>\nhmm\n</think>\n\nParis"
    with pytest.raises(BadInput, match=r"messages\[2\] \(assistant\): the chat template drops its content 'hmm'"):
        chat(tokenizer, messages)
    runs = trained(tokenizer, chat(tokenizer, messages, "last_assistant"))
    assert runs == ["<think>\n\n</think>\n\nhello\n\nworld<|im_end|>"]


def test_reasoning_that_the_template_leaves_out_is_refused(make_tokenizer):
    with pytest.raises(BadInput, match="drops its reasoning_content 'because'"):
        chat(make_tokenizer(), [*TALK[:4], {**TALK[4], "reasoning_content": "because"}])


def test_a_template_that_drops_tool_calls_is_refused_naming_what_is_lost(make_tokenizer, templates):
    tokenizer = make_tokenizer(templates.DROPS_CALLS)
    for content in (None, "", "Let me see."):
        message = {"role": "assistant", "content": content, "tool_calls": [weather(city="Paris")]}
        with pytest.raises(
            BadInput, match=r"demos.jsonl:17: messages\[1\].*drops the tool call 'get_weather'.*'Paris'"
        ):
            chat(tokenizer, [TALK[1], message])


def test_a_template_that_drops_the_second_of_two_equal_calls_is_refused(make_tokenizer, templates):
    tokenizer = make_tokenizer(templates.CHATML.replace("m.tool_calls or []", "(m.tool_calls or [])[:1]"))
    message = {"role": "assistant", "content": "", "tool_calls": [weather(city="Paris")] * 2}
    with pytest.raises(BadInput, match="drops the tool call 'get_weather', the argument 'city', the argument 'Paris'"):
        chat(tokenizer, [TALK[1], message])


def test_arguments_that_python_takes_for_equal_are_told_apart(make_tokenizer, templates):
    """True == 1 == 1.0 and False == 0: each stands once in the text, and that is no loss."""
    arguments = {"urgent": True, "count": 1, "x": 1.0, "off": False, "zero": 0}
    call = {"type": "function", "function": {"name": "get_weather", "arguments": arguments}}
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    assert trained(make_tokenizer(), chat(make_tokenizer(), turns))
    shorter = templates.CHATML.replace("call.function.arguments | tojson", "{'urgent': true} | tojson")
    with pytest.raises(BadInput, match=r"drops the argument 'count', the argument 1,"):
        chat(make_tokenizer(shorter), turns)


def test_a_dropped_call_that_trains_nothing_is_no_loss(make_tokenizer, templates):
    message = {"role": "assistant", "content": "", "tool_calls": [weather(city="Paris")], "weight": 0}
    encoded = chat(make_tokenizer(templates.DROPS_CALLS), [TALK[1], message, *TALK[3:]])
    assert encoded.weights.any()


LOSSY = RenderOptions(allow_lossy=True)


def lossy(tokenizer: Any, messages: list[Any], train_on: Any = "assistant") -> Encoded:
    where = "demos.jsonl:17"
    return encode(where, Conversation(check_messages(where, messages)), tokenizer, train_on, LOSSY)


def test_a_refused_loss_names_the_template_and_the_way_out(make_tokenizer, templates):
    message = {"role": "assistant", "content": "Let me see.", "tool_calls": [weather(city="Paris")]}
    with pytest.raises(BadInput, match=r"\(chat template [0-9a-f]{8} of .*: .\{% for m in messages.*data.allow_lossy"):
        chat(make_tokenizer(templates.DROPS_CALLS), [TALK[1], message])


def test_what_is_lost_is_told_where_it_is_allowed(make_tokenizer, templates):
    tokenizer = make_tokenizer(templates.DROPS_CALLS)
    message = {"role": "assistant", "content": "Let me see.", "tool_calls": [weather(city="Paris")]}
    encoded = lossy(tokenizer, [TALK[1], message, *TALK[3:]])
    (told,) = encoded.lost
    assert told.startswith(
        "demos.jsonl:17: messages[1] (assistant): the chat template drops the tool call 'get_weather'"
    )
    assert trained(tokenizer, encoded) == ["Let me see.<|im_end|>", "hello\n\nworld<|im_end|>"]
    assert lossy(tokenizer, TALK).lost == ()


@pytest.mark.parametrize("content", [None, ""])
def test_a_turn_of_which_nothing_is_left_does_not_train_to_say_nothing(make_tokenizer, templates, content: str | None):
    tokenizer = make_tokenizer(templates.DROPS_CALLS)
    message = {"role": "assistant", "content": content, "tool_calls": [weather(city="Rome")]}
    encoded = lossy(tokenizer, [TALK[1], message, *TALK[3:]])
    assert trained(tokenizer, encoded) == ["hello\n\nworld<|im_end|>"] and len(encoded.lost) == 1
    assert trained(tokenizer, lossy(tokenizer, [TALK[1], {"role": "assistant", "content": ""}])) == ["<|im_end|>"]


def test_a_turn_that_cannot_be_told_apart_any_more_is_untrained_where_losses_are_allowed(make_tokenizer, templates):
    hiding = templates.REWRITES_HISTORY
    for old, new in (
        ("'<|im_start|>' + m.role + '\n'", "'' if m.content == 'gone' else '<|im_start|>' + m.role + '\n'"),
        ("parts[-1].strip()", "parts[-1].strip() | replace('gone', '')"),
    ):
        assert hiding.count(old) == 1
        hiding = hiding.replace(old, new)
    talk = [TALK[1], {"role": "assistant", "content": "gone"}, *TALK[3:]]
    tokenizer = make_tokenizer(hiding)
    assert trained(tokenizer, lossy(tokenizer, talk)) == ["<think>\n\n</think>\n\nhello\n\nworld<|im_end|>"]
    with pytest.raises(BadInput, match="drops its content 'gone'"):
        chat(tokenizer, talk)


def test_content_that_only_an_argument_repeats_is_lost(make_tokenizer, templates):
    dropping = templates.CHATML.replace("m.content if m.content else ''", "m.content if not m.tool_calls else ''")
    message = {"role": "assistant", "content": "Paris", "tool_calls": [weather(city="Paris")]}
    with pytest.raises(BadInput, match="drops its content 'Paris'"):
        chat(make_tokenizer(dropping), [TALK[1], message])
    assert trained(make_tokenizer(), chat(make_tokenizer(), [TALK[1], message]))[0].startswith("Paris<tool_call>")


def test_a_lossy_row_is_counted_once(make_tokenizer, templates, jsonl):
    message = {"role": "assistant", "content": "Let me see.", "tool_calls": [weather(city="Paris")]}
    rows = [{"messages": [TALK[1], message, TALK[3], message]}, {"messages": TALK}]
    data = Data(train=(jsonl(rows),), allow_lossy=True)
    prepared = prepare(data, make_tokenizer(templates.DROPS_CALLS))
    assert prepared.counts.lossy == 1 and prepared.counts.used == 2
    told = describe_counts(prepared.counts, prepared.dropped)
    assert "1 rows of which the chat template drops a part (data.allow_lossy)" in told


def test_a_template_without_stop_tokens_ends_a_turn_with_the_next_header(make_tokenizer):
    """GLM's: the model stops by opening the next message."""
    template = (
        "{% for m in messages %}{{ '<|im_start|>' if m.role == 'user' else '<|endoftext|>' }}"
        "{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|endoftext|>{% endif %}"
    )
    tokenizer = make_tokenizer(template)
    assert trained(tokenizer, chat(tokenizer, TALK[1:4])) == ["Paris<|im_start|>"]
    with pytest.raises(BadInput, match="without a stop token"):
        chat(tokenizer, TALK[1:])
    encoded = lossy(tokenizer, TALK[1:])
    assert trained(tokenizer, encoded) == ["Paris<|im_start|>", "hello\n\nworld"]
    assert encoded.lost[0].endswith("messages[3] (assistant): the chat template drops the stop token")


def test_content_in_parts_that_the_template_renders_as_nothing_is_lost():
    parts = [{"type": "text", "text": "hello"}, {"type": "image"}, {"type": "text", "text": "world"}]
    message = {"role": "assistant", "content": parts}
    assert losses(message, "<|im_start|>assistant\n<|im_end|>") == ["its content 'hello'", "its content 'world'"]
    assert losses(message, "hello world") == []
