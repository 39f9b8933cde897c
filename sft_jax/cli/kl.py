"""sft-jax kl MODEL --reference MODEL --data F"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sft_jax.cli.arguments import check_writable, parse, require
from sft_jax.cli.evaluate import check_same_tokenizer, divergences_of, documents_of
from sft_jax.cli.options import ModelOptions, ModelPath, at_least, load_beside, load_model, stages, write_lines
from sft_jax.errors import EXIT_DONE


@dataclass(frozen=True)
class Kl(ModelOptions):
    """How far a policy has moved from its reference: KL(MODEL || reference) per token, exact and estimated."""

    model: ModelPath
    """The policy: a Hugging Face directory, a .gguf file, a run's workdir, or hf://org/name."""
    reference: str = ""
    """The frozen reference, e.g. the workdir of the SFT run that the policy started from; base: the model that MODEL's
    run started from."""
    data: str = ""
    """Rows whose trained tokens are compared. k1 and k3 are unbiased if MODEL itself sampled them."""
    train_on: Literal["assistant", "last_assistant", "completion", "all"] = "assistant"
    """Which tokens count."""
    batch_size: int = 8
    """Rows per batch."""
    json: bool = False
    """Print {"kl", "k1", "k2", "k3", "tokens"}."""
    out: str = ""
    """JSONL file to write: id, and per token kl, logprobs and reference_logprobs."""


def kl(arguments: Sequence[str]) -> int:
    """sft-jax kl MODEL --reference MODEL --data F"""
    options = parse(Kl, arguments, "sft-jax kl")
    for name in ("reference", "data"):
        require(options, name, "sft-jax kl")
    at_least(options, 1, "batch_size")
    check_writable(options.out)
    from sft_jax.distributed.agree import is_first_process
    from sft_jax.handoff.reference import mean

    model = load_model(options.model, options)
    examples = documents_of(options, options.data, model)
    other = load_beside(options.reference, model, options)
    check_same_tokenizer(model, other)
    with stages()(f"comparing {len(examples):,} documents"):
        found = divergences_of(model, other, examples, options.batch_size)
    if options.out:
        names = {"kl": "kl", "log_p": "logprobs", "log_q": "reference_logprobs"}
        lines = (
            {"id": example.id, **{name: getattr(one, key).tolist() for key, name in names.items()}}
            for example, one in zip(examples, found, strict=True)
        )
        write_lines(lines, options.out)
    result = mean(found)
    if is_first_process():
        shown = "  ".join(f"{name} {value:.6g}" for name, value in result.items())
        print(json.dumps(result) if options.json else f"nats per token: {shown}")
    return EXIT_DONE
