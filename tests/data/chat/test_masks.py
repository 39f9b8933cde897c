"""Any conversation at all: the tokens are the template's, and what trains is what the assistant says and its stop."""

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from sft_jax.data.chat.encode import encode
from sft_jax.data.chat.rendering import RenderOptions
from sft_jax.data.forms.formats import Conversation

PIECES = (
    *(
        "hello",
        " world",
        "a",
        "assistant",
        "user",
        "ab",
        "123",
        " ",
        "  ",
        "\n",
        "\n\n",
        "é",
        "世",
        "🙂",
        "e\u0301",
        "\u200b",
    ),
    *("<|im_end|>", "<|im_start|>", "<|im_start|>assistant\n", "<|endoftext|>", "<|im_", "|>", "Qz0Q", "Zq1Z", "Qs0sQ"),
)
CONTENT = st.lists(st.sampled_from(PIECES), max_size=6).map("".join)
MESSAGE = st.builds(
    lambda role, content: {"role": role, "content": content}, st.sampled_from(("user", "assistant")), CONTENT
)
TALK = st.lists(MESSAGE, min_size=1, max_size=6).filter(lambda talk: any(m["role"] == "assistant" for m in talk))
TURNS = st.lists(st.tuples(CONTENT, CONTENT), min_size=1, max_size=3).map(
    lambda pairs: [
        {"role": role, "content": text}
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
)


def chatml(messages: list[dict[str, str]], i: int) -> tuple[str, str, str]:
    """Header, body through the stop token, and what follows, of message `i` as each of the templates writes it."""
    return f"<|im_start|>{messages[i]['role']}\n", messages[i]["content"] + "<|im_end|>", "\n"


def trims(messages: list[dict[str, str]], i: int) -> tuple[str, str, str]:
    header, body, _ = chatml(messages, i)
    return header, body.removesuffix("<|im_end|>").strip() + "<|im_end|>", ""


def two_stops(messages: list[dict[str, str]], i: int) -> tuple[str, str, str]:
    header, body, _ = chatml(messages, i)
    last = i + 1 == len(messages) and messages[i]["role"] == "assistant"
    return header, body.removesuffix("<|im_end|>") + ("<|endoftext|>" if last else "<|im_end|>"), ""


def rewrites(messages: list[dict[str, str]], i: int) -> tuple[str, str, str]:
    header, body, tail = chatml(messages, i)
    if messages[i]["role"] == "user":
        return header, body, tail
    thinks = "<think>\n\n</think>\n\n" if i + 1 == len(messages) else ""
    return header, thinks + body.removesuffix("<|im_end|>").strip() + "<|im_end|>", tail


WRITERS = {
    "CHATML": (chatml, ""),
    "MARKED": (chatml, ""),
    "DROPS_CALLS": (chatml, ""),
    "CLOSES_TEXT": (chatml, "<|endoftext|>"),
    "ALWAYS_PROMPTS": (trims, "<|im_start|>assistant\n"),
    "TWO_STOPS": (two_stops, ""),
    "REWRITES_HISTORY": (rewrites, ""),
    "PROMPT_OPENS_THINKING": (chatml, ""),
}


def written(template: str, messages: list[dict[str, str]]) -> tuple[str, list[tuple[int, int]]]:
    """The text of a conversation and the assistant's spans, put together without the template."""
    write, closing = WRITERS[template]
    text, spans = "", []
    for i, message in enumerate(messages):
        header, body, tail = write(messages, i)
        start = len(text) + len(header)
        if message["role"] == "assistant":
            spans.append((start, start + len(body)))
        text += header + body + tail
    return text + closing, spans


@pytest.mark.parametrize("template", WRITERS)
@given(talk=TALK)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_trains_is_what_the_assistant_says_through_its_stop_token(make_tokenizer, templates, template, talk):
    tokenizer = make_tokenizer(getattr(templates, template))
    # Which part of a prompt that is always there is the header, only a message in front of it can tell.
    assume(template != "ALWAYS_PROMPTS" or talk[0]["role"] == "user")
    text, spans = written(template, talk)
    assert tokenizer.apply_chat_template(talk, tokenize=False) == text
    encoded = encode("f:1", Conversation(talk), tokenizer, "assistant")
    assert encoded.tokens.tolist() == tokenizer.apply_chat_template(talk, return_dict=False)
    assert (encoded.weights > 0).tolist() == overlapping(tokenizer, text, spans)


def overlapping(tokenizer: Any, text: str, spans: list[tuple[int, int]]) -> list[bool]:
    """Whether each token has a byte in a span; told from the bytes of the tokens, not from offsets."""
    inside = np.zeros(len(text.encode()), bool)
    for start, end in spans:
        inside[len(text[:start].encode()) : len(text[:end].encode())] = True
    result, at = [], 0
    for token in tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False).input_ids):
        length = len(token.encode()) if token.startswith("<|") and token.endswith("|>") else len(token)
        result.append(bool(inside[at : at + length].any()))
        at += length
    assert at == len(inside)
    return result


@pytest.mark.parametrize("template", ["CHATML", "MARKED", "CLOSES_TEXT", "REWRITES_HISTORY"])
@given(talk=TURNS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_as_text_no_message_makes_a_special_token(make_tokenizer, templates, template, talk):
    tokenizer = make_tokenizer(getattr(templates, template))
    encoded = encode("f:1", Conversation(talk), tokenizer, "assistant", RenderOptions(special_text="text"))
    empty = [{**message, "content": ""} for message in talk]
    special = set(tokenizer.all_special_ids) | {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    own = [i for i in tokenizer.apply_chat_template(empty, return_dict=False) if i in special]
    assert [i for i in encoded.tokens.tolist() if i in special] == own
    assert tokenizer.decode(encoded.tokens) == tokenizer.apply_chat_template(talk, tokenize=False)
    text, spans = written(template, talk)
    trained = tokenizer.decode(encoded.tokens[encoded.weights > 0])
    said = "".join(text[start:end] for start, end in spans)
    assert trained.endswith("<|im_end|>") and said.replace("\n", "") == trained.replace("\n", "")
