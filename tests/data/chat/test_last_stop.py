"""Templates that end a turn where the next message begins (GLM): the last turn trains the model's own stop token."""

import copy
import pickle

import numpy as np
import pytest

from sft_jax.config import Data
from sft_jax.data.chat.encode import encode
from sft_jax.data.chat.last_stop import stops_that_matter
from sft_jax.data.chat.rendering import RenderOptions
from sft_jax.data.chat.tokenizer import model_stops, with_stops
from sft_jax.data.forms.demonstration import Conversation, Pair
from sft_jax.data.pack.dataset import provenance
from sft_jax.errors import BadRow

OPENS = """{% for m in messages %}{{ {'user': '<|im_start|>', 'assistant': '<|pad|>', 'tool': '<|endoftext|>',
'system': '<|im_end|>'}[m.role] + '\\n' + m.content }}
{%- for call in m.tool_calls or [] %}{{ '\\n<call>' + call.function.name + (call.function.arguments | tojson) }}
{%- endfor %}{% endfor %}{% if add_generation_prompt %}<|pad|>{% endif %}"""
"""Each role's token opens its message and nothing closes one. <|im_start|> is the user's, <|endoftext|> the tool's."""
USER, REPLY = {"role": "user", "content": "hello"}, {"role": "assistant", "content": "Paris"}
CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Paris"}}}
CALLS = {"role": "assistant", "content": "", "tool_calls": [CALL]}


@pytest.fixture
def glm(make_tokenizer):
    def make(*stops: str):
        tokenizer = copy.deepcopy(make_tokenizer(OPENS))
        ids = tokenizer.convert_tokens_to_ids(list(stops))
        return with_stops(tokenizer, {"eos_token_id": ids} if stops else {})

    return make


def trained(tokenizer, messages, train_on="assistant", **options):
    encoded = encode("f:1", Conversation(messages), tokenizer, train_on, RenderOptions(**options))
    runs = np.split(np.arange(len(encoded.tokens)), np.flatnonzero(np.diff(encoded.weights != 0)) + 1)
    return encoded, [tokenizer.decode(encoded.tokens[run]) for run in runs if encoded.weights[run[0]]]


STOPS = ("<|im_end|>", "<|im_start|>", "<|endoftext|>")


def test_a_last_turn_stops_with_the_token_that_would_open_the_next_message(glm):
    tokenizer = glm(*STOPS)
    talk = [USER, REPLY, USER, REPLY]
    encoded, runs = trained(tokenizer, talk)
    assert runs == ["\nParis<|im_start|>"] * 2, "the last turn stops as the earlier one does"
    assert encoded.tokens[:-1].tolist() == tokenizer.apply_chat_template(talk, return_dict=False)
    _, runs = trained(tokenizer, [USER, CALLS])
    assert runs[0].endswith('{"city": "Paris"}<|endoftext|>'), "behind a call, the tool answers"


def test_otherwise_it_is_the_stop_token_that_the_model_names_first(glm):
    assert trained(glm("<|im_end|>", "<|endoftext|>"), [USER, REPLY])[1] == ["\nParis<|im_end|>"]


def test_a_turn_in_between_that_no_stop_token_of_the_model_ends_is_refused(glm):
    with pytest.raises(BadRow, match=r"messages\[1\]: .*without a stop token"):
        trained(glm("<|im_end|>"), [USER, REPLY, USER, REPLY])


def test_a_model_that_names_no_stop_token_is_refused(glm):
    with pytest.raises(BadRow, match="without a stop token"):
        trained(glm(), [USER, REPLY])


def test_the_stop_token_weighs_what_its_turn_does(glm):
    tokenizer = glm(*STOPS)
    encoded, _ = trained(tokenizer, [USER, {**REPLY, "weight": 0.5}])
    assert encoded.weights[-1] == 0.5
    for talk, options in (
        ([USER, REPLY, USER], {}),
        ([USER, {**REPLY, "weight": 0}], {}),
        ([USER, REPLY], {"end_of_turn": False}),
    ):
        encoded, _ = trained(tokenizer, talk, **options)
        assert encoded.tokens.tolist() == tokenizer.apply_chat_template(talk, return_dict=False)
    assert trained(tokenizer, [USER, REPLY], end_of_turn=False)[1] == ["\nParis"]
    encoded, _ = trained(tokenizer, [USER, REPLY], "all")
    assert tokenizer.decode(encoded.tokens[-1]) == "<|im_start|>" and encoded.weights.all()


def test_special_text_and_pairs_get_it_too(glm):
    tokenizer = glm(*STOPS)
    _, runs = trained(tokenizer, [{**USER, "content": "<|pad|>"}, REPLY], special_text="text")
    assert runs == ["\nParis<|im_start|>"]
    other = Conversation([USER, {**REPLY, "content": "Rome"}])
    both = encode("f:1", Pair(Conversation([USER, REPLY]), other), tokenizer, "assistant")
    assert [tokenizer.decode(token) for token in both.tokens[both.weights > 0]] == ["<|im_start|>"] * 2


def test_templates_that_end_their_turns_get_nothing(make_tokenizer, templates):
    for name in ("CHATML", "CLOSES_TEXT", "ALWAYS_PROMPTS", "TWO_STOPS", "MARKED", "NO_PROMPT"):
        plain = make_tokenizer(getattr(templates, name))
        told = with_stops(copy.deepcopy(plain), {"eos_token_id": plain.convert_tokens_to_ids("<|pad|>")})
        for train_on in ("assistant", "all"):
            one, other = (trained(tokenizer, [USER, REPLY], train_on)[0] for tokenizer in (plain, told))
            assert one.tokens.tolist() == other.tokens.tolist() and one.weights.tolist() == other.weights.tolist()


def test_stop_tokens_are_part_of_what_examples_depend_on_where_they_are(glm, make_tokenizer, jsonl):
    data = Data((jsonl([{"messages": [USER, REPLY]}]),))
    tokenizer = glm(*STOPS)
    assert provenance(data, tokenizer, data.train)["stops"] == list(model_stops(tokenizer))
    chatml = with_stops(copy.deepcopy(make_tokenizer()), {"eos_token_id": 3})
    assert provenance(data, chatml, data.train)["stops"] == stops_that_matter(chatml) == []


def test_a_worker_gets_the_stop_tokens_with_the_tokenizer(glm):
    tokenizer = glm(*STOPS)
    assert model_stops(pickle.loads(pickle.dumps(tokenizer))) == model_stops(tokenizer) != ()
