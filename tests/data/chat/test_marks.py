"""Templates that say themselves, with `{% generation %}`, what the assistant writes."""

import pytest

from sft_jax.errors import BadInput
from tests.data.chat.test_encode import TALK, chat, trained


def test_a_turn_marked_in_pieces_is_one_turn(make_tokenizer, templates):
    whole, end = "{{ m.content }}<|im_end|>\n", "{% endgeneration %}"
    split = "{{ m.content }}" + end + "{% generation %}<|im_end|>\n"
    pieces = templates.MARKED.replace(whole + end, split + end)
    assert pieces.count("{% generation %}") == 2
    tokenizer = make_tokenizer(pieces)
    assert trained(tokenizer, chat(tokenizer, TALK)) == ["Paris<|im_end|>", "hello\n\nworld<|im_end|>"]


def test_a_generation_prompt_inside_the_marks_does_not_train(make_tokenizer, templates):
    header = "<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}"
    wider = "{% if m.role == 'assistant' %}{% generation %}<|im_start|>{{ m.role }}\n"
    assert templates.MARKED.count(header) == 1
    template = templates.MARKED.replace(header, wider).replace("{% else %}", "{% else %}<|im_start|>{{ m.role }}\n", 1)
    tokenizer = make_tokenizer(template)
    assert chat(tokenizer, TALK).tokens.tolist() == chat(make_tokenizer(), TALK).tokens.tolist()
    assert trained(tokenizer, chat(tokenizer, TALK)) == ["Paris<|im_end|>", "hello\n\nworld<|im_end|>"]


def test_a_closing_token_inside_the_marks_is_not_the_turns(make_tokenizer, templates):
    closing = templates.MARKED + (
        "{% if not add_generation_prompt %}{% generation %}<|endoftext|>{% endgeneration %}{% endif %}"
    )
    tokenizer = make_tokenizer(closing)
    assert tokenizer.decode(chat(tokenizer, TALK).tokens).endswith("<|im_end|>\n<|endoftext|>")
    assert trained(tokenizer, chat(tokenizer, TALK)) == ["Paris<|im_end|>", "hello\n\nworld<|im_end|>"]


def test_marks_that_do_not_match_the_turns_are_refused(make_tokenizer, templates):
    skipping = templates.MARKED.replace("m.role == 'assistant'", "m.role == 'assistant' and loop.last")
    with pytest.raises(BadInput, match=r"marks 1 turns with \{% generation %\}, but the conversation has 2"):
        chat(make_tokenizer(skipping), TALK)
