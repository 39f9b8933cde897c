"""Tokenizers from directories and GGUF files, without a network and without torch."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sft_jax.data.chat.tokenizer import fingerprint, load_tokenizer, offset_backend, read_template, vocabulary_size
from sft_jax.errors import BadInput

TEXT = "hello world's 123\n\n1. Grüße  世界🙂\t x\n 22 the"


def write_gguf(
    path: Path, tokenizer: Any, pre: str, model: str = "gpt2", unused: int = 0, merges: bool = True, **rest: Any
) -> Path:
    """A GGUF file with a tokenizer and no tensor; `unused` rows fill its vocabulary up, as llama.cpp does."""
    import gguf

    tree = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(tokenizer.get_vocab(), key=lambda token: tokenizer.get_vocab()[token])
    special = set(tokenizer.all_special_tokens) | {"<|im_start|>"}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens + [f"[PAD{i}]" for i in range(unused)])
    if merges:
        writer.add_token_merges([" ".join(merge) for merge in tree["merges"]])
    writer.add_token_types([3 if token in special else 1 for token in tokens] + [5] * unused)
    for name in ("bos", "eos", "pad"):
        getattr(writer, f"add_{name}_token_id")(getattr(tokenizer, f"{name}_token_id"))
    writer.add_chat_template(tokenizer.chat_template)
    for key, value in rest.items():
        getattr(writer, key)(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def test_a_directory_gives_back_the_tokenizer_saved_there(tmp_path: Path, make_tokenizer):
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded(TEXT).input_ids == tokenizer(TEXT).input_ids
    assert loaded.chat_template == tokenizer.chat_template
    assert (loaded.eos_token, loaded.pad_token) == ("<|im_end|>", "<|im_end|>")


def test_a_gguf_file_gives_ids_special_tokens_and_template(tmp_path: Path, make_tokenizer):
    tokenizer = make_tokenizer()
    loaded = load_tokenizer(write_gguf(tmp_path / "m.gguf", tokenizer, "llama-bpe", add_add_bos_token=False))
    assert loaded(TEXT).input_ids == tokenizer(TEXT).input_ids
    assert loaded.decode(loaded(TEXT).input_ids) == TEXT
    assert loaded.special_tokens_map == tokenizer.special_tokens_map
    assert loaded.added_tokens_decoder[loaded.eos_token_id].special
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    assert loaded.apply_chat_template(messages).input_ids == tokenizer.apply_chat_template(messages).input_ids


def test_a_smollm_gguf_sets_digits_apart_before_the_merges(tmp_path: Path, make_tokenizer):
    loaded = load_tokenizer(write_gguf(tmp_path / "m.gguf", make_tokenizer(), "smollm"))
    pieces = [loaded.decode(i) for i in loaded("\n\n123").input_ids]
    assert pieces == ["\n\n", "1", "2", "3"]
    plain = load_tokenizer(write_gguf(tmp_path / "n.gguf", make_tokenizer(), "gpt-2"))
    assert [plain.decode(i) for i in plain("\n\n123").input_ids] == ["\n", "\n", "123"]


def test_rows_that_fill_a_gguf_vocabulary_up_are_no_tokens(tmp_path: Path, make_tokenizer):
    tokenizer = make_tokenizer()
    loaded = load_tokenizer(write_gguf(tmp_path / "m.gguf", tokenizer, "gpt-2", unused=7))
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert vocabulary_size(loaded) == len(tokenizer)
    assert loaded("[PAD3] hello").input_ids == tokenizer("[PAD3] hello").input_ids


def test_a_gguf_without_merges_says_so(tmp_path: Path, make_tokenizer):
    with pytest.raises(BadInput, match=r"lacks tokenizer\.ggml\.merges"):
        load_tokenizer(write_gguf(tmp_path / "m.gguf", make_tokenizer(), "gpt-2", merges=False))


def test_a_llama_gguf_prepends_bos_unless_told_otherwise(tmp_path: Path, make_tokenizer):
    tokenizer = make_tokenizer()
    by_default = load_tokenizer(write_gguf(tmp_path / "a.gguf", tokenizer, "llama-bpe"))
    without = load_tokenizer(write_gguf(tmp_path / "b.gguf", tokenizer, "llama-bpe", add_add_bos_token=False))
    assert by_default("hello").input_ids == [tokenizer.bos_token_id, *without("hello").input_ids]
    assert by_default("hello", add_special_tokens=False).input_ids == without("hello").input_ids


def test_a_gguf_whose_cutting_is_unknown_is_refused(tmp_path: Path, make_tokenizer):
    with pytest.raises(BadInput, match=r"unknown pre-tokenizer tokenizer.ggml.pre 'odd'.*smollm.*data.tokenizer"):
        load_tokenizer(write_gguf(tmp_path / "m.gguf", make_tokenizer(), "odd"))
    with pytest.raises(BadInput, match=r"'bert'; supported: gpt2"):
        load_tokenizer(write_gguf(tmp_path / "n.gguf", make_tokenizer(), "gpt-2", model="bert"))


def test_a_damaged_gguf_is_refused(tmp_path: Path, make_tokenizer):
    whole = write_gguf(tmp_path / "m.gguf", make_tokenizer(), "gpt-2").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[:500])
    with pytest.raises(BadInput, match=r"cut\.gguf: .*the GGUF header is corrupted or truncated"):
        load_tokenizer(tmp_path / "cut.gguf")
    (tmp_path / "no.gguf").write_bytes(b"PK" * 20)
    with pytest.raises(BadInput, match="expected GGUF"):
        load_tokenizer(tmp_path / "no.gguf")


def test_a_wrong_path_names_what_is_there(tmp_path: Path):
    (tmp_path / "model.gguf").touch()
    with pytest.raises(BadInput, match=r"no such tokenizer.*Did you mean 'model.gguf'"):
        load_tokenizer(tmp_path / "modle.gguf")
    with pytest.raises(BadInput, match=r"no usable tokenizer.*model\.gguf"):
        load_tokenizer(tmp_path)
    with pytest.raises(BadInput, match="does not exist either"):
        load_tokenizer(tmp_path / "gone" / "model.gguf")


def test_a_template_file_takes_the_place_of_the_tokenizers_own(tmp_path: Path, make_tokenizer):
    make_tokenizer(None).save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).chat_template is None
    (tmp_path / "t.jinja").write_text("{{ messages[0].content }}", encoding="utf-8")
    loaded = load_tokenizer(tmp_path, tmp_path / "t.jinja")
    assert loaded.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"
    with pytest.raises(BadInput, match="no such chat template"):
        load_tokenizer(tmp_path, tmp_path / "missing.jinja")


def test_offsets_cover_white_space_and_ids_stay_the_same(make_tokenizer):
    tokenizer = make_tokenizer()
    encoding = offset_backend(tokenizer).encode(TEXT, add_special_tokens=False)
    assert encoding.ids == tokenizer(TEXT).input_ids
    assert all(start < end for start, end in encoding.offsets)
    assert any(start == end for start, end in tokenizer(TEXT, return_offsets_mapping=True)["offset_mapping"])
    assert set(range(len(TEXT))) == {k for start, end in encoding.offsets for k in range(start, end)}


def test_the_fingerprint_changes_with_vocabulary_and_template(make_tokenizer, templates):
    prints = {
        fingerprint(make_tokenizer()),
        fingerprint(make_tokenizer(templates.DROPS_CALLS)),
        fingerprint(make_tokenizer(pad="<|pad|>")),
        fingerprint(make_tokenizer(add_bos=True)),
    }
    assert len(prints) == 4
    assert all(re.fullmatch("[0-9a-f]{64}", p) for p in prints)


def test_tokenizer_json_decides_whatever_class_the_config_names(make_tokenizer, tmp_path):
    """A GPT2Tokenizer rebuilt from its class would cut text its own way: digits together, contractions apart."""
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": "GPT2Tokenizer"}))
    text = "  12 hello\n\nworld it's 123456"
    assert load_tokenizer(tmp_path)(text)["input_ids"] == tokenizer(text)["input_ids"]


CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Paris"}}}


@pytest.mark.parametrize("add_bos", [False, True])
def test_the_generic_template_trains_every_turn_through_eos(make_tokenizer, add_bos: bool):
    from sft_jax.data.chat.encode import encode, generation_prompt
    from sft_jax.data.forms.formats import Conversation

    tokenizer = make_tokenizer(None, add_bos=add_bos)
    tokenizer.chat_template = read_template("generic", tokenizer)
    try:
        messages = [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": "", "reasoning_content": "think", "tool_calls": [CALL]},
            {"role": "tool", "content": "123"},
            {"role": "assistant", "content": "Paris"},
        ]
        tokens, weights, lost, _ = encode("x:1", Conversation(messages, [CALL]), tokenizer, "assistant")
        text = tokenizer.decode(tokens)
        assert text.startswith("<|endoftext|>" if add_bos else "Tools:") and text.count("<|endoftext|>") == add_bos
        ends = np.flatnonzero(np.diff(np.append(weights, 0)) < 0)
        assert [tokenizer.decode(tokens[end]) for end in ends] == [tokenizer.eos_token] * 2 and not lost
        trained = tokenizer.decode(tokens[weights > 0])
        assert trained == (
            "<think>\nthink\n</think>\n\n\n<tool_call>"
            '{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call><|im_end|>Paris<|im_end|>'
        )
        prompt = generation_prompt("x:1", messages[:2], None, tokenizer)
        assert tokenizer.decode(prompt).endswith("User:\nhello\n\nAssistant:\n")
    finally:
        tokenizer.chat_template = None


def test_a_missing_template_file_names_the_shipped_one(make_tokenizer):
    with pytest.raises(BadInput, match="'generic' is the one that ships with sft_jax"):
        read_template("nowhere.jinja", make_tokenizer())
