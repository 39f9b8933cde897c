"""The reward model beside transformers' and TRL's: same rewards, and the same loss at every step of training."""

import dataclasses
import json
import math
import shutil

import datasets
import numpy as np
import pytest
import torch
import transformers
import trl

from sft_jax.api.run import Run
from sft_jax.cli.main import run_command
from sft_jax.config import Data, Model, Optimizer, RunConfig, Train
from sft_jax.data.chat.tokenizer import load_tokenizer
from sft_jax.handoff.reward import reward_documents, split_pair, with_reward_head
from sft_jax.model.families import config_of
from sft_jax.model.layers import Compute
from sft_jax.parallel.rules import ONE_DEVICE, Layout
from sft_jax.weights.export import export, save_tokenizer
from sft_jax.weights.pretrained import open_pretrained, put_on_devices

STEPS, ROWS = 8, 6
PAD = "<|pad|>"
"""Added to the byte tokenizer, for which the tiny model has a row. Torch trains no embedding of a padding token, so it
must occur in no document."""

pytestmark = [pytest.mark.timeout(900), pytest.mark.usefixtures("one_thread_of_torch", "on_one_device")]


@pytest.fixture
def padded_model(tiny_model, tmp_path):
    """The tiny model with a padding token of its own in its tokenizer."""
    out = tmp_path / "padded"
    shutil.copytree(tiny_model, out)
    tokenizer = load_tokenizer(str(tiny_model))
    tokenizer.add_special_tokens({"pad_token": PAD})
    save_tokenizer(tokenizer, out)
    return out


def _theirs(directory, documents: list[np.ndarray]) -> np.ndarray:
    """Rewards of transformers' model, of one padded batch."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32).eval()
    assert model.config.num_labels == 1
    ids = torch.full((len(documents), max(map(len, documents))), model.config.pad_token_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, document in enumerate(documents):
        ids[row, : len(document)] = torch.from_numpy(document.astype(np.int64))
        mask[row, : len(document)] = 1
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask).logits[:, 0].numpy()


@pytest.mark.parametrize("tied", [True, False])
def test_rewards_of_a_padded_batch_are_those_of_transformers(tied, tiny, tiny_parameters, padded_model, tmp_path):
    tokenizer = load_tokenizer(str(padded_model))
    architecture = dataclasses.replace(tiny, tied=tied)
    parameters = dict(tiny_parameters) if tied else {**tiny_parameters, "head": tiny_parameters["embedding"] * 2}
    architecture, parameters = with_reward_head(architecture, ONE_DEVICE, parameters, "normal", 0)
    config = {**config_of(architecture, "llama"), "pad_token_id": tokenizer.pad_token_id}
    export(parameters, architecture, config, tokenizer, tmp_path / "reward")
    random = np.random.default_rng(0)
    documents = [np.append(random.integers(0, 250, n), 257).astype(np.int32) for n in (5, 30, 1)]
    ours = list(reward_documents(architecture, Compute(), parameters, documents))
    theirs = _theirs(tmp_path / "reward", documents)
    print(f"largest difference {np.abs(ours - theirs).max():.1e} of {np.abs(theirs).max():.2f}")
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert np.ptp(theirs) > 0.1


def test_the_real_model_gets_a_head_that_transformers_reads_alike(model_path, tmp_path, mesh_of, capsys):
    out = tmp_path / "reward"
    assert run_command(["reward-init", str(model_path), "--out", str(out), "--init", "normal"]) == 0
    assert "padding is <|endoftext|> instead of <|im_end|>" in capsys.readouterr().out
    config, mesh = RunConfig(), mesh_of()
    pretrained = open_pretrained(str(out))
    architecture, parameters = put_on_devices(pretrained, config, mesh)
    texts = ("Paris is the capital of France.<|im_end|>", "No.<|im_end|>", "It rains " * 20 + "<|im_end|>")
    documents = [np.array(pretrained.tokenizer(text)["input_ids"], np.int32) for text in texts]
    ours = list(reward_documents(architecture, Compute(layout=Layout(mesh, config.sharding)), parameters, documents))
    theirs = _theirs(out, documents)
    print(f"rewards {theirs}, largest difference {np.abs(ours - theirs).max():.1e}")
    np.testing.assert_allclose(ours, theirs, atol=2e-3)


def _pairs(conversational: bool, margins: bool) -> list[dict]:
    random = np.random.default_rng(3)

    def words(most: int) -> str:
        return " ".join(random.choice(["tea", "at", "five", "no", "lights", "später"], random.integers(1, most)))

    rows = []
    for number in range(STEPS * ROWS):
        prompt, chosen, rejected = f"{words(8)}?", f"yes {words(6)}", f"{words(12)} no {number}"
        if conversational:
            prompt = [{"role": "user", "content": prompt}]
            chosen, rejected = ([{"role": "assistant", "content": text}] for text in (chosen, rejected))
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
        if margins:
            rows[-1]["margin"] = float(number % 3) / 4
    return rows


def _with_trl(directory, rows, tokenizer, out, quiet_trl) -> tuple[list[float], list[list[int]]]:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32)
    trainer = trl.RewardTrainer(
        model=model,
        args=trl.RewardConfig(
            output_dir=str(out),
            max_steps=STEPS,
            per_device_train_batch_size=ROWS,
            learning_rate=3e-3,
            lr_scheduler_type="linear",
            warmup_steps=0,
            weight_decay=0.0,
            max_grad_norm=1.0,
            optim="adamw_torch",
            max_length=None,
            train_sampling_strategy="sequential",
            disable_dropout=True,
            **quiet_trl,
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    prepared = trainer.train_dataset
    return losses, [ids for row in prepared for ids in (row["chosen_ids"], row["rejected_ids"])]


def _with_ours(directory, rows, out) -> tuple[list[float], list[list[int]]]:
    data = out / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = RunConfig(
        workdir=str(out / "run"),
        model=Model(path=str(directory)),
        data=Data(train=(str(data),), over_length="error", sequence_length=512, packing="none", shuffle=False),
        optimizer=Optimizer(learning_rate=3e-3, schedule="linear"),
        train=Train(steps=STEPS, batch_size=ROWS, objective="reward"),
    )
    with Run(config) as run:
        losses = [row["loss"] for row in run.step(STEPS)]
        return losses, [ids.tolist() for example in run.inputs.source.examples for ids in split_pair(example)]


@pytest.mark.parametrize("margins", [False, True])
@pytest.mark.parametrize("conversational", [False, True])
def test_every_step_of_bradley_terry_training_equals_trl(conversational, margins, padded_model, tmp_path, quiet_trl):
    start = tmp_path / "start"
    assert run_command(["reward-init", str(padded_model), "--out", str(start)]) == 0
    rows = _pairs(conversational, margins)
    theirs, their_ids = _with_trl(start, rows, load_tokenizer(str(start)), tmp_path / "trl", quiet_trl)
    ours, our_ids = _with_ours(start, rows, tmp_path)
    assert our_ids == their_ids
    difference = np.abs(np.subtract(ours, theirs)).max()
    print(f"loss {theirs[0]:.4f} -> {theirs[-1]:.4f}, largest difference {difference:.1e}")
    if not margins:
        assert theirs[0] == pytest.approx(math.log(2), abs=1e-4) and ours[0] == pytest.approx(math.log(2), abs=1e-6)
    assert theirs[-1] < theirs[0] - 0.1
    assert difference <= 1e-3
