"""Exactly the assistant's characters, template by template; or a refusal."""

import re
from typing import Any

import pytest
from jinja2 import TemplateError

from sft_jax.data.chat.encode import encode
from sft_jax.data.chat.spans import NoExactSpan, find_span
from sft_jax.data.forms.formats import Conversation
from sft_jax.errors import BadInput

STOPS = re.compile(r"<\|endoftext\|>|<\|im_start\|>|<\|im_end\|>|<\|pad\|>")
TWO_TURNS = [
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "hello"},
    {"role": "user", "content": "two"},
    {"role": "assistant", "content": "world"},
]


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def turns(tokenizer: Any, messages: list[dict[str, Any]]) -> list[str]:
    """The text of each assistant turn's span."""

    def one(some: list[dict[str, Any]], generation_prompt: bool) -> str | None:
        try:
            return tokenizer.apply_chat_template(some, tokenize=False, add_generation_prompt=generation_prompt)
        except TemplateError:
            return None

    def render(*conversations: list[dict[str, Any]], generation_prompt: bool = False) -> list[str | None]:
        return [one(some, generation_prompt) for some in conversations]

    [whole] = render(messages)
    assert whole is not None
    spans = [find_span(render, messages, i, whole, STOPS) for i, m in enumerate(messages) if m["role"] == "assistant"]
    return [whole[start:end] for start, end in spans]


def test_prefix_renders_give_each_turn_from_its_header_through_its_stop_token(make_tokenizer, templates):
    for template in (templates.CHATML, templates.DROPS_CALLS):
        assert turns(make_tokenizer(template), TWO_TURNS) == ["hello<|im_end|>", "world<|im_end|>"]


def test_a_conversation_that_ends_with_a_user_turn_keeps_its_earlier_turns(make_tokenizer, templates):
    for template in (templates.CHATML, templates.REWRITES_HISTORY, templates.CLOSES_TEXT, templates.ALWAYS_PROMPTS):
        spans = turns(make_tokenizer(template), TWO_TURNS[:3])
        assert spans == ["hello<|im_end|>"], template


def test_a_template_without_generation_prompt_trains_the_space_before_the_answer(make_tokenizer, templates):
    spans = turns(make_tokenizer(templates.NO_PROMPT), TWO_TURNS)
    assert spans == [" hello <|endoftext|>", " world <|endoftext|>"]


def test_a_template_that_rewrites_history_is_read_by_literal_renders(make_tokenizer, templates):
    spans = turns(make_tokenizer(templates.REWRITES_HISTORY), TWO_TURNS)
    assert spans == ["hello<|im_end|>", "<think>\n\n</think>\n\nworld<|im_end|>"]


def test_content_that_the_template_trims_is_still_found(make_tokenizer, templates):
    messages = [TWO_TURNS[0], {"role": "assistant", "content": "\n hello \n"}, *TWO_TURNS[2:]]
    assert turns(make_tokenizer(templates.REWRITES_HISTORY), messages)[0] == "hello<|im_end|>"
    assert turns(make_tokenizer(templates.CHATML), messages)[0] == "\n hello \n<|im_end|>"


def test_tool_calls_in_a_rewritten_history_are_found_by_their_last_name(make_tokenizer, templates):
    messages = [
        TWO_TURNS[0],
        {"role": "assistant", "tool_calls": [call("get", city="Paris"), call("get", city="Rome <|im_end|>")]},
        {"role": "tool", "content": "sunny"},
        {"role": "assistant", "content": "It is sunny."},
    ]
    first, last = turns(make_tokenizer(templates.REWRITES_HISTORY), messages)
    assert first.count("<tool_call>") == 2 and first.endswith('"Rome <|im_end|>"}}</tool_call><|im_end|>')
    assert last == "<think>\n\n</think>\n\nIt is sunny.<|im_end|>"


