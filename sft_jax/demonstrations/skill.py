"""Demonstrators of known skill and entropy on a verifiable task: the largest of some digits.

The answer to `60291=` is `9`. A demonstrator is right with probability p, its skill. Its errors are either

- scattered: uniform over the nine other digits, independent of the question; or
- systematic: only on questions that start with an odd digit, where it usually answers the largest digit plus one (9
  becomes 0). On those questions the wrong answer is the most probable one.

So the loss of a perfect imitator, its accuracy, and the gain from ranking its samples are known exactly.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from sft_jax.config import RunConfig

DIGITS = 5
"""Digits per question, for 100,000 distinct questions."""
TRAIN, HELD_OUT, MODEL = "train.jsonl", "held_out.jsonl", "model"


@dataclass(frozen=True)
class Demonstrator:
    """A demonstrator with given skill and kind of errors."""

    errors: Literal["scattered", "systematic"]
    skill: float
    """Probability of the right answer; at least 0.5 if errors are systematic."""

    @property
    def slip(self) -> float:
        """Probability of the wrong answer on a question that starts with an odd digit."""
        return 2 * (1 - self.skill) if self.errors == "systematic" else 1 - self.skill

    @property
    def entropy(self) -> float:
        """Nats per answer: the lowest loss an imitator can reach."""
        if self.errors == "scattered":
            return _binary_entropy(self.skill) + (1 - self.skill) * math.log(9)
        return _binary_entropy(self.slip) / 2

    @property
    def greedy(self) -> float:
        """Accuracy of the most probable answer."""
        if self.errors == "scattered":
            return float(self.skill > (1 - self.skill) / 9)
        return 1.0 if self.slip < 0.5 else 0.5

    def best_of(self, n: int) -> float:
        """Probability that one of n answers is right."""
        if self.errors == "scattered":
            return 1 - (1 - self.skill) ** n
        return 1 - self.slip**n / 2

    def log_probability(self, question: str, answer: str) -> float:
        """Log-probability of this answer to this question, in nats."""
        right = max(map(int, question))
        if self.errors == "scattered":
            p = self.skill if int(answer) == right else (1 - self.skill) / 9
        else:
            slip = self.slip if int(question[0]) % 2 == 1 else 0.0
            p = {right: 1 - slip, (right + 1) % 10: slip}.get(int(answer), 0.0)
        return math.log(p) if p else -math.inf

    def answer(self, question: str, random: np.random.Generator) -> str:
        right = max(map(int, question))
        if self.errors == "systematic":
            wrong = int(question[0]) % 2 == 1 and random.random() < self.slip
            return str((right + 1) % 10 if wrong else right)
        if random.random() < self.skill:
            return str(right)
        return str((right + int(random.integers(1, 10))) % 10)


def _binary_entropy(p: float) -> float:
    return -sum(x * math.log(x) for x in (p, 1 - p) if x > 0)


def rows(demonstrator: Demonstrator, count: int, seed: int) -> list[dict[str, str]]:
    """Demonstrations: `prompt`, `completion` (the demonstrator's answer) and `answer` (the right one)."""
    random = np.random.default_rng(seed)
    made = []
    for number in random.integers(0, 10**DIGITS, count):
        question = f"{number:0{DIGITS}d}"
        made.append(
            {
                "prompt": f"{question}=",
                "completion": demonstrator.answer(question, random),
                "answer": max(question),
            }
        )
    return made


def run_config(
    name: str, demonstrator: Demonstrator, demonstrations: int, batch_size: int = 32, **decoder: int
) -> "RunConfig":
    """A run from scratch on the demonstrator's answers, for `configs/ceiling_*.py`; writes the task it needs.

    Args:
      decoder: embed, layers and heads, as for `write_task`.
    """
    from sft_jax.config import Data, Model, Optimizer, RunConfig, Train

    task = write_task(Path("runs/ceiling/tasks") / name, demonstrator, demonstrations, **decoder)
    return RunConfig(
        workdir=f"runs/ceiling/{name}",
        model=Model(path=str(task / MODEL), weights="random"),
        data=Data(train=(str(task / TRAIN),), eval=(str(task / HELD_OUT),), sequence_length=128),
        optimizer=Optimizer(learning_rate=3e-3, schedule="cosine", warmup_steps=20, b2=0.98),
        train=Train(steps=300, batch_size=batch_size, eval_every=30, save_every=0, keep_last=1, tensorboard=False),
    )


def write_task(
    directory: Path,
    demonstrator: Demonstrator,
    demonstrations: int,
    held_out: int = 4000,
    embed: int = 64,
    layers: int = 2,
    heads: int = 4,
    seed: int = 0,
) -> Path:
    """Write train.jsonl, held_out.jsonl and model/ (a decoder's config.json and a tokenizer, no weights).

    The content is a function of the arguments; an existing directory is left unchanged. The two files may share
    questions: each answer is drawn independently, so the held-out loss is at least the demonstrator's entropy.
    """
    from sft_jax.storage.atomic import write_atomic, write_json

    model = directory / MODEL
    if not (model / "config.json").is_file():
        model.mkdir(parents=True, exist_ok=True)
        for name, count, stream in ((TRAIN, demonstrations, 2 * seed), (HELD_OUT, held_out, 2 * seed + 1)):
            text = "".join(json.dumps(row) + "\n" for row in rows(demonstrator, count, stream)).encode()
            write_atomic(directory / name, lambda file, text=text: file.write(text))
        tokenizer = _tokenizer()
        tokenizer.save_pretrained(str(model))
        write_json(model / "config.json", _decoder(len(tokenizer), embed, layers, heads, tokenizer.eos_token_id))
    return directory


def _tokenizer() -> Any:
    """A tokenizer with one token per character."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<end>", "=", *"0123456789"]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", pad_token="<pad>")


def _decoder(vocab: int, embed: int, layers: int, heads: int, end: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": embed,
        "intermediate_size": 4 * embed,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "eos_token_id": end,
        "pad_token_id": 0,
    }
