"""sft-jax evaluate MODEL --data F [--against MODEL]"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from sft_jax.cli.arguments import check_writable, parse, require
from sft_jax.cli.options import ModelOptions, ModelPath, at_least, load_beside, load_model, stages, write_lines
from sft_jax.errors import EXIT_DONE, BadInput

if TYPE_CHECKING:
    from sft_jax.api.model import Model
    from sft_jax.evaluate.evaluation import Measured, Rows
    from sft_jax.handoff.reference import Divergence


@dataclass(frozen=True)
class Evaluate(ModelOptions):
    """Measure a model on held-out rows: likelihood, scored answers and style, beside another model if you like."""

    model: ModelPath
    """A Hugging Face directory, a .gguf file, a run's workdir, or hf://org/name."""
    data: str = ""
    """Held-out rows, in any form that trains; prompts without answers and BFCL question files too."""
    against: str = ""
    """Another MODEL, or base: the model that MODEL's run started from. Measured alike and compared row by row, with the
    KL between them."""
    retained: str = ""
    """Rows of what the model must not forget: measured the same way."""
    check: tuple[str, ...] = ("auto",)
    """exact, numeric, tool_calls, regex[:PATTERN], json, json_schema[:FILE], length; auto: what fits the rows; none:
    generate nothing."""
    scorer: str = ""
    """Your own scoring function, file.py:name: (completion, row) -> number, or a dict of numbers."""
    prompts: int = 0
    """Answer only the first N rows; 0: all."""
    max_new_tokens: int = 256
    """Longest answer, in tokens."""
    train_on: Literal["assistant", "last_assistant", "completion", "all"] = "assistant"
    """Which tokens the likelihood counts."""
    batch_size: int = 16
    """Rows per batch."""
    json: bool = False
    """Print JSON instead of tables."""
    out: str = ""
    """JSONL file to write: the answers, scores and loss of every row."""


def evaluate(arguments: Sequence[str]) -> int:
    """sft-jax evaluate MODEL --data F [--against MODEL]"""
    options = parse(Evaluate, arguments, "sft-jax evaluate")
    require(options, "data", "sft-jax evaluate")
    at_least(options, 1, "max_new_tokens", "batch_size")
    at_least(options, 0, "prompts")
    check_writable(options.out)
    from rich.console import Console

    from sft_jax.distributed.agree import is_first_process
    from sft_jax.handoff.reference import mean
    from sft_jax.report.evaluation import evaluation_tables

    report: dict[str, Any] = {"model": options.model}
    lines: list[dict[str, Any]] = []
    model = load_model(options.model, options)
    sets = {"data": options.data, **({"retained": options.retained} if options.retained else {})}
    rows = {name: _read(options, file, model) for name, file in sets.items()}
    found = {name: _evaluated(options, each, model) for name, each in rows.items()}
    other = None
    if options.against:
        other = load_beside(options.against, model, options)
        report["against"] = other.name
        check_same_tokenizer(model, other)
    for name, each in rows.items():
        beside = _evaluated(options, each, other) if other else None
        report[name] = _report_of(each, found[name], beside)
        lines += _lines(name, each, found[name], beside)
        if other is not None and each.examples:
            with stages()("comparing their probabilities"):
                report[name]["kl"] = mean(divergences_of(model, other, each.examples, options.batch_size))
    if options.out:
        write_lines(lines, options.out)
    if is_first_process():
        if options.json:
            print(json.dumps(report, ensure_ascii=False))
        else:
            Console(soft_wrap=True, highlight=False).print(evaluation_tables(report))
    return EXIT_DONE


def documents_of(options: Any, file: str, model: "Model") -> tuple:
    """The demonstrations of a file as documents that fit the model."""
    from sft_jax.data.pack.prepare import prepare

    examples = prepare(model.data((file,), options.train_on), model.tokenizer).examples
    model.check(examples)
    return examples


def _read(options: Evaluate, file: str, model: "Model") -> "Rows":
    from sft_jax.evaluate.evaluation import Rows, check_prompts_exist, has_demonstrations, read_tasks

    data = model.data((file,), options.train_on)
    examples = documents_of(options, file, model) if has_demonstrations(data, (file,)) else ()
    generates = options.check != ("none",) or options.scorer
    rows = Rows(examples, read_tasks(data, (file,), options.prompts) if generates else ())
    check_prompts_exist(rows, file)
    return rows


def _evaluated(options: Evaluate, rows: "Rows", model: "Model") -> "Measured":
    from sft_jax.evaluate.checks import make_checks
    from sft_jax.evaluate.evaluation import evaluate as evaluate_on
    from sft_jax.sample.draw import Sampling

    checks = make_checks(options.check, options.scorer, rows.tasks)
    sampling, compute, size = Sampling(options.max_new_tokens), model.compute, options.batch_size
    what = f"{len(rows.examples):,} documents, {len(rows.tasks):,} answers"
    with stages()(f"measuring {model.name} ({what})"):
        return evaluate_on(
            rows, model.pretrained, model.architecture, model.parameters, compute, sampling, checks, size
        )


def _report_of(rows: "Rows", found: "Measured", beside: "Measured | None") -> dict[str, Any]:
    """Everything as plain JSON; intervals as objects of value, low, high, n."""
    from sft_jax.evaluate.evaluation import differences, summary

    about: dict[str, Any] = {"model": summary(rows, found)}
    if beside is not None:
        about["against"] = summary(rows, beside)
        about["difference"] = differences(found, beside)
    from sft_jax.evaluate.as_json import plain

    return plain(about)


def _lines(name: str, rows: "Rows", found: "Measured", beside: "Measured | None") -> list[dict[str, Any]]:
    """One object a task or, where nothing was generated, a document."""
    both = {"model": found, **({"against": beside} if beside is not None else {})}
    lines = []
    for number, task in enumerate(rows.tasks):
        line: dict[str, Any] = {"set": name, "id": task.id, "where": task.where, "demonstration": task.shown}
        for who, one in both.items():
            line[who] = {"text": one.completions[number].text, "scores": one.scores[number]}
        lines.append(line)
    for number, example in enumerate(rows.examples):
        line = {"set": name, "id": example.id, "where": example.where}
        for who, one in both.items():
            loss = one.losses[number]
            line[who] = {"nll": loss.nll, "weight": loss.weight, "turns": loss.turns}
        lines.append(line)
    return lines


def divergences_of(model: "Model", reference: "Model", examples: Sequence[Any], batch_size: int) -> "list[Divergence]":
    """Of every example."""
    from sft_jax.handoff.reference import Policy, divergences

    sizes = model.architecture.vocab, reference.architecture.vocab
    if sizes[0] != sizes[1]:
        raise BadInput(
            f"{model.name} has a vocabulary of {sizes[0]:,} tokens, {reference.name} of {sizes[1]:,}: their "
            "probabilities cannot be compared"
        )
    policy, frozen = (Policy(one.architecture, one.parameters) for one in (model, reference))
    return list(divergences(policy, frozen, model.compute, examples, batch_size))


def check_same_tokenizer(one: "Model", other: "Model") -> None:
    """Refuse two models whose ids mean different text.

    Raises:
      BadInput: with the first token that differs.
    """
    ours, theirs = one.tokenizer.get_vocab(), other.tokenizer.get_vocab()
    if ours != theirs:
        word = min(word for word, _ in ours.items() ^ theirs.items())
        raise BadInput(
            f"{one.name} and {other.name} have different tokenizers: {word!r} is id {ours.get(word)} and "
            f"{theirs.get(word)}. Their probabilities of a token cannot be compared."
        )