def test_a_second_stop_token_that_closes_the_whole_text_is_not_the_turns(make_tokenizer, templates):
    tokenizer = make_tokenizer(templates.CLOSES_TEXT)
    assert turns(tokenizer, TWO_TURNS) == ["hello<|im_end|>", "world<|im_end|>"]
    assert turns(tokenizer, TWO_TURNS[:2]) == ["hello<|im_end|>"]


def test_a_generation_prompt_that_the_template_always_writes_is_not_the_turns(make_tokenizer, templates):
    tokenizer = make_tokenizer(templates.ALWAYS_PROMPTS)
    assert turns(tokenizer, TWO_TURNS) == ["hello<|im_end|>", "world<|im_end|>"]
    assert turns(tokenizer, TWO_TURNS[:2]) == ["hello<|im_end|>"]


def test_a_turn_in_the_history_may_stop_with_another_token_than_the_last(make_tokenizer, templates):
    assert turns(make_tokenizer(templates.TWO_STOPS), TWO_TURNS) == ["hello<|im_end|>", "world<|endoftext|>"]


def test_a_generation_prompt_longer_than_the_header_leaves_the_content_whole(make_tokenizer, templates):
    spans = turns(make_tokenizer(templates.PROMPT_OPENS_THINKING), TWO_TURNS)
    assert spans == ["hello<|im_end|>", "world<|im_end|>"]


def test_a_conversation_that_opens_with_the_assistant_is_found_by_its_generation_prompt(make_tokenizer, templates):
    spans = turns(make_tokenizer(templates.CHATML), TWO_TURNS[1:])
    assert spans == ["hello<|im_end|>", "world<|im_end|>"]


def test_text_that_looks_like_the_template_does_not_move_a_span(make_tokenizer, templates):
    trap = "<|im_end|>\n<|im_start|>assistant\nhello<|im_end|>"
    for template in (templates.CHATML, templates.REWRITES_HISTORY, templates.ALWAYS_PROMPTS, templates.TWO_STOPS):
        messages = [{"role": "user", "content": trap}, *TWO_TURNS[1:]]
        assert turns(make_tokenizer(template), messages)[0] == "hello<|im_end|>", template
        messages = [TWO_TURNS[0], {"role": "assistant", "content": trap}, *TWO_TURNS[2:]]
        assert turns(make_tokenizer(template), messages)[0] == trap + "<|im_end|>", template


def test_a_last_turn_that_changes_when_another_message_follows_is_refused_where_its_end_is_in_doubt(
    make_tokenizer, templates
):
    closing = templates.REWRITES_HISTORY + "{% if not add_generation_prompt %}\n<|endoftext|>{% endif %}"
    with pytest.raises(NoExactSpan, match="differently when another message follows"):
        turns(make_tokenizer(closing), TWO_TURNS[:2])


def test_a_template_without_a_stop_token_is_refused(make_tokenizer, templates):
    with pytest.raises(NoExactSpan, match="without a stop token"):
        turns(make_tokenizer(templates.NEVER_STOPS), TWO_TURNS)


def test_what_a_template_writes_before_a_turn_by_what_the_turn_says_is_the_turns(make_tokenizer, templates):
    counting = templates.REWRITES_HISTORY.replace("parts[-1].strip()", "(parts[-1] | length | string) + parts[-1]")
    assert turns(make_tokenizer(counting), TWO_TURNS)[0] == "5hello<|im_end|>"


def test_a_stop_token_that_depends_on_what_the_turn_says_is_refused(make_tokenizer, templates):
    branching = templates.REWRITES_HISTORY.replace(
        "{{ '<|im_end|>\n' }}", "{{ '<|im_end|>\n' if m.content | length < 9 else '<|pad|>\n' }}"
    )
    assert branching != templates.REWRITES_HISTORY
    with pytest.raises(NoExactSpan, match="this turn ends differently in mid-conversation"):
        turns(make_tokenizer(branching), [*TWO_TURNS[:1], {"role": "assistant", "content": "hello"}, *TWO_TURNS[2:]])


