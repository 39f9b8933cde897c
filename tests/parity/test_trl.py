"""Loss and gradient norm of every step against TRL's SFTTrainer: same weights, same rows, same order, same batches.

TRL trains what a template writes inside its `{% generation %}` marks, we train a turn through its stop token. So TRL
gets a twin of the template: the same text, with the marks ending right after `<|im_end|>`. Ours stays unedited.
"""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import transformers
import trl

from sft_jax.api.run import Run
from sft_jax.config import Data, Model, Optimizer, RunConfig, Train
from sft_jax.data.chat.tokenizer import load_tokenizer
from sft_jax.weights.export import export
from sft_jax.weights.pretrained import open_pretrained, put_on_devices

STEPS, ROWS = 10, 8
LOSS, GRAD_NORM = 1e-3, 1e-2
"""Largest absolute difference of the loss, largest relative difference of the gradient norm, at every step."""

TWIN = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

pytestmark = [pytest.mark.timeout(900), pytest.mark.usefixtures("one_thread_of_torch", "on_one_device")]


@dataclass(frozen=True)
class Case:
    """What both sides train."""

    model: Path
    rows: list[dict]
    steps: int
    batch_size: int
    accumulation: int
    learning_rate: float
    warmup_steps: int


def words(random: np.random.Generator, most: int) -> str:
    """1 to `most` words; few long, many short, so that micro-batches differ much in their trained tokens."""
    count = 1 + int(most * random.random() ** 3)
    return " ".join(random.choice(["tea", "at", "five", "no", "lights", "off", "später", "🙂"], count))


def prompt_completion_rows(count: int) -> list[dict]:
    random = np.random.default_rng(1)
    return [{"prompt": f"{words(random, 12)}? ", "completion": words(random, 40)} for _ in range(count)]


def message_rows(count: int) -> list[dict]:
    """One to three exchanges after a system text; every assistant turn trains."""
    random = np.random.default_rng(2)
    rows = []
    for _ in range(count):
        messages = [{"role": "system", "content": words(random, 6)}]
        for _ in range(random.integers(1, 4)):
            messages.append({"role": "user", "content": words(random, 10)})
            messages.append({"role": "assistant", "content": words(random, 14)})
        rows.append({"messages": messages})
    return rows


def exported(model_path: Path, mesh):
    """The real model in transformers, by way of our export: transformers trains nothing it read from GGUF itself."""
    pretrained = open_pretrained(str(model_path))
    architecture, parameters = put_on_devices(pretrained, RunConfig(), mesh)
    with tempfile.TemporaryDirectory() as directory:  # half a gigabyte that pytest would keep for three sessions
        out = Path(directory) / "model"
        export(parameters, architecture, pretrained.hf_config, pretrained.tokenizer, out)
        return transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)


def with_trl(case: Case, model, tokenizer, out: Path, quiet_trl: dict):
    """(loss, gradient norm) float64 [steps, 2] of SFTTrainer, and the rows it trained on as (ids, labels)."""
    conversational = "messages" in case.rows[0]
    if conversational:
        for row in case.rows:
            texts = [
                tokenizer.apply_chat_template(row["messages"], chat_template=template, tokenize=False)
                for template in (TWIN, None)
            ]
            assert texts[0] == texts[1]
        tokenizer.chat_template = TWIN
    trainer = trl.SFTTrainer(
        model=model,
        args=trl.SFTConfig(
            output_dir=str(out),
            max_steps=case.steps,
            per_device_train_batch_size=case.batch_size // case.accumulation,
            gradient_accumulation_steps=case.accumulation,
            learning_rate=case.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=case.warmup_steps,
            weight_decay=0.0,
            max_grad_norm=1.0,
            optim="adamw_torch",
            assistant_only_loss=conversational,
            max_length=None,
            packing=False,
            train_sampling_strategy="sequential",
            **quiet_trl,
        ),
        train_dataset=datasets.Dataset.from_list(case.rows),
        processing_class=tokenizer,
    )
    trainer.train()
    history = [(row["loss"], row["grad_norm"]) for row in trainer.state.log_history if "loss" in row]
    prepared = trainer.train_dataset
    assert isinstance(prepared, datasets.Dataset)
    return np.array(history), list(zip(prepared["input_ids"], prepared["labels"], strict=True))


def with_ours(case: Case, out: Path):
    """The same of our own run, as `sft-jax train` makes it."""
    data = out / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in case.rows), encoding="utf-8")
    config = RunConfig(
        workdir=str(out / "run"),
        model=Model(path=str(case.model)),
        data=Data(train=(str(data),), over_length="error", sequence_length=512, packing="none", shuffle=False),
        optimizer=Optimizer(learning_rate=case.learning_rate, schedule="linear", warmup_steps=case.warmup_steps),
        train=Train(steps=case.steps, batch_size=case.batch_size, accumulation=case.accumulation),
    )
    with Run(config) as run:
        history = [(row["loss"], row["grad_norm"]) for row in run.step(case.steps)]
        rows = [
            (example.tokens.tolist(), np.where(example.weights > 0, example.tokens, -100).tolist())
            for example in run.inputs.source.examples
        ]
    return np.array(history), rows


def compare(case: Case, theirs, ours) -> None:
    """Same tokens, same labels, and the two numbers of every step within the tolerances."""
    (their_history, their_rows), (our_history, our_rows) = theirs, ours
    assert our_rows == their_rows
    assert len(our_history) == len(their_history) == case.steps
    loss = np.abs(our_history[:, 0] - their_history[:, 0])
    norm = np.abs(our_history[:, 1] / their_history[:, 1] - 1)
    print(
        f"loss {their_history[0, 0]:.4f} -> {their_history[-1, 0]:.4f}, gradient norm {their_history[0, 1]:.2f} -> "
        f"{their_history[-1, 1]:.2f}; largest difference {loss.max():.1e} and {norm.max():.1e}"
    )
    assert loss.max() <= LOSS, loss
    assert norm.max() <= GRAD_NORM, norm
    # A run that learns nothing would agree as well.
    assert their_history[-1, 0] < their_history[0, 0] - 100 * LOSS


@pytest.mark.parametrize("accumulation", [1, 4], ids=["8_rows_at_once", "4_micro_batches_of_2"])
@pytest.mark.parametrize("rows", [prompt_completion_rows, message_rows])
def test_ten_steps_of_a_tiny_model_equal_trl(rows, accumulation, tiny_model, tmp_path, quiet_trl):
    case = Case(tiny_model, rows(STEPS * ROWS), STEPS, ROWS, accumulation, learning_rate=3e-3, warmup_steps=2)
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    theirs = with_trl(case, model, load_tokenizer(tiny_model), tmp_path / "trl", quiet_trl)
    compare(case, theirs, with_ours(case, tmp_path))


def test_ten_steps_of_the_real_model_on_our_demonstrations_equal_trl(
    model_path, pytestconfig, mesh_of, tmp_path, quiet_trl
):
    """The real SmolLM2 on rows that the quickstart trains on; two minutes on two cores."""
    lines = (pytestconfig.rootpath / "sft_jax" / "demonstrations" / "train.jsonl").read_text("utf-8").splitlines()
    demonstrations = [{"messages": json.loads(line)["messages"]} for line in lines[:20]]
    case = Case(model_path, demonstrations, STEPS, 2, accumulation=1, learning_rate=1e-4, warmup_steps=0)
    theirs = with_trl(case, exported(model_path, mesh_of()), load_tokenizer(model_path), tmp_path / "trl", quiet_trl)
    compare(case, theirs, with_ours(case, tmp_path))
