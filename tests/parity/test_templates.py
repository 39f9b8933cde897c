"""Ids and masks of stock chat templates with real tokenizers: against transformers' ids and trl's marked twins.

Every family and every conversation of `template_cases` is either verified, or refused with the reason that
docs/templates.md states. `make parity` fetches the tokenizers.
"""

from datetime import date

import numpy as np
import pytest

from sft_jax.data.chat.encode import encode, generation_prompt, rendered
from sft_jax.data.chat.rendering import RenderOptions
from sft_jax.data.chat.tokenizer import with_stops
from sft_jax.data.forms.formats import Conversation
from sft_jax.data.forms.messages import check_messages
from sft_jax.errors import BadInput
from tests.parity.record_templates import DOCS, END, START
from tests.parity.template_cases import CASES, FAMILIES, load, template_text
from tests.parity.template_check import row, table

pytestmark = [pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore::DeprecationWarning")]
STATED = DOCS.read_text(encoding="utf-8").split(START)[1].split(END)[0]
TRAPPED = (
    *("Llama 3", "Qwen 3", "Gemma 3", "DeepSeek V3", "gpt-oss", "SmolLM2 (ChatML)", "Mistral", "Phi-3"),
    *("Phi-3, stripping tokens", "Cohere 2"),
)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_conversation_is_verified_or_refused_as_the_table_says(name: str):
    assert row(name) in STATED.splitlines(), "python -m tests.parity.record_templates writes the table anew"


def test_the_table_has_these_families_and_cases_and_no_others():
    assert STATED.startswith(table())
    lines = STATED[len(table()) :].splitlines()
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines] == list(FAMILIES)


@pytest.mark.parametrize(
    ("stock", "tokenizer"), [("gptoss", "gpt-oss"), ("llama3_2", "Llama 3"), ("muse_glimmer", "Muse Glimmer")]
)
def test_templates_that_print_the_date_print_the_configs(stock: str, tokenizer: str):
    loaded, _ = load(FAMILIES[tokenizer])
    loaded.chat_template = template_text(f"{stock}.jinja")
    talk, _ = CASES["one turn"]
    options = RenderOptions(date="2026-02-03")
    written = "03 Feb 2026" if stock == "llama3_2" else "2026-02-03"
    assert written in rendered("x", talk, loaded, options)
    assert written in loaded.decode(generation_prompt("x", talk[:1], None, loaded, options))
    encoded = encode("x:1", Conversation(talk), loaded, "assistant", options)
    assert written in loaded.decode(encoded.tokens)
    assert loaded.decode(encoded.tokens[encoded.weights > 0]).count("Paris.") == 1
    assert date.today().strftime("%Y") in loaded.apply_chat_template(talk, tokenize=False)


@pytest.mark.parametrize("name", TRAPPED)
def test_special_text_in_a_message_is_text_where_the_config_says_so(name: str):
    loaded, _ = load(FAMILIES[name])
    special = {i for i, token in loaded.added_tokens_decoder.items() if token.special}
    for case in ("special text in user content", "special text in assistant content"):
        talk, _ = CASES[case]
        harmless = [{**m, "content": m["content"].replace("<", "(").replace(">", ")")} for m in talk]
        tokens, plain = (
            encode("x:1", Conversation(m), loaded, "assistant", options).tokens.tolist()
            for m, options in ((talk, RenderOptions(special_text="text")), (harmless, RenderOptions()))
        )
        assert [i for i in tokens if i in special] == [i for i in plain if i in special]
        with pytest.raises(BadInput, match=r"x:1: messages\[\d\] .* contains"):
            encode("x:1", Conversation(talk), loaded, "assistant", RenderOptions(special_text="refuse"))


@pytest.mark.parametrize(
    ("name", "case", "lost", "trains"),
    [
        (
            "Llama 3",
            "content beside a tool call",
            "the tool call 'get_weather'",
            "Let me look.<|eot_id|>Clear.<|eot_id|>",
        ),
        ("Llama 3", "tool call", "the tool call 'get_weather'", "Clear.<|eot_id|>"),
        ("Qwen 3", "reasoning_content, earlier turn", "its reasoning_content", "Paris.<|im_end|>"),
        ("GLM-4 MoE", "one turn", "the stop token", "\n<think></think>\nParis."),
        ("gpt-oss", "parallel calls", "the argument 'Rome'", '{"city": "Paris"}<|call|>'),
    ],
)
def test_what_a_stock_template_loses_is_told_where_that_is_allowed(name: str, case: str, lost: str, trains: str):
    loaded, _ = load(FAMILIES[name])
    with_stops(loaded, {})  # a model that names no stop token
    talk, tools = CASES[case]
    encoded = encode(
        "x:1", Conversation(check_messages("x:1", talk), tools), loaded, "assistant", RenderOptions(allow_lossy=True)
    )
    assert any(lost in told for told in encoded.lost), encoded.lost
    assert trains in loaded.decode(encoded.tokens[np.flatnonzero(encoded.weights)])
