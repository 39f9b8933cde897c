"""What is trained: by record form, by turn, by token; against the tokenizer's own rendering and against TRL."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sft_jax.config import Data
from sft_jax.data.chat.encode import Encoded, encode, generation_prompt
from sft_jax.data.chat.rendering import RenderOptions
from sft_jax.data.forms.formats import Conversation, PromptCompletion, Text, demonstrations
from sft_jax.data.forms.messages import check_messages, check_tools
from sft_jax.data.pack.prepare import prepare
from sft_jax.data.read.rows import Record
from sft_jax.errors import BadInput

GOLDEN = json.loads((Path(__file__).parent / "golden" / "trl.json").read_text(encoding="utf-8"))["cases"]
TALK: list[dict[str, Any]] = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "the capital of France"},
    {"role": "assistant", "content": "Paris"},
    {"role": "user", "content": "the weather"},
    {"role": "assistant", "content": "hello\n\nworld"},
]
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]


def chat(tokenizer: Any, messages: list[Any], train_on: Any = "assistant", **rest: Any) -> Encoded:
    where = "demos.jsonl:17"
    conversation = Conversation(check_messages(where, messages), check_tools(where, rest.get("tools")))
    return encode(where, conversation, tokenizer, train_on)


def strings(tokenizer: Any, prompt: str, completion: str, train_on: Any = "assistant") -> Encoded:
    return encode("demos.jsonl:17", PromptCompletion(prompt, completion), tokenizer, train_on)


def row(value: dict[str, Any], tokenizer: Any) -> Encoded:
    [demonstration] = demonstrations(Record("f", 1, value), Data())
    return encode("f:1", demonstration, tokenizer, "assistant")


def trained(tokenizer: Any, encoded: Encoded) -> list[str]:
    """Runs of trained tokens, decoded."""
    runs = np.split(np.arange(len(encoded.tokens)), np.flatnonzero(np.diff(encoded.weights != 0)) + 1)
    return [tokenizer.decode(encoded.tokens[run]) for run in runs if encoded.weights[run[0]]]


def ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize(
    "template", ["CHATML", "DROPS_CALLS", "MARKED", "REWRITES_HISTORY", "CLOSES_TEXT", "TWO_STOPS"]
)
def test_tokens_are_those_of_apply_chat_template_on_the_whole_conversation(make_tokenizer, templates, template: str):
    tokenizer = make_tokenizer(getattr(templates, template), add_bos=True)
    for messages in (TALK, TALK[:4], TALK[1:3]):
        expected = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
        encoded = chat(tokenizer, messages)
        assert encoded.tokens.tolist() == expected
        assert encoded.tokens.dtype == np.int32 and encoded.weights.dtype == np.float32


def test_tools_are_given_to_the_template(make_tokenizer):
    tokenizer = make_tokenizer()
    expected = tokenizer.apply_chat_template(TALK, tools=TOOLS, return_dict=False)
    assert chat(tokenizer, TALK, tools=TOOLS).tokens.tolist() == expected
    assert chat(tokenizer, TALK, tools=json.dumps(TOOLS)).tokens.tolist() == expected
    assert "get_weather" in tokenizer.decode(expected)


@pytest.mark.parametrize(
    "template", ["CHATML", "DROPS_CALLS", "MARKED", "REWRITES_HISTORY", "CLOSES_TEXT", "TWO_STOPS"]
)
def test_the_last_trained_token_of_every_turn_is_a_stop_token(make_tokenizer, templates, template: str):
    tokenizer = make_tokenizer(getattr(templates, template))
    runs = trained(tokenizer, chat(tokenizer, TALK))
    assert len(runs) == 2
    assert all(run.endswith(("<|im_end|>", "<|endoftext|>")) for run in runs)


def test_the_generation_prompt_and_what_follows_the_stop_token_are_not_trained(make_tokenizer, templates):
    for template in (templates.CHATML, templates.MARKED):
        tokenizer = make_tokenizer(template)
        assert trained(tokenizer, chat(tokenizer, TALK)) == ["Paris<|im_end|>", "hello\n\nworld<|im_end|>"]


def test_masks_are_weights_whatever_the_pad_token_is(make_tokenizer):
    encoded = {
        pad: chat(make_tokenizer(pad=pad), TALK) for pad in ("<|im_end|>", "<|pad|>", "<|endoftext|>", "<|im_start|>")
    }
    eos = make_tokenizer().eos_token_id
    for one in encoded.values():
        stops = np.flatnonzero(one.tokens == eos)
        assert one.weights[stops].tolist() == [0, 0, 1, 0, 1], "the assistant's stops train, the others do not"
        np.testing.assert_array_equal(one.weights, encoded["<|pad|>"].weights)


def test_a_token_that_straddles_the_header_and_the_content_trains(make_tokenizer):
    tokenizer = make_tokenizer()
    encoded = chat(tokenizer, [TALK[1], {"role": "assistant", "content": "\nhello"}])
    assert trained(tokenizer, encoded) == ["\n\nhello<|im_end|>"]
    assert encoded.tokens.tolist() == tokenizer.apply_chat_template(
        [TALK[1], {"role": "assistant", "content": "\nhello"}], return_dict=False
    )


def test_white_space_tokens_inside_a_turn_train(make_tokenizer):
    tokenizer = make_tokenizer()
    encoded = chat(tokenizer, [TALK[1], {"role": "assistant", "content": "a\n\n\nb  \n"}])
    assert trained(tokenizer, encoded) == ["a\n\n\nb  \n<|im_end|>"]


def test_a_space_in_front_of_a_span_is_a_token_of_its_own_and_does_not_train(make_tokenizer, templates):
    tokenizer = make_tokenizer()
    encoded = strings(tokenizer, "hello ", "123")
    assert [tokenizer.decode(i) for i in encoded.tokens] == ["hello", " ", "123", "<|im_end|>"]
    assert encoded.weights.tolist() == [0, 0, 1, 1]
    tokenizer = make_tokenizer(templates.ALWAYS_PROMPTS.replace("'\n'", "': '").replace("assistant\n", "assistant: "))
    message = {"role": "assistant", "content": "123"}
    assert trained(tokenizer, chat(tokenizer, [TALK[1], message])) == ["123<|im_end|>"]


def test_every_byte_token_of_a_character_trains(make_tokenizer):
    tokenizer = make_tokenizer()
    assert trained(tokenizer, chat(tokenizer, [TALK[1], {"role": "assistant", "content": "世🙂"}])) == [
        "世🙂<|im_end|>"
    ]


@pytest.mark.parametrize(
    ("train_on", "expected"),
    [
        ("assistant", ["Paris<|im_end|>", "hello\n\nworld<|im_end|>"]),
        ("last_assistant", ["hello\n\nworld<|im_end|>"]),
        ("completion", ["hello\n\nworld<|im_end|>"]),
    ],
)
def test_train_on_chooses_the_turns(make_tokenizer, templates, train_on: str, expected: list[str]):
    for template in (templates.CHATML, templates.MARKED):
        tokenizer = make_tokenizer(template)
        assert trained(tokenizer, chat(tokenizer, TALK, train_on)) == expected


def test_train_on_completion_takes_every_turn_after_the_last_user_turn(make_tokenizer):
    tokenizer = make_tokenizer()
    steps = [
        {"role": "assistant", "content": "", "tool_calls": [weather(city="Paris")]},
        {"role": "tool", "content": "sunny"},
        {"role": "assistant", "content": "It is sunny."},
    ]
    runs = trained(tokenizer, chat(tokenizer, [*TALK[:3], TALK[3], *steps], "completion"))
    assert len(runs) == 2 and "get_weather" in runs[0] and runs[1] == "It is sunny.<|im_end|>"
    assert not chat(tokenizer, TALK[:4], "completion").weights.any(), "nothing follows the last user turn"


def test_train_on_all_trains_every_token(make_tokenizer, templates):
    for template in (templates.CHATML, templates.NEVER_STOPS):
        assert chat(make_tokenizer(template), TALK, "all").weights.all()
    assert strings(make_tokenizer(), "hello", " world", "all").weights.all()


def test_per_message_weights_multiply(make_tokenizer, templates):
    messages = [dict(m) for m in TALK]
    messages[2] |= {"weight": 0.5, "train": True}
    messages[4] |= {"weight": 2, "train": False}
    for template in (templates.CHATML, templates.MARKED):
        encoded = chat(make_tokenizer(template), messages)
        plain = chat(make_tokenizer(template), TALK)
        places = np.flatnonzero(plain.weights)
        first, second = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)
        assert set(encoded.weights[first]) == {0.5} and set(encoded.weights[second]) == {0.0}
    assert set(chat(make_tokenizer(), messages, "all").weights) == {0.0, 0.5, 1.0}


def test_thinking_in_the_last_turn_trains_where_the_template_keeps_it(make_tokenizer, templates):
    messages = [*TALK[:4], {"role": "assistant", "content": "<think>hmm</think>hello"}]
    tokenizer = make_tokenizer(templates.REWRITES_HISTORY)
    assert trained(tokenizer, chat(tokenizer, messages))[1] == "<think>\nhmm\n</think>\n\nhello<|im_end|>"


def weather(**arguments: Any) -> dict[str, Any]:
    return {"id": "c", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}


@pytest.mark.parametrize("content", [None, "", "Let me see."])
def test_tool_calls_train_and_arguments_given_as_a_string_are_not_encoded_twice(make_tokenizer, content: str | None):
    tokenizer = make_tokenizer()
    arguments = {"city": 'Zürich "HB"', "days": 3, "deep": [{"x": True}, None]}
    as_string = weather()
    as_string["function"]["arguments"] = json.dumps(arguments)
    for one in (weather(**arguments), as_string):
        message = {"role": "assistant", "content": content, "tool_calls": [one]}
        encoded = chat(tokenizer, [TALK[1], message], tools=TOOLS)
        (run,) = trained(tokenizer, encoded)
        found = re.search(r'"arguments": (.*)}</tool_call>', run)
        assert found and json.loads(found[1]) == arguments
        assert run.startswith((content or "") + "<tool_call>") and run.endswith("</tool_call><|im_end|>")


def test_a_tokenizer_without_a_template_says_how_to_give_one(make_tokenizer):
    with pytest.raises(BadInput, match=r"demos.jsonl:17: .*no chat template.*--data.chat-template.*generic"):
        chat(make_tokenizer(None), TALK)


def test_a_generation_prompt_is_that_of_apply_chat_template(make_tokenizer, templates):
    tokenizer = make_tokenizer(add_bos=True)
    for messages in (TALK[:2], TALK[:4]):
        expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert generation_prompt("x", messages, None, tokenizer) == expected
    with pytest.raises(BadInput, match=r"p\.jsonl:3: the tokenizer has no chat template"):
        generation_prompt("p.jsonl:3", TALK[:2], None, make_tokenizer(None))
    with pytest.raises(BadInput, match=r"p\.jsonl:3: the chat template fails.*ZeroDivisionError"):
        generation_prompt("p.jsonl:3", TALK[:2], None, make_tokenizer("{{ 1 // 0 }}"))


def test_a_null_content_is_no_obstacle_to_a_generation_prompt(make_tokenizer, templates):
    call = {"type": "function", "function": {"name": "get_weather", "arguments": {}}}
    turns = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "{}"},
    ]
    assert generation_prompt("x", turns, None, make_tokenizer(templates.DROPS_CALLS))


def test_a_template_that_fails_is_reported_with_its_own_words(make_tokenizer, templates):
    with pytest.raises(BadInput, match=r"demos\.jsonl:17: the chat template fails .*roles must alternate"):
        chat(make_tokenizer(templates.NO_PROMPT), TALK)


def test_prompt_and_completion_are_joined_and_tokenised_once(make_tokenizer):
    tokenizer = make_tokenizer()
    encoded = strings(tokenizer, "hello", " world")
    assert encoded.tokens.tolist() == ids(tokenizer, "hello world<|im_end|>")
    assert trained(tokenizer, encoded) == [" world<|im_end|>"]


def test_a_token_that_straddles_prompt_and_completion_trains(make_tokenizer):
    tokenizer = make_tokenizer()
    assert trained(tokenizer, strings(tokenizer, "hel", "lo")) == ["hello<|im_end|>"]
    assert trained(tokenizer, strings(tokenizer, "line\n", "\nnext")) == ["\n\nnext<|im_end|>"]


def test_only_a_token_that_overlaps_the_completion_trains_where_trl_starts_earlier(make_tokenizer):
    tokenizer, (golden,) = make_tokenizer(), GOLDEN["boundary_moves"]["prepared"]
    encoded = strings(tokenizer, "123as", "y")
    assert encoded.tokens.tolist() == golden["input_ids"]
    assert [tokenizer.decode(i) for i in ids(tokenizer, "123as")] == ["123", "as"]
    assert trained(tokenizer, encoded) == ["sy<|im_end|>"], "joined, the prompt's own a is a token of its own"
    assert tokenizer.decode([label for label in golden["labels"] if label >= 0]) == "asy<|im_end|>"


def test_eos_is_appended_once_and_trained_even_where_the_tokenizer_appends_it_too(make_tokenizer):
    for adds in (False, True):
        tokenizer = make_tokenizer(add_eos=adds)
        eos = tokenizer.eos_token_id
        assert (tokenizer("hello").input_ids[-1] == eos) == adds
        for completion in (" world", " world<|im_end|>"):
            encoded = strings(tokenizer, "hello", completion)
            assert encoded.tokens.tolist().count(eos) == 1 and encoded.tokens[-1] == eos and encoded.weights[-1] == 1


def test_text_trains_every_token_and_its_eos(make_tokenizer):
    tokenizer = make_tokenizer()
    encoded = encode("f:1", Text("hello world"), tokenizer, "assistant")
    assert encoded.tokens.tolist() == ids(tokenizer, "hello world<|im_end|>") and encoded.weights.all()


@pytest.mark.parametrize("case", ["prompt_completion", "prompt_completion_bos", "text"])
def test_ids_and_targets_equal_trls(make_tokenizer, case: str):
    golden = GOLDEN[case]
    tokenizer = make_tokenizer(add_bos=golden.get("add_bos", False))
    for value, expected in zip(golden["rows"], golden["prepared"], strict=True):
        encoded = row(value, tokenizer)
        assert encoded.tokens.tolist() == expected["input_ids"], value
        labels = np.where(encoded.weights > 0, encoded.tokens, -100).tolist()
        assert labels[1:] == expected["labels"][1:], value  # nobody trains the first token: nothing predicts it


@pytest.mark.parametrize("case", ["chat_prompt_completion", "messages_assistant_only"])
def test_conversations_equal_trls_but_for_white_space_after_the_stop_token(make_tokenizer, templates, case: str):
    golden = GOLDEN[case]
    tokenizer = make_tokenizer(getattr(templates, golden.get("template", "CHATML")))
    newline, eos = ids(tokenizer, "\n")[0], tokenizer.eos_token_id
    for value, expected in zip(golden["rows"], golden["prepared"], strict=True):
        encoded = row(value, tokenizer)
        assert encoded.tokens.tolist() == expected["input_ids"]
        labels = np.asarray(expected["labels"])
        after_stop = np.append(False, encoded.tokens[:-1] == eos) & (labels == newline)
        assert after_stop.any()
        labels[after_stop] = -100
        assert np.where(encoded.weights > 0, encoded.tokens, -100).tolist() == labels.tolist()


def test_truncation_leaves_what_trl_leaves(make_tokenizer, jsonl):
    golden = GOLDEN["truncated"]
    data = Data(train=(jsonl(golden["rows"]),), sequence_length=golden["max_length"], over_length="truncate")
    prepared = prepare(data, make_tokenizer())
    assert [e.tokens.tolist() for e in prepared.examples] == [row["input_ids"] for row in golden["prepared"]]
    for example, row in zip(prepared.examples, golden["prepared"], strict=True):
        assert np.where(example.weights > 0, example.tokens, -100).tolist() == row["labels"]


def test_without_end_of_turn_the_stop_token_does_not_train(make_tokenizer, templates):
    policy = RenderOptions(end_of_turn=False)
    for template in (templates.CHATML, templates.MARKED, templates.CLOSES_TEXT):
        tokenizer = make_tokenizer(template)
        assert trained(tokenizer, encode("f:1", Conversation(TALK), tokenizer, "assistant", policy)) == [
            "Paris",
            "hello\n\nworld",
        ]
    every = encode("f:1", Conversation(TALK), make_tokenizer(), "all", policy)
    assert [make_tokenizer().decode(i) for i in every.tokens[every.weights == 0]] == ["<|im_end|>"] * 2
    for demonstration in (PromptCompletion("hello", " world"), Text("hello")):
        encoded = encode("f:1", demonstration, tokenizer, "assistant", policy)
        assert encoded.tokens[-1] == tokenizer.eos_token_id
        assert encoded.weights[-1] == 0 and encoded.weights[-2] == 1


def test_a_header_token_that_swallows_the_turns_white_space_does_not_train(make_tokenizer, templates):
    import copy

    from tokenizers import AddedToken

    tokenizer = copy.deepcopy(make_tokenizer())
    tokenizer.add_tokens([AddedToken("<|bot|>", special=True, normalized=False, rstrip=True)], special_tokens=True)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content + '<|im_end|>' }}{% else %}"
        "{{ '<|bot|>\n' + m.content + '<|im_end|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|bot|>\n' }}{% endif %}"
    )
    encoded = chat(tokenizer, [TALK[1], {"role": "assistant", "content": "\n\nhello"}])
    assert "<|bot|>" in [tokenizer.decode(i) for i in encoded.tokens]
    assert trained(tokenizer, encoded) == ["hello<|im_end|>"]
