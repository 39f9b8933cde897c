"""Writing Hugging Face directories."""

import json

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from sft_jax.config import Sharding
from sft_jax.data.chat.tokenizer import load_tokenizer
from sft_jax.errors import BadInput
from sft_jax.model.families import config_of
from sft_jax.weights.export import export, save_tokenizer, stop_tokens
from sft_jax.weights.load import open_model

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
STRINGS = (
    "In 2023 there were 12345.",
    "  12 and\n    34",  # the digits stand alone only if the cut at digits survives
    "<|im_start|>user\nhi<|im_end|>\n",
    "x=3.14, $1,000.50 ½ ٣٤ naïve 日本語 🙂\t\r\n",
    "",
)


@pytest.fixture
def tokenizer():
    """Byte-level with single digits, as SmolLM2's: "  " is one token, and so is "Ġ" + "1" where digits are not cut."""
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "Ġ"), ("Ġ", "1"), ("h", "i")]
    vocabulary = {token: i for i, token in enumerate(["<|endoftext|>", "<|im_start|>", "<|im_end|>", *alphabet])}
    vocabulary |= {a + b: len(vocabulary) + i for i, (a, b) in enumerate(merges)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    digits, cut = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, cut])
    backend.decoder = decoders.ByteLevel()
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    backend.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|im_end|>",
        chat_template=CHATML,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )


def export_again(files, parameters, out, tokenizer=None, **options):
    options = {"generation_config": files.generation_config, **options}
    export(parameters, files.architecture, files.config, tokenizer, out, **options)
    return out


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("max_shard_bytes", [2**30, 40_000])
def test_what_is_written_is_what_was_read_and_reads_as_the_same(golden, load, tmp_path, max_shard_bytes):
    files, parameters = load(golden, fsdp=4, tensor=2)
    out = export_again(files, parameters, tmp_path / "out", max_shard_bytes=max_shard_bytes)
    theirs = load_file(golden / "model.safetensors")
    written = {}
    for path in out.glob("*.safetensors"):
        written |= load_file(path)
        with safe_open(path, framework="numpy") as file:
            assert file.metadata() == {"format": "pt"}  # transformers 4 refuses files without it
    assert written.keys() == theirs.keys()
    for name in theirs:
        np.testing.assert_array_equal(written[name], theirs[name], err_msg=name)
    again_files, again = load(out)
    assert again_files.architecture == files.architecture and again_files.config == files.config
    assert again.keys() == parameters.keys()
    for name in parameters:
        np.testing.assert_array_equal(np.asarray(again[name]), np.asarray(parameters[name]), err_msg=name)


def test_parameters_on_one_device_are_written_too(llama3, load, tmp_path):
    files, sharded = load(llama3)
    alone = {name: jax.device_put(np.asarray(p), jax.devices()[0]) for name, p in sharded.items()}
    export_again(files, alone, tmp_path / "out")
    _, again = load(tmp_path / "out")
    for name in sharded:
        np.testing.assert_array_equal(np.asarray(again[name]), np.asarray(sharded[name]))


def test_files_stay_below_the_limit_and_the_index_names_every_tensor(llama3, load, tmp_path):
    files, parameters = load(llama3)
    out = export_again(files, parameters, tmp_path / "out", max_shard_bytes=40_000)
    shards = sorted(path.name for path in out.glob("*.safetensors"))
    assert len(shards) > 3 and shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    index = read_json(out / "model.safetensors.index.json")
    held = {name: path for path in shards for name in load_file(out / path)}
    assert index["weight_map"] == held
    sizes = {path: sum(t.nbytes for t in load_file(out / path).values()) for path in shards}
    assert max(sizes.values()) <= 40_000
    assert index["metadata"]["total_size"] == sum(sizes.values())


def test_rows_added_to_the_vocabulary_are_not_written(llama3, load, tmp_path):
    padded = open_model(str(llama3)).architecture.padded_to(48)
    files, parameters = load(llama3, padded, Sharding(vocab="fsdp", embed="none"))
    export(parameters, padded, files.config, None, tmp_path / "out")
    assert read_json(tmp_path / "out" / "config.json")["vocab_size"] == 128
    assert load_file(tmp_path / "out" / "model.safetensors")["lm_head.weight"].shape == (128, 32)
    np.testing.assert_array_equal(load(tmp_path / "out")[1]["head"], load(llama3)[1]["head"])


def test_large_tensors_are_written_in_blocks_of_rows(llama3, load, tmp_path, monkeypatch):
    monkeypatch.setattr("sft_jax.weights.export.PIECE_BYTES", 1000)
    files, parameters = load(llama3)
    _, again = load(export_again(files, parameters, tmp_path / "out"))
    np.testing.assert_array_equal(again["embedding"], parameters["embedding"])


def test_narrow_exports_round_once(llama3, load, tmp_path):
    files, parameters = load(llama3)
    out = export_again(files, parameters, tmp_path / "out", dtype="bfloat16")
    assert read_json(out / "config.json")["dtype"] == "bfloat16"
    written = load_file(out / "model.safetensors")
    for name, tensor in load_file(llama3 / "model.safetensors").items():
        np.testing.assert_array_equal(written[name], tensor.astype("bfloat16"))


@pytest.mark.parametrize("case", ["llama31", "qwen2_windows", "qwen3"])
def test_a_config_of_our_own_making_serves_as_well(case, goldens, load, tmp_path):
    files, parameters = load(goldens / case)
    config = config_of(files.architecture, files.model_type)
    export(parameters, files.architecture, config, None, tmp_path / "out")
    again_files, again = load(tmp_path / "out")
    assert again_files.architecture == files.architecture
    np.testing.assert_array_equal(again["embedding"], parameters["embedding"])


