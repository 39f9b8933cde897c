"""KL and per-token log-probabilities of policy and reference, against transformers; TRL takes both as they are."""

import json

import datasets
import numpy as np
import pytest
import torch
import transformers
import trl

from sft_jax.cli.main import run_command

pytestmark = [pytest.mark.timeout(900), pytest.mark.usefixtures("one_thread_of_torch")]

TEXTS = ("The capital of France is Paris.", "I cannot do that.", "Rain fell on the roof, and the cat slept on.")


@pytest.fixture(scope="module")
def exported(model_path, tmp_path_factory):
    """(reference, policy): the real model, and the same with every tenth of the MLP's weights changed."""
    reference = tmp_path_factory.mktemp("policies") / "reference"
    assert run_command(["export", str(model_path), "--out", str(reference)]) == 0
    policy = reference.with_name("policy")
    model = transformers.AutoModelForCausalLM.from_pretrained(reference, dtype=torch.float32)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "down_proj" in name:
                value.mul_(0.9)
    model.save_pretrained(policy)
    for path in reference.glob("*token*"):
        (policy / path.name).write_bytes(path.read_bytes())
    (policy / "chat_template.jinja").write_bytes((reference / "chat_template.jinja").read_bytes())
    return reference, policy


def test_kl_is_that_of_transformers_over_the_trained_tokens(exported, tmp_path, capsys):
    reference, policy = exported
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    arguments = ["kl", policy, "--reference", reference, "--data", data, "--json"]
    assert run_command([str(argument) for argument in arguments]) == 0
    ours = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    tokenizer = transformers.AutoTokenizer.from_pretrained(reference)
    load = transformers.AutoModelForCausalLM.from_pretrained
    models = [load(path, dtype=torch.float32).eval() for path in (policy, reference)]
    sums, tokens = np.zeros(4), 0
    for text in TEXTS:
        ids = torch.tensor([tokenizer(text + tokenizer.eos_token)["input_ids"]])
        with torch.no_grad():
            p, q = (torch.log_softmax(model(ids).logits[0, :-1].double(), dim=-1) for model in models)
        picked = [x.gather(1, ids[0, 1:, None])[:, 0] for x in (p, q)]
        ratio = picked[1] - picked[0]
        exact = (p.exp() * (p - q)).sum(dim=1)
        sums += [x.sum().item() for x in (exact, -ratio, ratio**2 / 2, ratio.exp() - 1 - ratio)]
        tokens += ids.shape[1] - 1
    theirs = sums / tokens
    found = np.array([ours[name] for name in ("kl", "k1", "k2", "k3")])
    print(f"kl, k1, k2, k3: {theirs}; largest relative difference {np.abs(found / theirs - 1).max():.1e}")
    assert ours["tokens"] == tokens and theirs[0] > 0.01
    np.testing.assert_allclose(found, theirs, rtol=2e-3)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # TRL's own
def test_trl_takes_the_policy_and_its_reference_from_an_export(tiny_model, tmp_path, quiet_trl):
    """DPO's first loss is ln 2 where policy and reference are the same weights."""
    out = tmp_path / "policy"
    assert run_command(["export", str(tiny_model), "--out", str(out)]) == 0
    handoff = json.loads((out / "handoff.json").read_text())
    assert handoff["stop_tokens"] == ["<|im_end|>"] and len(handoff["weights_fingerprint"]) == 32
    load = transformers.AutoModelForCausalLM.from_pretrained
    rows = [{"prompt": f"{n}? ", "chosen": "yes", "rejected": "no no"} for n in range(4)]
    trainer = trl.DPOTrainer(
        model=load(out, dtype=torch.float32),
        ref_model=load(out, dtype=torch.float32),
        args=trl.DPOConfig(
            output_dir=str(tmp_path / "dpo"),
            max_steps=1,
            per_device_train_batch_size=4,
            **quiet_trl,
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=transformers.AutoTokenizer.from_pretrained(out),
    )
    trainer.train()
    [loss] = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert loss == pytest.approx(np.log(2), abs=1e-4)
