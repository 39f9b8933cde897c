"""Templates that read contents as lists of parts alone get them so, and lose nothing."""

import numpy as np
import pytest

from sft_jax.data.chat.encode import encode, generation_prompt
from sft_jax.data.forms.demonstration import Conversation

LOOPS = """{% for m in messages %}{{ m.role | capitalize }}{{ ': ' if m.content[0].type != 'image' else ':' }}
{%- for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"""
"""SmolVLM's way: a string loses everything in silence."""
FIRST = """{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' }}
{%- for part in m.content | selectattr('type', 'equalto', 'text') %}{{ part.text }}{% endfor %}{{ ' [/INST]' }}
{%- else %}{{ ' ' + m.content[0].text + '<|im_end|> ' }}{% endif %}{% endfor %}"""
"""LLaVA's way: a string is an error."""
EITHER = """{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}
{%- if m.content is string %}{{ m.content }}
{%- else %}{% for part in m.content %}{{ 'part: ' + part.text }}{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
TALK = [
    {"role": "user", "content": "the capital of France"},
    {"role": "assistant", "content": "Paris"},
    {"role": "user", "content": "  hello\n"},
    {"role": "assistant", "content": "world\n\nhello "},
]


def in_parts(messages):
    return [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]


@pytest.mark.parametrize("template", [LOOPS, FIRST])
@pytest.mark.parametrize("count", [2, 4])
def test_ids_are_those_of_the_conversation_in_parts_and_every_turn_trains(make_tokenizer, template, count):
    tokenizer = make_tokenizer(template)
    talk = TALK[:count]
    encoded = encode("f:1", Conversation(talk), tokenizer, "assistant")
    assert encoded.tokens.tolist() == tokenizer.apply_chat_template(in_parts(talk), return_dict=False)
    trained = tokenizer.decode(encoded.tokens[encoded.weights > 0])
    assert trained == "".join(f" {m['content']}<|im_end|>" for m in talk[1::2])
    before = generation_prompt("f:1", talk[:1], None, tokenizer)
    assert before == encoded.tokens[: int(np.argmax(encoded.weights > 0))].tolist()


def test_a_template_that_takes_both_gets_strings(make_tokenizer):
    tokenizer = make_tokenizer(EITHER)
    encoded = encode("f:1", Conversation(TALK), tokenizer, "assistant")
    assert encoded.tokens.tolist() == tokenizer.apply_chat_template(TALK, return_dict=False)
    assert "part: " not in tokenizer.decode(encoded.tokens)