def test_the_older_dtype_key_does_not_contradict_the_weights(llama3, load, tmp_path):
    files, parameters = load(llama3)
    config = {key: value for key, value in files.config.items() if key != "dtype"} | {"torch_dtype": "bfloat16"}
    export(parameters, files.architecture, config, None, tmp_path / "out")
    written = read_json(tmp_path / "out" / "config.json")
    assert "torch_dtype" not in written and written["dtype"] == "float32"


def test_a_config_of_another_decoder_is_refused(llama3, load, tmp_path):
    files, parameters = load(llama3)
    with pytest.raises(BadInput, match=r"another decoder: layers 4, the parameters have 3"):
        export(parameters, files.architecture, {**files.config, "num_hidden_layers": 4}, None, tmp_path / "out")


def test_a_directory_with_content_is_refused_and_left_alone(llama3, load, tmp_path):
    files, parameters = load(llama3)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(BadInput, match="exists and is not empty"):
        export_again(files, parameters, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_empty_directory_is_filled(llama3, load, tmp_path):
    files, parameters = load(llama3)
    (tmp_path / "out").mkdir()
    assert (export_again(files, parameters, tmp_path / "out") / "model.safetensors").is_file()


def test_an_export_that_fails_leaves_nothing(llama3, load, tmp_path, monkeypatch):
    files, parameters = load(llama3)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sft_jax.weights.export._write_file", full)
    with pytest.raises(OSError, match="No space left"):
        export_again(files, parameters, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_unknown_dtype_is_refused(llama3, load, tmp_path):
    files, parameters = load(llama3)
    with pytest.raises(BadInput, match=r"cannot export dtype 'int8'\. Supported: float32, float16, bfloat16"):
        export_again(files, parameters, tmp_path / "out", dtype="int8")


def test_the_tokenizer_comes_back_as_it_was(tokenizer, llama3, load, tmp_path):
    from transformers import AutoTokenizer

    files, parameters = load(llama3)
    out = export_again(files, parameters, tmp_path / "out", tokenizer)
    assert read_json(out / "tokenizer_config.json")["tokenizer_class"] == "PreTrainedTokenizerFast"
    for again in (AutoTokenizer.from_pretrained(out), load_tokenizer(out)):
        assert [again(text)["input_ids"] for text in STRINGS] == [tokenizer(text)["input_ids"] for text in STRINGS]
        assert again.chat_template == tokenizer.chat_template == (out / "chat_template.jinja").read_text()
        for name in ("bos_token_id", "eos_token_id", "pad_token_id", "model_max_length"):
            assert getattr(again, name) == getattr(tokenizer, name), name
        assert {t.content for t in again.added_tokens_decoder.values() if t.special} == {
            t.content for t in tokenizer.added_tokens_decoder.values() if t.special
        }


def test_digits_stay_single_where_a_models_own_class_would_join_them(tokenizer, llama3, load, tmp_path):
    from transformers import AutoTokenizer

    files, parameters = load(llama3)
    out = export_again(files, parameters, tmp_path / "out", tokenizer)
    assert AutoTokenizer.from_pretrained(out).tokenize("a  12") == ["a", "ĠĠ", "1", "2"]
    path = out / "tokenizer_config.json"
    path.write_text(json.dumps({**read_json(path), "tokenizer_class": "GPT2Tokenizer"}))
    assert AutoTokenizer.from_pretrained(out).tokenize("a  12") == ["a", "Ġ", "Ġ1", "2"]


def test_a_tokenizer_may_be_saved_without_weights(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path)
    assert load_tokenizer(tmp_path)("  12")["input_ids"] == tokenizer("  12")["input_ids"]


def test_the_models_stop_at_their_own_tokens_the_templates_and_the_tokenizers(tokenizer, llama3, load, tmp_path):
    files, parameters = load(llama3)
    assert stop_tokens(tokenizer, {}) == [2, 0]
    assert stop_tokens(tokenizer, {"eos_token_id": 7}) == [7, 2, 0]
    assert stop_tokens(tokenizer, {"eos_token_id": [7, 2]}) == [7, 2, 0]
    out = export_again(files, parameters, tmp_path / "out", tokenizer)
    generation = read_json(out / "generation_config.json")
    assert generation["eos_token_id"] == read_json(out / "config.json")["eos_token_id"] == [2, 5, 0]
    assert generation["pad_token_id"] == 2


def test_one_stop_token_is_written_as_a_number(tokenizer, goldens, load, tmp_path):
    tokenizer.eos_token = "<|im_end|>"
    files, parameters = load(goldens / "llama2")
    out = export_again(files, parameters, tmp_path / "out", tokenizer)
    assert read_json(out / "generation_config.json")["eos_token_id"] == 2


def test_a_template_without_an_end_of_turn_token_adds_none(tokenizer):
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    assert stop_tokens(tokenizer, {}) == [0]
    tokenizer.chat_template = None
    assert stop_tokens(tokenizer, {}) == [0]


def test_what_the_model_samples_with_is_kept(llama3, load, tmp_path):
    files, parameters = load(llama3)
    given = {"temperature": 0.6, "top_p": 0.9, "do_sample": True, "eos_token_id": 2}
    out = export_again(files, parameters, tmp_path / "out", generation_config=given)
    assert read_json(out / "generation_config.json") == {**given, "bos_token_id": 1}