def test_the_refusal_names_the_record_the_message_and_the_way_out(make_tokenizer, templates):
    with pytest.raises(
        BadInput,
        match=r"demos.jsonl:17: messages\[1\]: cannot locate the assistant's text exactly: .*data.chat_template",
    ):
        encode("demos.jsonl:17", Conversation(TWO_TURNS), make_tokenizer(templates.NEVER_STOPS), "assistant")


def test_a_prompt_that_is_always_written_does_not_end_a_turn_with_the_next_ones_text(make_tokenizer, templates):
    """The render through a turn begins the whole text here, yet goes beyond the turn: found by random conversations."""
    tokenizer = make_tokenizer(templates.ALWAYS_PROMPTS)
    messages = [TWO_TURNS[0], TWO_TURNS[1], {"role": "assistant", "content": "<|im_end|> world"}]
    assert turns(tokenizer, messages) == ["hello<|im_end|>", "<|im_end|> world<|im_end|>"]
    template = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}{{ 'assistant: ' }}"
    with pytest.raises(NoExactSpan, match="without a stop token"):
        turns(make_tokenizer(template), messages)


def test_a_stop_token_with_white_space_at_the_end_of_the_content_is_content(make_tokenizer, templates):
    for template, stop in ((templates.TWO_STOPS, "<|endoftext|>"), (templates.CLOSES_TEXT, "<|im_end|>")):
        messages = [TWO_TURNS[0], {"role": "assistant", "content": "hello <|im_end|> "}]
        assert turns(make_tokenizer(template), messages) == ["hello <|im_end|> " + stop], template


def test_a_special_token_that_begins_like_the_prompts_is_not_cut(make_tokenizer):
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + ('<|pad|>' if m.role == 'assistant' else '') }}"
        "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<|endoftext|>' }}{% endif %}"
    )
    assert turns(make_tokenizer(template), TWO_TURNS) == ["<|pad|>hello<|im_end|>", "<|pad|>world<|im_end|>"]


def test_a_prompt_without_special_tokens_that_says_more_than_the_header_is_told_apart(make_tokenizer):
    template = (
        "{% for m in messages %}{{ m.role + ': ' + m.content + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: <think>\n' }}{% endif %}"
    )
    messages = [*TWO_TURNS[:3], {"role": "assistant", "content": "<b>"}]
    assert turns(make_tokenizer(template), messages) == ["hello<|im_end|>", "<b><|im_end|>"]


def test_a_turn_that_the_template_merges_with_the_one_before_is_refused(make_tokenizer):
    template = (
        "{% for m in messages %}{% if loop.first or messages[loop.index0 - 1].role != m.role %}"
        "{{ '<|im_start|>' + m.role + '\n' }}{% endif %}{{ ('~' if loop.last else '') + m.content }}"
        "{% if loop.last or messages[loop.index].role != m.role %}{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    with pytest.raises(BadInput, match=r"messages\[2\]: cannot locate .* writes no header between"):
        encode("f:1", Conversation([*TWO_TURNS[:2], TWO_TURNS[3]]), make_tokenizer(template), "last_assistant")


def test_a_template_that_wants_a_user_turn_still_tells_where_an_opening_turn_ends(make_tokenizer, templates):
    wants = "{% if 'user' not in messages | map(attribute='role') | list %}{{ raise_exception('no user') }}{% endif %}"
    tokenizer = make_tokenizer(wants + templates.REWRITES_HISTORY)
    assert turns(tokenizer, TWO_TURNS[1:])[0] == "hello<|im_end|>"


def test_a_header_may_be_a_token_that_is_added_but_not_special(make_tokenizer):
    import copy

    tokenizer = copy.deepcopy(make_tokenizer())
    tokenizer.add_tokens(["<bot>"])
    tokenizer.chat_template = (
        "{% for m in messages %}{{ ('<bot>' if m.role == 'assistant' else '') + m.content + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<bot><think>' }}{% endif %}"
    )
    encoded = encode("f:1", Conversation(TWO_TURNS[1:]), tokenizer, "assistant")
    trained = tokenizer.decode(encoded.tokens[encoded.weights > 0])
    assert trained == "hello<|im_end|>world<|im_end|>"
