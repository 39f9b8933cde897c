"""sft-jax score MODEL --data F --out F"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sft_jax.cli.arguments import check_writable, parse, require
from sft_jax.cli.options import ModelOptions, ModelPath, at_least, load_model, stages, write_lines
from sft_jax.errors import EXIT_DONE


@dataclass(frozen=True)
class Score(ModelOptions):
    """log p of every token of every example under a model, and which tokens train."""

    model: ModelPath
    """A Hugging Face directory, a .gguf file, a run's workdir, or hf://org/name."""
    data: str = ""
    """Demonstrations: a file or glob, in any form that trains."""
    out: str = ""
    """JSONL file to write: id, tokens, weights, logprobs (null for the first token). Empty: print."""
    train_on: Literal["assistant", "last_assistant", "completion", "all"] = "assistant"
    """Which tokens have a weight."""
    batch_size: int = 8
    """Examples per batch."""


def score(arguments: Sequence[str]) -> int:
    """sft-jax score MODEL --data F --out F"""
    options = parse(Score, arguments, "sft-jax score")
    require(options, "data", "sft-jax score")
    at_least(options, 1, "batch_size")
    check_writable(options.out)
    from sft_jax.api.model import scored_row
    from sft_jax.data.pack.prepare import prepare
    from sft_jax.sample.score import score_examples

    model = load_model(options.model, options)
    data = model.data((options.data,), options.train_on)
    examples = prepare(data, model.tokenizer, keep_untrained=True).examples
    model.check(examples)
    scores = score_examples(model.architecture, model.compute, model.parameters, examples, options.batch_size)
    with stages()(f"scoring {len(examples):,} documents"):
        write_lines((scored_row(example, log_p) for example, log_p in zip(examples, scores, strict=True)), options.out)
    return EXIT_DONE
