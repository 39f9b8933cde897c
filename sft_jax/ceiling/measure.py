"""Has imitation hit its ceiling? Trains on subsets of the demonstrations and measures the models."""

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sft_jax.api.run import Run
from sft_jax.ceiling.options import Ceiling
from sft_jax.ceiling.scaling import measure_scaling
from sft_jax.ceiling.verdict import Quality, check_scores, measure_quality, reach_verdict
from sft_jax.config import RunConfig
from sft_jax.distributed.agree import agree_on_options, agreed, is_first_process
from sft_jax.distributed.start import start
from sft_jax.distributed.watchdog import ExitProcess, log_exit
from sft_jax.errors import BadInput
from sft_jax.evaluate.as_json import plain
from sft_jax.evaluate.bootstrap import paired_difference
from sft_jax.evaluate.checks import check_answers, make_checks
from sft_jax.evaluate.complete import answer_of
from sft_jax.evaluate.evaluation import read_tasks
from sft_jax.evaluate.held_out import document_losses
from sft_jax.evaluate.task import Answer, Task
from sft_jax.sample.draw import Sampling
from sft_jax.storage.atomic import write_json
from sft_jax.storage.location import Location
from sft_jax.train.inputs import read_inputs
from sft_jax.train.metrics import truncate_after
from sft_jax.weights.pretrained import read_run_config

Train = Callable[..., Run]
"""(config, **options of Run) -> the finished run."""

RESULT = "ceiling.json"
EVALUATIONS = 10
"""Held-out evaluations per run; the best one counts, so that small subsets are not penalised for overfitting."""
LOSSES = "held_out.jsonl"
"""File in each run's workdir: step, and the summed nll of every held-out document."""


def fitted(config: RunConfig, **options: Any) -> Run:
    """Train a run to its end."""
    with Run(config, **options) as run:
        run.fit()
    return run


def _check_options(config: RunConfig, options: Ceiling) -> None:
    if not config.data.eval:
        raise BadInput("data.eval is empty: the ceiling is measured on held-out demonstrations")
    if config.loss.kind != "cross_entropy":
        raise BadInput("sft-jax ceiling measures imitation: leave loss.kind at cross_entropy")
    if config.data.limit or config.data.streaming or config.data.weights:
        raise BadInput("sft-jax ceiling draws its own subsets: do not set data.limit, data.streaming or data.weights")
    parts = options.parts
    if len(parts) < 3 or list(parts) != sorted(set(parts), reverse=True) or parts[-1] != 1:
        raise BadInput(f"--parts is {parts}, expected at least three decreasing numbers ending with 1, such as 8 4 2 1")
    for name in ("seeds", "samples", "prompts", "max_new_tokens"):
        if getattr(options, name) < 1:
            raise BadInput(f"--{name.replace('_', '-')} is {getattr(options, name)}, expected at least 1")


