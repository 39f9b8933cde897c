"""sft-jax score MODEL --data F --out F"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sft_jax.cli.arguments import check_writable, parse, require
from sft_jax.errors import EXIT_DONE
from sft_jax.using import Layout, ModelPath, at_least, loaded, write_lines

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Score(Layout):
    """log p of every token of examples, and which of them train, under a model."""

    model: ModelPath
    """A Hugging Face directory, a .gguf file, a workdir, or hf://org/name."""
    data: str = ""
    """JSONL file or glob of demonstrations."""
    out: str = ""
    """JSONL file to write: id, tokens, weights, logprobs (null for the first token); empty prints."""
    train_on: Literal["assistant", "last_assistant", "completion", "all"] = "assistant"
    """Which tokens have a weight."""
    batch_size: int = 8
    """Examples scored at once."""


def score(arguments: Sequence[str]) -> int:
    """sft-jax score MODEL --data F --out F"""
    options = parse(Score, arguments, "sft-jax score")
    require(options, "data", "sft-jax score")
    at_least(options, 1, "batch_size")
    check_writable(options.out)
    from sft_jax.config import Data
    from sft_jax.data.pack.prepare import check_vocabulary, prepare
    from sft_jax.model.decoder import Compute
    from sft_jax.sample.score import check_lengths, score_examples

    with loaded(options.model, options) as (pretrained, architecture, parameters):
        # Length is the model's limit alone, checked below: nothing is cut or left out of a score.
        data = Data(
            (options.data,),
            train_on=options.train_on,
            sequence_length=sys.maxsize,
            template_date=pretrained.template_date,
        )
        examples = prepare(data, pretrained.tokenizer, keep_untrained=True).examples
        check_lengths(examples, architecture, options.model)
        check_vocabulary(examples, architecture.vocab, options.model)
        compute = Compute(dtype=options.dtype)
        scores = score_examples(architecture, compute, parameters, examples, options.batch_size)
        rows = (
            {
                "id": example.id,
                "tokens": example.tokens.tolist(),
                "weights": example.weights.tolist(),
                "logprobs": [None, *log_p.tolist()],
            }
            for example, log_p in zip(examples, scores, strict=True)
        )
        write_lines(rows, options.out)
    return EXIT_DONE
