"""The commands that use a model and change none: sample, score, export. Heavy imports wait until they are needed."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from sft_jax.arguments import check_writable, parse, require
from sft_jax.errors import EXIT_DONE, BadInput
from sft_jax.using import Layout, ModelPath, at_least, loaded, write_lines


@dataclass(frozen=True)
class Sample(Layout):
    """Complete prompts: JSONL records with `messages` (rendered by the chat template) or `prompt` (raw text)."""

    model: ModelPath
    """A Hugging Face directory, a .gguf file, a workdir, or hf://org/name."""
    prompts: str = ""
    """JSONL file of prompts."""
    out: str = ""
    """JSONL file to write: the record's line as `id`, and its completions; empty prints to the terminal."""
    n: int = 1
    """Completions a prompt."""
    temperature: float = 0.0
    """0 takes the most probable token."""
    top_p: float = 1.0
    """Draw from the smallest set of tokens whose probability reaches top_p."""
    seed: int = 0
    """Seed of the draws."""
    max_new_tokens: int = 256
    """Longest completion, in tokens."""
    batch_size: int = 16
    """Completions generated at once."""


def sample(arguments: Sequence[str]) -> int:
    """sft-jax sample MODEL --prompts F --n 4 --temperature T --seed S --out F"""
    options = parse(Sample, arguments, "sft-jax sample")
    require(options, "prompts", "sft-jax sample")
    at_least(options, 1, "n", "max_new_tokens", "batch_size")
    at_least(options, 0, "temperature", "seed")
    if not 0 < options.top_p <= 1:
        raise BadInput(f"--top-p is {options.top_p}, expected more than 0 and at most 1")
    check_writable(options.out)
    from sft_jax.data.readers import read_records
    from sft_jax.data.tokenizer import vocabulary_size
    from sft_jax.model.decoder import Compute
    from sft_jax.sample.generate import Generator, Sampling
    from sft_jax.sample.prompts import check_prompts, prompt_tokens

    records = list(read_records((options.prompts,)))
    with loaded(options.model, options) as (pretrained, architecture, parameters):
        tokenizer = pretrained.tokenizer
        prompts = [prompt_tokens(record, tokenizer, pretrained.template_date) for record in records]
        check_prompts(records, prompts, options.max_new_tokens, architecture, options.model)
        compute, size = Compute(dtype=options.dtype), vocabulary_size(tokenizer)
        generator = Generator(architecture, compute, pretrained.stop_ids, size, options.batch_size)
        sampling = Sampling(options.max_new_tokens, options.temperature, options.top_p, options.seed)
        answers = generator(parameters, prompts, sampling, options.n)
    rows = (
        {
            "id": record.value.get("id", record.where),
            **{key: record.value[key] for key in ("messages", "prompt") if key in record.value},
            "completions": [
                {"text": tokenizer.decode(one.tokens, skip_special_tokens=True), "stopped": one.stopped} for one in each
            ],
        }
        for record, each in zip(records, answers, strict=True)
    )
    write_lines(rows, options.out)
    return EXIT_DONE


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
    from sft_jax.data.prepare import check_vocabulary, prepare
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


@dataclass(frozen=True)
class Export(Layout):
    """Write a model as a Hugging Face directory that transformers, vLLM and others load."""

    model: ModelPath
    """A Hugging Face directory, a .gguf file, a workdir, or hf://org/name."""
    out: str = ""
    """Directory to create."""
    dtype: Literal["float32", "bfloat16"] = field(default="float32", kw_only=True)
    """Element type of the written tensors."""
    max_shard_bytes: int = 5 * 2**30
    """Largest safetensors file."""


def export(arguments: Sequence[str]) -> int:
    """sft-jax export MODEL --out DIR"""
    options = parse(Export, arguments, "sft-jax export")
    require(options, "out", "sft-jax export")
    at_least(options, 1, "max_shard_bytes")
    check_writable(options.out, directory=True)
    from sft_jax.weights.export import export as write_directory

    with loaded(options.model, options) as (pretrained, architecture, parameters):
        write_directory(
            parameters,
            architecture,
            pretrained.hf_config,
            pretrained.tokenizer,
            options.out,
            dtype=options.dtype,
            max_shard_bytes=options.max_shard_bytes,
            generation_config=pretrained.generation_config,
        )
    print(options.out)
    return EXIT_DONE
