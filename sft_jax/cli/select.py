"""sft-jax select SAMPLES --out F: the best completions as new demonstrations, or pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from sft_jax.cli.arguments import check_writable, parse, require
from sft_jax.cli.fields import Positional
from sft_jax.cli.options import ModelOptions, at_least, load_model, write_lines
from sft_jax.errors import EXIT_DONE, BadInput


@dataclass(frozen=True)
class Select(ModelOptions):
    """Score sampled completions and keep the best as new demonstrations, or as pairs for a reward model."""

    samples: Annotated[str, Positional("SAMPLES")]
    """The file that sft-jax sample wrote."""
    out: str = ""
    """JSONL file to write."""
    check: tuple[str, ...] = ()
    """Score by a check of sft-jax evaluate; auto picks what fits the rows. The first number counts."""
    scorer: str = ""
    """Score by your own function, file.py:name: (completion, row) -> number."""
    reward: str = ""
    """Score by a reward model (a directory or workdir)."""
    by: str = ""
    """Score by a number in each completion, such as logprob or a human rating."""
    keep: Literal["best", "passing", "all"] = "best"
    """best: one completion per prompt; passing: every distinct one that scores at_least; all."""
    at_least: float = float("-inf")
    """Drop completions that score less."""
    pairs: bool = False
    """Write pairs instead: the best completion of each prompt as chosen, the worst as rejected."""
    batch_size: int = 8
    """Documents per batch, for --reward."""


def select(arguments: Sequence[str]) -> int:
    """sft-jax select SAMPLES --out F --check numeric"""
    options = parse(Select, arguments, "sft-jax select")
    require(options, "out", "sft-jax select")
    at_least(options, 1, "batch_size")
    check_writable(options.out)
    given = [name for name in ("check", "scorer", "reward", "by") if getattr(options, name)]
    if len(given) != 1:
        raise BadInput(f"sft-jax select scores by one of --check, --scorer, --reward, --by; given: {given or 'none'}")
    from sft_jax.data.read.readers import read_records
    from sft_jax.evaluate import sampled

    records = list(read_records((options.samples,)))
    for record in records:
        sampled.check_sampled(record.where, record.value)
    rows = [record.value for record in records]
    scores = _scores(options, records)
    if options.pairs:
        made, about = sampled.pairs(rows, scores)
    else:
        made, about = sampled.select(rows, scores, options.keep, options.at_least)
    write_lines(made, options.out)
    print(
        f"{about.prompts:,} prompts: {about.kept:,} rows written, {about.without:,} prompts gave none; score of the "
        f"first completion {about.first:.4g}, of all {about.mean:.4g}, of the best {about.best:.4g}"
    )
    return EXIT_DONE


def _scores(options: Select, records: Sequence[Any]) -> list[list[float]]:
    """A score for each completion of each row."""
    if options.by:
        return [[_own_number(record, options.by, one) for one in record.value["completions"]] for record in records]
    if options.reward:
        return _rewards(options, records)
    from sft_jax.config import Data
    from sft_jax.evaluate.checks import check_answers, make_checks
    from sft_jax.evaluate.task import Answer, sampled_task

    tasks = [sampled_task(record, Data(())) for record in records]
    checks = make_checks(options.check, options.scorer, tasks)
    if not checks:
        raise BadInput("--check auto found nothing in the rows to judge by; name a check, or give --scorer")
    found = []
    for task, record in zip(tasks, records, strict=True):
        answers = record.value["completions"]
        completions = [Answer(one["text"], bool(one.get("stopped", True)), 0) for one in answers]
        judged = check_answers([task] * len(completions), completions, checks)
        name = next(iter(judged[0]))
        if any(row[name] is None for row in judged):
            raise BadInput(f"{record.where}: {name} says nothing of this row; name a check that scores every row")
        found.append([float(row[name] or 0.0) for row in judged])
    return found


def _own_number(record: Any, name: str, completion: Mapping[str, Any]) -> float:
    value = completion.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadInput(f"{record.where}: a completion's {name} is {value!r}, expected a number")
    return float(value)


def _rewards(options: Select, records: Sequence[Any]) -> list[list[float]]:
    from sft_jax.config import Data
    from sft_jax.data.chat.encode import encode
    from sft_jax.data.forms.formats import demonstrations
    from sft_jax.data.read.rows import Record
    from sft_jax.evaluate.sampled import as_demonstration, written
    from sft_jax.handoff.reward import reward_documents

    model = load_model(options.reward, options)
    architecture = model.architecture
    if not architecture.reward:
        raise BadInput(f"--reward {options.reward} is a language model; train a reward model from sft-jax reward-init")
    rendering = model.pretrained.rendering
    documents = []
    for record in records:
        for one in record.value["completions"]:
            row = Record(record.source, record.line, as_demonstration(record.value, written(one), "x"))
            [whole] = demonstrations(row, Data(()))
            documents.append(encode(record.where, whole, model.tokenizer, "all", rendering).tokens)
    longest = max(documents, key=len)
    if len(longest) > architecture.max_positions:
        raise BadInput(f"a completion of {len(longest):,} tokens; {options.reward} has {architecture.max_positions:,}")
    found = reward_documents(architecture, model.compute, model.parameters, documents, options.batch_size)
    rewards = iter(list(found))
    return [[next(rewards) for _ in record.value["completions"]] for record in records]
