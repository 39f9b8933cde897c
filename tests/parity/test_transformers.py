"""Our forward pass and our files, against transformers itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from sft_jax.config import Mesh, Sharding
from sft_jax.data.chat.tokenizer import load_tokenizer
from sft_jax.model.attention.reference import TokenPositions
from sft_jax.model.decoder import abstract_parameters, forward, logits
from sft_jax.model.families import config_of
from sft_jax.model.layers import Compute
from sft_jax.parallel.mesh import make_mesh
from sft_jax.parallel.rules import shardings
from sft_jax.weights.export import export, save_tokenizer
from sft_jax.weights.load import load_parameters, open_model
from tests.parity.record_goldens import CASES, build, logits_of, tokens_of

TEXTS = (
    "The capital of France is Paris. The capital of Italy is",
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nWhat is 17 * 23? Think step by step."
    "<|im_end|>\n<|im_start|>assistant\n17 * 23 = 17 * 20 + 17 * 3 = 340 + 51 = 391.<|im_end|>\n",
    "def fibonacci(n: int) -> int:\n    if n < 2:\n        return n\n    return fibonacci(n - 1) + fibonacci(n - 2)\n",
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness, "
    "it was the epoch of belief, it was the epoch of incredulity, it was the season of Light, it was the season of "
    "Darkness, it was the spring of hope, it was the winter of despair, we had everything before us, we had nothing "
    "before us, we were all going direct to Heaven, we were all going direct the other way.",
    "Les élèves de l'école ont mangé 3,5 kg de crêpes. 日本語のテキスト, émoji 🙂, and   spaces\t\ttabs."
    "\n\n  1. one\n  2. two",
)


def load(path):
    """ModelFiles and parameters, on as many devices as there are."""
    files = open_model(str(path))
    shapes, axes = abstract_parameters(files.architecture)
    mesh = make_mesh(Mesh())
    layout = shardings({name: s.shape for name, s in shapes.items()}, axes, mesh, Sharding())
    return files, load_parameters(files, files.architecture, layout)


def our_logits(files, parameters, tokens):
    """float32 [B, T, V] for int32 tokens [B, T]."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)

    @jax.jit
    def run(parameters, tokens):
        places = TokenPositions(positions, jnp.ones_like(positions))
        hidden, _ = forward(files.architecture, Compute(), parameters, tokens, places)
        return logits(files.architecture, parameters, hidden)

    return np.asarray(run(parameters, jnp.asarray(tokens)))


def loaded_without_a_complaint(directory, caplog):
    """The exported directory in transformers: every tensor found, none left over, none made up, no warning."""
    transformers.logging.enable_propagation()
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")), (
        report
    )
    complaints = [record.getMessage() for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
    assert not complaints
    return model.eval()


@pytest.fixture(scope="module")
def real(model_path):
    """The real model: ours, and transformers' own reading of the same file."""
    files, parameters = load(model_path)
    tokenizer = load_tokenizer(model_path)
    theirs = {
        attention: transformers.AutoModelForCausalLM.from_pretrained(
            model_path.parent, gguf_file=model_path.name, dtype=torch.float32, attn_implementation=attention
        ).eval()
        for attention in ("eager", "sdpa")
    }
    return files, parameters, tokenizer, theirs


@pytest.mark.parametrize("case", CASES)
def test_tiny_models_of_every_family_give_the_same_logits(case, tmp_path):
    model = build(case)
    model.save_pretrained(tmp_path)
    files, parameters = load(tmp_path)
    tokens = tokens_of(case)
    assert np.abs(our_logits(files, parameters, tokens) - logits_of(model, tokens)).max() <= 1e-4


def test_the_real_model_gives_the_same_logits(real):
    """The bound is how far transformers' own two attention kernels differ, over the texts of this run."""
    files, parameters, tokenizer, theirs = real
    differences = []
    for text in TEXTS:
        tokens = np.asarray(tokenizer(text)["input_ids"], np.int32)[None]
        eager, sdpa = (logits_of(theirs[attention], tokens) for attention in ("eager", "sdpa"))
        ours = our_logits(files, parameters, tokens)
        differences.append((np.abs(ours - eager).max(), np.abs(eager - sdpa).max()))
        print("{} tokens: ours - eager {:.2e}, eager - sdpa {:.2e}".format(tokens.size, *differences[-1]))
    our_largest, their_largest = np.max(differences, axis=0)
    assert our_largest <= 1e-3
    assert our_largest <= 3 * their_largest


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("own_config", [False, True])
def test_transformers_loads_our_export_of_every_family(case, own_config, tmp_path, caplog):
    model = build(case)
    model.save_pretrained(tmp_path / "theirs")
    files, parameters = load(tmp_path / "theirs")
    config = config_of(files.architecture, files.model_type) if own_config else files.config
    export(parameters, files.architecture, config, None, tmp_path / "ours", max_shard_bytes=50_000)
    again = loaded_without_a_complaint(tmp_path / "ours", caplog)
    tokens = tokens_of(case)
    np.testing.assert_array_equal(logits_of(again, tokens), logits_of(build(case, "sdpa"), tokens))


def test_transformers_loads_our_export_of_the_real_model(real, tmp_path, caplog):
    files, parameters, tokenizer, theirs = real
    generation = files.generation_config
    export(parameters, files.architecture, files.config, tokenizer, tmp_path / "out", generation_config=generation)
    again = loaded_without_a_complaint(tmp_path / "out", caplog)
    their_tensors = theirs["sdpa"].state_dict()
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, their_tensors[name]), name
    tokens = np.asarray(tokenizer(TEXTS[1])["input_ids"], np.int32)[None]
    np.testing.assert_array_equal(logits_of(again, tokens), logits_of(theirs["sdpa"], tokens))
    assert again.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    stopped = again.generate(torch.from_numpy(tokens).long(), max_new_tokens=40, do_sample=False)
    assert stopped[0, -1] == again.generation_config.eos_token_id or stopped.shape[1] == tokens.shape[1] + 40


def test_the_exported_tokenizer_is_the_one_that_was_read(real, tmp_path):
    _, _, tokenizer, _ = real
    save_tokenizer(tokenizer, tmp_path)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    assert again.apply_chat_template(turns, tokenize=False) == tokenizer.apply_chat_template(turns, tokenize=False)
    for name in ("bos_token", "eos_token", "unk_token", "pad_token", "chat_template", "model_max_length"):
        assert getattr(again, name) == getattr(tokenizer, name), name
    assert again.get_vocab() == tokenizer.get_vocab()


def test_digits_are_cut_one_by_one_as_smollm2_was_trained(real):
    _, _, tokenizer, _ = real
    assert tokenizer.tokenize("  12345 x") == ["ĠĠ", "1", "2", "3", "4", "5", "Ġx"]
