"""What a run starts from: random weights, and a part of the demonstrations."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from sft_jax.config import Data, Model, RunConfig, Sharding, Train, validate
from sft_jax.data.chat.tokenizer import model_stops
from sft_jax.errors import BadInput
from sft_jax.storage.location import Location
from sft_jax.train.inputs import Inputs, read_inputs
from sft_jax.weights.pretrained import open_base, open_pretrained, put_on_devices


@pytest.fixture
def config(tmp_path, tiny_model, demonstrations) -> RunConfig:
    data = Data(train=(str(demonstrations),), sequence_length=128)
    return RunConfig(str(tmp_path / "run"), Model(str(tiny_model), weights="random"), data, train=Train(batch_size=2))


def test_random_weights_need_no_weights_and_are_the_same_on_every_mesh(config, tmp_path, tiny_model, mesh_of):
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in tiny_model.iterdir():
        if path.suffix != ".safetensors":
            (bare / path.name).write_bytes(path.read_bytes())
    config = dataclasses.replace(config, model=Model(str(bare), weights="random"))
    base = open_base(config)
    architecture, alone = put_on_devices(base, config, mesh_of())
    assert alone["embedding"].std() == pytest.approx(0.02, rel=0.05)
    vocabulary_alone = Sharding(heads="none", kv_heads="none", mlp="none")
    padded, divided = put_on_devices(
        base, dataclasses.replace(config, sharding=vocabulary_alone), mesh_of(fsdp=2, tensor=3)
    )
    assert padded.rows == 261
    for name, value in alone.items():
        rows = len(value) if name == "embedding" else None
        np.testing.assert_array_equal(np.asarray(divided[name])[:rows], value)
    assert not np.asarray(divided["embedding"])[architecture.vocab :].any()
    other = dataclasses.replace(config, train=dataclasses.replace(config.train, seed=1))
    assert not np.array_equal(put_on_devices(open_base(other), other, mesh_of())[1]["embedding"], alone["embedding"])


def _inputs(config: RunConfig) -> Inputs:
    return read_inputs(config, Location(config.workdir))


def _documents(config: RunConfig) -> set[str]:
    source = _inputs(config).source
    return {example.id for row in range(source.rows_per_epoch) for example in source.documents_of(row)}


def test_a_limit_draws_nested_parts_by_the_seed(config):
    def limited(limit: int, seed: int = 0) -> set[str]:
        data = dataclasses.replace(config.data, limit=limit)
        workdir = f"{config.workdir}-{limit}-{seed}"
        return _documents(dataclasses.replace(config, workdir=workdir, data=data, train=Train(batch_size=2, seed=seed)))

    few, more, everything = limited(6), limited(20), limited(0)
    assert (len(few), len(more), len(everything)) == (6, 20, 48)
    assert few < more < everything and limited(100) == everything
    assert limited(6, seed=1) != few


def test_a_part_may_fill_fewer_rows_than_a_batch_and_the_log_says_how_many_train(config):
    train, data = Train(batch_size=8, steps=3), dataclasses.replace(config.data, limit=2)
    few = dataclasses.replace(config, data=data, train=train)
    inputs = _inputs(few)
    assert inputs.source.rows_per_epoch < 8
    assert "data.limit: 2 of 48 demonstrations train" in inputs.notes
    whole = dataclasses.replace(config, train=Train(batch_size=999))
    with pytest.raises(BadInput, match="fewer than the 999"):
        _inputs(whole)


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("data", {"limit": -1}, "data.limit is -1"),
        ("data", {"limit": 3, "weights": (1.0,)}, "does not go with data.weights"),
        ("data", {"limit": 3, "streaming": True}, "does not go with data.streaming"),
        ("data", {"format": "pair"}, "is for loss.kind reward"),
        ("train", {"objective": "reward"}, "a cut answer has lost the token"),
        ("train", {"eval_samples": 3}, "train.eval_every is 0: say how often"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(config, section, change, message):
    if "objective" in change:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, over_length="truncate"))
    changed = dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **change)})
    with pytest.raises(BadInput, match=message):
        validate(changed)


def test_an_objective_without_its_head_is_refused_with_the_command_that_makes_one(config, tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"prompt": "Q", "chosen": "a", "rejected": "b"}) + "\n")
    data = dataclasses.replace(config.data, train=(str(pairs),))
    with pytest.raises(BadInput, match="sft-jax reward-init"):
        _inputs(dataclasses.replace(config, data=data, train=Train(objective="reward")))


def test_the_tokenizer_of_a_model_knows_the_stop_tokens_that_its_generation_config_names(config, tmp_path, tiny_model):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    for given, known in (([5, 257, 6], (5, 257, 6)), (7, (7,)), (None, ())):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": given}))
        assert model_stops(open_pretrained(str(folder)).tokenizer) == known
