import copy
import dataclasses

import jax
import numpy as np
import pytest

from sft_jax.data.chat.encode import encode
from sft_jax.data.forms.formats import Pair, PromptCompletion
from sft_jax.data.pack.store import Example
from sft_jax.errors import BadInput, BadRow
from sft_jax.handoff.reward import choose_pad, reward_documents, split_pair, with_reward_head
from sft_jax.model.architecture import model_flops
from sft_jax.model.decoder import head_kernel
from sft_jax.model.families import architecture_of, as_reward, config_of
from sft_jax.model.layers import Compute
from sft_jax.parallel.rules import ONE_DEVICE, Layout
from sft_jax.weights.export import export
from sft_jax.weights.pretrained import open_pretrained, put_on_devices


@pytest.fixture(scope="module")
def reward(tiny, tiny_parameters):
    """(architecture, parameters) with a scalar head that is not zero."""
    return with_reward_head(tiny, ONE_DEVICE, tiny_parameters, "normal", 0)


def test_the_scalar_head_takes_the_place_of_the_vocabularys(tiny, tiny_parameters):
    untied = dataclasses.replace(tiny, tied=False)
    parameters = {**tiny_parameters, "head": tiny_parameters["embedding"]}
    architecture, made = with_reward_head(untied, ONE_DEVICE, parameters, "zeros", 0)
    assert architecture.reward and "head" not in made and made["score"].shape == (1, tiny.embed)
    assert not np.asarray(made["score"]).any()
    _, drawn = with_reward_head(tiny, ONE_DEVICE, tiny_parameters, "normal", 1)
    assert np.asarray(drawn["score"]).std() == pytest.approx((tiny.embed + 1) ** -0.5, rel=0.4)
    with pytest.raises(BadInput, match="this is a reward model"):
        head_kernel(architecture, made)


def test_a_reward_is_read_at_the_last_token_whatever_pads_the_batch(reward):
    architecture, parameters = reward
    random = np.random.default_rng(0)
    documents = [random.integers(0, 250, n).astype(np.int32) for n in (3, 40, 7)]
    together = list(reward_documents(architecture, Compute(), parameters, documents, batch_size=4))

    def one(document):
        return next(iter(reward_documents(architecture, Compute(), parameters, [document], batch_size=1)))

    alone = [one(document) for document in documents]
    assert together == pytest.approx(alone, rel=1e-5) and len(set(together)) == 3
    assert one(np.append(documents[0], 5).astype(np.int32)) != pytest.approx(alone[0], rel=1e-3)


def test_an_exported_reward_model_comes_back_the_same(reward, tokenizer, tmp_path, mesh_of):
    architecture, parameters = reward
    config = config_of(architecture, "llama")
    assert config["architectures"] == ["LlamaForSequenceClassification"] and config["id2label"] == {"0": "LABEL_0"}
    export(parameters, architecture, config, tokenizer, tmp_path / "reward")
    pretrained = open_pretrained(str(tmp_path / "reward"))
    assert pretrained.architecture == architecture
    from sft_jax.config import RunConfig

    _, again = put_on_devices(pretrained, RunConfig(), mesh_of())
    assert again.keys() == parameters.keys()
    assert all(np.array_equal(again[name], parameters[name]) for name in again)


def test_classifiers_of_several_labels_are_refused(tiny):
    config = as_reward(config_of(tiny, "llama"), "llama")
    config["id2label"] = {"0": "bad", "1": "good"}
    with pytest.raises(BadInput, match="2 labels; a reward model has one"):
        architecture_of(config, "m")


def test_a_reward_model_is_one_however_its_class_is_spelled(tiny):
    config = as_reward({**config_of(tiny, "llama"), "problem_type": "single_label_classification"}, "llama")
    assert "problem_type" not in config
    assert architecture_of({**config, "architectures": config["architectures"][0]}, "m").reward


def test_a_scalar_head_costs_no_vocabulary(tiny):
    small, large = (dataclasses.replace(tiny, reward=True, vocab=vocab) for vocab in (260, 50_000))
    assert model_flops(small, 10, 2, 30) == model_flops(large, 10, 2, 30) < model_flops(tiny, 10, 2, 30)


def test_padding_ends_no_answer(tokenizer):
    assert tokenizer.pad_token == tokenizer.eos_token == "<|im_end|>"
    with pytest.raises(BadInput, match="no special token to use for padding"):  # <|im_start|> stands in the template
        choose_pad(tokenizer, [257], 260)
    assert choose_pad(tokenizer, [257], 260, "<|im_start|>") == "<|im_start|>"
    with pytest.raises(BadInput, match="ends answers"):
        choose_pad(tokenizer, [257], 260, "<|im_end|>")
    with pytest.raises(BadInput, match="no such token"):
        choose_pad(tokenizer, [257], 260, "<pad>")


def test_padding_has_an_embedding(tokenizer):
    more = copy.deepcopy(tokenizer)
    more.add_special_tokens({"additional_special_tokens": ["<|x|>", "<|y|>"]})  # 258 and 259
    assert choose_pad(more, [257], 260) == "<|x|>"
    with pytest.raises(BadInput, match="no special token to use for padding"):
        choose_pad(more, [257], 258)
    with pytest.raises(BadInput, match="has id 259, but the model has 259 embeddings"):
        choose_pad(more, [257], 259, "<|y|>")


def test_a_pair_is_two_documents_whose_last_tokens_count(tokenizer):
    from sft_jax.data.chat.rendering import RenderOptions

    pair = Pair(PromptCompletion("Q", " yes"), PromptCompletion("Q", " no"), margin=0.5)
    encoded = encode("f:1", pair, tokenizer, "assistant", RenderOptions())
    chosen, rejected = split_pair(Example("x", "f", 1, encoded.tokens, encoded.weights))
    assert tokenizer.decode(chosen) == "Q yes<|im_end|>" and tokenizer.decode(rejected) == "Q no<|im_end|>"
    assert encoded.weights[np.flatnonzero(encoded.weights)].tolist() == [1.0, 1.5]
    with pytest.raises(BadRow, match="have the same tokens"):
        encode(
            "f:1", Pair(PromptCompletion("Q", "a"), PromptCompletion("Q", "a")), tokenizer, "assistant", RenderOptions()
        )


def test_the_head_follows_the_layout(reward, mesh_of):
    architecture, parameters = reward
    _, made = with_reward_head(architecture, Layout(mesh_of(fsdp=4)), parameters, "zeros", 0)
    assert {shard.data.shape for shard in made["score"].addressable_shards} == {(1, architecture.embed // 4)}
    assert jax.tree.all(jax.tree.map(lambda x: x.dtype == np.float32, made))