def measure_ceiling(
    config: RunConfig, options: Ceiling, train: Train = fitted, exit_process: ExitProcess = log_exit
) -> dict[str, Any]:
    """Train, measure and reach a verdict; writes ceiling.json and returns its content.

    Args:
      train: trains a run to its end; the command line's version shows progress on the terminal.

    Raises:
      BadInput: options or data that cannot work.
    """
    _check_options(config, options)
    start(config.distributed, exit_process)
    agree_on_options(options)
    compile_once(Path(config.workdir))
    locate = functools.cache(Location)  # all runs share one local copy of bucket files
    config, total = resolved(config, locate)
    sizes = [max(1, total // part) for part in options.parts]
    nll: list[np.ndarray] = []
    trained = weights = None
    for size in sizes:
        of_seeds = []
        for seed in range(options.seeds):
            run = dataclasses.replace(
                config,
                workdir=str(Path(config.workdir) / f"n{size}-seed{seed}"),
                data=dataclasses.replace(config.data, limit=size),
                train=dataclasses.replace(config.train, seed=config.train.seed + seed),
            )
            last = size == total and seed == options.seeds - 1
            one, losses, weights = trained_and_measured(run, locate, train)
            trained = one if last else None
            of_seeds.append(losses)
        nll.append(np.stack(of_seeds))
    assert trained is not None and weights is not None
    scaling = measure_scaling(sizes, nll, weights)
    quality, score, example = _quality(trained, options)
    training_loss = _training_loss(Path(trained.config.workdir))
    larger = _larger(config, options, nll[-1], weights, locate, train)
    verdict = reach_verdict(scaling, quality, training_loss, larger)
    result = plain(
        {
            "config": str(config.workdir),
            "verdict": verdict,
            "scaling": scaling,
            "quality": quality,
            "score": score,
            "samples": example,
            "training_loss": training_loss,
            "larger": larger,
        }
    )
    if is_first_process():
        write_json(Path(config.workdir) / RESULT, result)
    return result


def compile_once(workdir: Path) -> None:
    """Cache compiled programs, which the runs share, in the workdir, unless the user has set a cache."""
    if not jax.config.values["jax_compilation_cache_dir"]:
        workdir.mkdir(parents=True, exist_ok=True)
        jax.config.update("jax_compilation_cache_dir", str((workdir / "compiled").resolve()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def resolved(config: RunConfig, locate: Callable[[str], Location]) -> tuple[RunConfig, int]:
    """The config shared by all runs (steps and capacity of the whole set, so that shapes match), and the set's size."""
    one = dataclasses.replace(config, workdir=str(Path(config.workdir) / "whole"))
    inputs = agreed(
        "data",
        lambda: read_inputs(one, Location(one.workdir), locate=locate),
        lambda inputs: dict(inputs.record),
        "Every process must see the same files.",
        config.distributed.timeout_seconds,
    )
    steps = inputs.config.train.steps
    train = dataclasses.replace(
        inputs.config.train, eval_every=max(1, steps // EVALUATIONS), save_every=0, keep_last=1, tensorboard=False
    )
    # The devices are already simulated; runs in this process reuse them.
    started = dataclasses.replace(config.distributed, cpu_devices=0)
    whole = dataclasses.replace(inputs.config, workdir=config.workdir, train=train, distributed=started)
    return whole, len(inputs.source.examples)  # type: ignore[union-attr]


def trained_and_measured(
    config: RunConfig, locate: Callable[[str], Location], train: Train
) -> tuple[Run, np.ndarray, np.ndarray]:
    """Train a run: (run, summed nll of each held-out document at its best evaluation, summed weights), float64."""
    path = Path(config.workdir) / LOSSES
    run = train(config, on_evaluation=(document_losses_into(path),), locate=locate)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    best = min(rows, key=lambda row: sum(row["nll"]))
    return run, np.asarray(best["nll"]), np.asarray(best["weight"])


def document_losses_into(path: Path) -> Callable[[Run, int], dict[str, Any]]:
    """An evaluation callback that appends the loss of every held-out document to `path`."""

    def measure(run: Run, step: int) -> dict[str, Any]:
        assert run.inputs.evaluation is not None
        examples, model = list(run.inputs.evaluation.examples), run.model
        found = document_losses(model.architecture, model.compute, model.parameters, examples, batch_size=64)
        if is_first_process():
            truncate_after(path, step - 1)  # drop rows of a killed run
            row = {"step": step, "nll": [one.nll for one in found], "weight": [one.weight for one in found]}
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        return {}

    return measure


def _training_loss(workdir: Path) -> float:
    """Mean over the last tenth of a run's steps, per trained token."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row.get("loss") is not None]
    last = rows[-max(1, len(rows) // 10) :]
    return sum(row["loss"] * row["target_tokens"] for row in last) / sum(row["target_tokens"] for row in last)


def _larger(
    config: RunConfig,
    options: Ceiling,
    nll: np.ndarray,
    weights: np.ndarray,
    locate: Callable[[str], Location],
    train: Train,
) -> Any:
    """How much a larger model lowers the held-out loss; None if none is given."""
    if not options.larger:
        return None
    model = dataclasses.replace(config.model, path=options.larger)
    run = dataclasses.replace(config, workdir=str(Path(config.workdir) / "larger"), model=model)
    _, losses, theirs = trained_and_measured(run, locate, train)
    if not np.array_equal(theirs, weights):
        raise BadInput(
            f"--larger {options.larger} tokenises the held-out rows differently from {config.model.path}: losses per "
            "token are comparable only with the same tokenizer and chat template"
        )
    return paired_difference(np.mean(nll, axis=0), losses, weights, weights)


def _quality(run: Run, options: Ceiling) -> tuple[Quality | None, str, list[dict[str, Any]]]:
    """Scores of the demonstrations and the model on held-out prompts; (None, "", []) if no check applies."""
    config, model = run.config, run.model
    tasks = [task for task in read_tasks(config.data, config.data.eval, options.prompts) if task.shown]
    checks = make_checks(options.check, options.scorer, tasks)
    if not tasks or not checks:
        return None, "", []

    def answers(temperature: float, n: int) -> list[list[Answer]]:
        found = model.answer(tasks, Sampling(options.max_new_tokens, temperature), n, batch_size=64)
        return [[answer_of(one, model.tokenizer) for one in each] for each in found]

    greedy, sampled = [one for [one] in answers(0.0, 1)], answers(1.0, options.samples)
    shown = [Answer(task.shown, True, 0) for task in tasks]
    first = next(iter(check_answers(tasks[:1], shown[:1], checks)[0]))

    def scores(completions: Sequence[Answer]) -> list[float]:
        values = [row.get(first) for row in check_answers(tasks, completions, checks)]
        numbers = [value for value in values if value is not None]
        if len(numbers) != len(values):
            raise BadInput(f"the check {first} does not apply to some held-out rows; choose one that scores them all")
        try:
            check_scores(numbers)
        except ValueError as error:
            raise BadInput(f"{first}: {error}, which the verdict's margins assume") from error
        return numbers

    by_number = [scores([each[k] for each in sampled]) for k in range(options.samples)]
    quality = measure_quality(np.array(scores(shown)), np.array(scores(greedy)), np.array(by_number).T)
    return quality, first, _examples(tasks, greedy, sampled)


def score_run(config: RunConfig, options: Ceiling) -> dict[str, Any]:
    """The scores of a run trained by `measure_ceiling`, from its workdir's config."""
    before = read_run_config(Location(config.workdir))
    losses = document_losses_into(Path(config.workdir) / LOSSES)
    quality, _, _ = _quality(fitted(before, on_evaluation=(losses,)), options)
    return plain(quality)


def _examples(tasks: Sequence[Task], greedy: Sequence[Any], sampled: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    """A few prompts with their demonstrations and answers."""
    return [
        {
            "prompt": task.prompt or str(task.messages[-1].get("content")),
            "demonstration": task.shown,
            "greedy": greedy[k].text,
            "sampled": [one.text for one in sampled[k][:4]],
        }
        for k, task in enumerate(tasks[:6])
    ]
