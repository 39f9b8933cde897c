"""The commands that use a model and change none: sample, score, export. Heavy imports wait until they are needed."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from sft_jax.arguments import check_writable, parse, require
from sft_jax.errors import EXIT_DONE, BadInput
from sft_jax.using import Layout, ModelPath, at_least, is_first_process, loaded, send, write_lines

if TYPE_CHECKING:
    from sft_jax.weights.pretrained import Pretrained


@dataclass(frozen=True)
class Sample(Layout):
    """Complete prompts, several times each, for people or a model to rank."""

    model: ModelPath
    """A Hugging Face directory, a .gguf file, a workdir, or hf://org/name."""
    prompts: str = ""
    """Rows in any form that training reads; what stands before the first assistant turn is the prompt."""
    out: str = ""
    """JSONL file to write: id, messages or prompt, and completions with tokens and log-probabilities; empty prints."""
    n: int = 1
    """Completions a prompt."""
    temperature: float = 0.0
    """0 takes the most probable token."""
    top_p: float = 1.0
    """Draw from the smallest set of tokens whose probability reaches top_p."""
    top_k: int = 0
    """Draw from the k most probable tokens; 0 draws from all."""
    min_p: float = 0.0
    """Draw from tokens at least min_p times as probable as the most probable one."""
    stop: tuple[str, ...] = ()
    """Strings before which a completion ends."""
    seed: int = 0
    """Seed of the draws: a completion depends on it, its prompt's place and its number, not on batches or mesh."""
    max_new_tokens: int = 256
    """Longest completion, in tokens."""
    batch_size: int = 16
    """Completions generated at once."""


def sample(arguments: Sequence[str]) -> int:
    """sft-jax sample MODEL --prompts F --n 4 --temperature T --seed S --out F"""
    options = parse(Sample, arguments, "sft-jax sample")
    require(options, "prompts", "sft-jax sample")
    at_least(options, 1, "n", "max_new_tokens", "batch_size")
    at_least(options, 0, "temperature", "seed", "top_k", "min_p")
    if not 0 < options.top_p <= 1:
        raise BadInput(f"--top-p is {options.top_p}, expected more than 0 and at most 1")
    if not options.min_p <= 1:
        raise BadInput(f"--min-p is {options.min_p}, expected at most 1")
    if "" in options.stop:
        raise BadInput("--stop has an empty string, which would end every completion at once")
    check_writable(options.out)
    from sft_jax.config import Data
    from sft_jax.evaluate.complete import prompts_of
    from sft_jax.evaluate.measure import read_tasks
    from sft_jax.evaluate.sampled import sampled_row
    from sft_jax.model.decoder import Compute
    from sft_jax.sample.draw import Sampling
    from sft_jax.sample.generate import generator_of

    tasks = read_tasks(Data((options.prompts,)), (options.prompts,))
    if not tasks:
        raise BadInput(f"{options.prompts}: no row has a prompt to answer: text and tokens have none")
    with loaded(options.model, options) as (pretrained, architecture, parameters):
        prompts = prompts_of(tasks, pretrained, architecture, options.max_new_tokens, pretrained.template_date)
        generator = generator_of(pretrained, architecture, Compute(dtype=options.dtype), options.batch_size)
        sampling = Sampling(
            options.max_new_tokens,
            options.temperature,
            options.top_p,
            options.seed,
            options.top_k,
            options.min_p,
            options.stop,
        )
        answers = generator(parameters, prompts, sampling, options.n)
    rows = (sampled_row(task, each, pretrained.tokenizer) for task, each in zip(tasks, answers, strict=True))
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
    from sft_jax.storage.bucket import local, naming
    from sft_jax.weights.export import export as write_directory

    with loaded(options.model, options) as (pretrained, architecture, parameters), naming(options.out):
        write_directory(
            parameters,
            architecture,
            pretrained.hf_config,
            pretrained.tokenizer,
            local(options.out),
            dtype=options.dtype,
            max_shard_bytes=options.max_shard_bytes,
            generation_config=pretrained.generation_config,
        )
        _describe_export(options, pretrained, parameters)
        send(options.out)
    print(options.out)
    return EXIT_DONE


def _describe_export(options: Export, pretrained: "Pretrained", parameters: dict) -> None:
    """handoff.json beside the exported weights, with the fingerprint of those they were written from."""
    from sft_jax.handoff.artefact import describe_handoff, weights_fingerprint, write_handoff
    from sft_jax.storage.bucket import local

    fingerprint = weights_fingerprint(parameters)
    if is_first_process():
        stops, date = pretrained.stop_ids, pretrained.template_date
        write_handoff(local(options.out), describe_handoff(pretrained.tokenizer, stops, fingerprint, ".", ".", date))
