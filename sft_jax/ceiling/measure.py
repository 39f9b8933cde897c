"""Has imitation hit its ceiling? Trains on parts of the demonstrations and measures."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_jax.config import RunConfig
from sft_jax.errors import BadInput
from sft_jax.using import agree_on_options, at_least, is_first_process, plain

if TYPE_CHECKING:
    import numpy as np

    from sft_jax.ceiling.verdict import Quality
    from sft_jax.evaluate.task import Task
    from sft_jax.training import Trained

RESULT = "ceiling.json"
EVALUATIONS = 10
"""Times a run is measured on the held-out rows; the best one counts, so that repetition hurts no small part."""
LOSSES = "held_out.jsonl"
"""In the workdir of each run: step, and the summed nll of every held-out document."""


@dataclass(frozen=True)
class Ceiling(RunConfig):
    """Measure what more demonstrations would buy, what imitation leaves to better ones or to ranking, and say so."""

    parts: tuple[int, ...] = (16, 8, 4, 2, 1)
    """Train on 1/16, 1/8, … of the demonstrations."""
    seeds: int = 2
    """Runs of each part, each on other demonstrations."""
    check: tuple[str, ...] = ("auto",)
    """How answers are scored, as in sft-jax evaluate; the first score counts."""
    scorer: str = ""
    """A function of yours that scores, file.py:name: (completion, row) -> number in [0, 1]."""
    samples: int = 16
    """Samples of each held-out prompt, at temperature 1."""
    prompts: int = 200
    """Held-out prompts that are answered, at most."""
    max_new_tokens: int = 256
    """Longest answer, in tokens."""
    larger: str = ""
    """A larger MODEL, trained alike on all demonstrations: does it learn them better?"""
    json: bool = False
    """Print JSON."""
    html: str = ""
    """File to write the page to; by default ceiling.html in the workdir."""


def _check_options(config: RunConfig, options: Ceiling) -> None:
    if not config.data.eval:
        raise BadInput("data.eval is empty: the ceiling is measured on held-out demonstrations")
    if config.train.objective != "sft":
        raise BadInput("the ceiling is that of imitation: leave train.objective at sft")
    if config.data.limit or config.data.streaming or config.data.weights:
        raise BadInput("sft-jax ceiling draws its own parts: leave data.limit, data.streaming and data.weights out")
    parts = options.parts
    if len(parts) < 3 or list(parts) != sorted(set(parts), reverse=True) or parts[-1] != 1:
        raise BadInput(f"--parts is {parts}, expected at least three falling numbers that end with 1, such as 8 4 2 1")
    at_least(options, 1, "seeds", "samples", "prompts", "max_new_tokens")


def measure_ceiling(config: RunConfig, options: Ceiling) -> dict[str, Any]:
    """Train, measure and judge: the content of ceiling.json, which it writes.

    Raises:
      BadInput: options or data that cannot work.
    """
    _check_options(config, options)
    import numpy as np

    from sft_jax.ceiling.scaling import measure_scaling
    from sft_jax.ceiling.verdict import judge
    from sft_jax.distributed.start import start

    start(config.distributed)
    agree_on_options(options)
    compile_once(Path(config.workdir))
    config, total = resolved(config)
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
            one, losses, weights = trained_and_measured(run)
            trained = one if last else None
            of_seeds.append(losses)
        nll.append(np.stack(of_seeds))
    assert trained is not None and weights is not None
    scaling = measure_scaling(sizes, nll, weights)
    quality, score, example = _quality(trained, options)
    training_loss = _training_loss(Path(trained.inputs.config.workdir))
    larger = _larger(config, options, nll[-1], weights)
    verdict = judge(scaling, quality, training_loss, larger)
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
        from sft_jax.data.pack.store import write_json

        write_json(Path(config.workdir) / RESULT, result)
    return result


def compile_once(workdir: Path) -> None:
    """Many runs compile the same programs: keep them in the workdir, unless the user keeps them elsewhere."""
    import jax

    if not jax.config.values["jax_compilation_cache_dir"]:
        workdir.mkdir(parents=True, exist_ok=True)
        jax.config.update("jax_compilation_cache_dir", str((workdir / "compiled").resolve()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def resolved(config: RunConfig) -> tuple[RunConfig, int]:
    """The config of every run (steps and capacity of the whole set, so that all are of one shape), and its size."""
    from sft_jax.distributed.agree import agreed
    from sft_jax.train.inputs import read_inputs

    one = dataclasses.replace(config, workdir=str(Path(config.workdir) / "whole"))
    inputs = agreed(
        "data",
        lambda: read_inputs(one, is_first_process()),
        lambda inputs: dict(inputs.record),
        "Every process must see the same files.",
        config.distributed.timeout_seconds,
    )
    steps = inputs.config.train.steps
    train = dataclasses.replace(
        inputs.config.train, eval_every=max(1, steps // EVALUATIONS), save_every=0, keep_last=1, tensorboard=False
    )
    # The devices are simulated once; a run within this process finds them.
    started = dataclasses.replace(config.distributed, cpu_devices=0)
    whole = dataclasses.replace(inputs.config, workdir=config.workdir, train=train, distributed=started)
    return whole, len(inputs.source.examples)  # type: ignore[union-attr]


def trained_and_measured(config: RunConfig) -> "tuple[Trained, np.ndarray, np.ndarray]":
    """A run, and its best evaluation: (run, summed nll of each held-out document, their summed weights), float64."""
    import numpy as np

    from sft_jax.training import run_training

    path = Path(config.workdir) / LOSSES
    trained = run_training(config, _document_losses(path))
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    best = min(rows, key=lambda row: sum(row["nll"]))
    return trained, np.asarray(best["nll"]), np.asarray(best["weight"])


def _document_losses(path: Path) -> "Callable[..., Callable[[Mapping[str, Any], int], dict[str, Any]]]":
    """What a run calls at each evaluation: the loss of every held-out document, appended to `path`."""

    def make(trained: "Trained") -> Callable[[Mapping[str, Any], int], dict[str, Any]]:
        from sft_jax.evaluate.held_out import document_losses
        from sft_jax.model.decoder import Compute
        from sft_jax.train.metrics import cut_after

        assert trained.inputs.evaluation is not None
        examples = list(trained.inputs.evaluation.examples)
        if is_first_process():
            cut_after(path, int(trained.state.step))
        compute = Compute(trained.inputs.config.model.dtype)

        def measure(parameters: Mapping[str, Any], step: int) -> dict[str, Any]:
            found = document_losses(trained.architecture, compute, parameters, examples, batch_size=64)
            if is_first_process():
                row = {"step": step, "nll": [one.nll for one in found], "weight": [one.weight for one in found]}
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
            return {}

        return measure

    return make


def _training_loss(workdir: Path) -> float:
    """Mean over the last tenth of a run's steps, a trained token."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row.get("loss") is not None]
    last = rows[-max(1, len(rows) // 10) :]
    return sum(row["loss"] * row["target_tokens"] for row in last) / sum(row["target_tokens"] for row in last)


def _larger(config: RunConfig, options: Ceiling, nll: "np.ndarray", weights: "np.ndarray") -> Any:
    """What a larger model takes off the held-out loss; None where none is named."""
    if not options.larger:
        return None
    import numpy as np

    from sft_jax.evaluate.bootstrap import paired_difference

    model = dataclasses.replace(config.model, path=options.larger)
    run = dataclasses.replace(config, workdir=str(Path(config.workdir) / "larger"), model=model)
    _, losses, theirs = trained_and_measured(run)
    if not np.array_equal(theirs, weights):
        raise BadInput(
            f"--larger {options.larger} reads the held-out rows as other tokens than {config.model.path}: losses a "
            "token can only be compared where the tokenizer and chat template are the same"
        )
    return paired_difference(np.mean(nll, axis=0), losses, weights, weights)


def _quality(trained: "Trained", options: Ceiling) -> "tuple[Quality | None, str, list[dict[str, Any]]]":
    """Scores of the demonstrations and of the model on held-out prompts; (None, "", []) where nothing scores them."""
    import numpy as np

    from sft_jax.ceiling.verdict import check_scores, measure_quality
    from sft_jax.evaluate.checks import judge, make_checks
    from sft_jax.evaluate.complete import complete, prompts_of
    from sft_jax.evaluate.measure import read_tasks
    from sft_jax.evaluate.task import Completion
    from sft_jax.model.decoder import Compute
    from sft_jax.parallel.rules import layout
    from sft_jax.sample.draw import Sampling
    from sft_jax.sample.generate import generator_of

    config, pretrained = trained.inputs.config, trained.inputs.pretrained
    tasks = [task for task in read_tasks(config.data, config.data.eval, options.prompts) if task.shown]
    checks = make_checks(options.check, options.scorer, tasks)
    if not tasks or not checks:
        return None, "", []
    architecture, parameters = trained.architecture, trained.state.trainable
    prompts = prompts_of(tasks, pretrained, architecture, options.max_new_tokens, config.data.template_date)
    with layout(trained.mesh, config.sharding):
        generator = generator_of(pretrained, architecture, Compute(config.model.dtype), batch_size=64)

        def answers(temperature: float, n: int) -> list[list[Completion]]:
            sampling = Sampling(options.max_new_tokens, temperature)
            return complete(generator, parameters, pretrained.tokenizer, prompts, sampling, n)

        greedy, sampled = [one for [one] in answers(0.0, 1)], answers(1.0, options.samples)
    shown = [Completion(task.shown, True, 0) for task in tasks]
    first = next(iter(judge(tasks[:1], shown[:1], checks)[0]))

    def scores(completions: Sequence[Completion]) -> list[float]:
        values = [row.get(first) for row in judge(tasks, completions, checks)]
        numbers = [value for value in values if value is not None]
        if len(numbers) != len(values):
            raise BadInput(f"the check {first} says nothing of some held-out rows; name one that scores them all")
        try:
            check_scores(numbers)
        except ValueError as error:
            raise BadInput(f"{first}: {error}, or the verdict's margins mean nothing") from error
        return numbers

    by_number = [scores([each[k] for each in sampled]) for k in range(options.samples)]
    quality = measure_quality(np.array(scores(shown)), np.array(scores(greedy)), np.array(by_number).T)
    return quality, first, _examples(tasks, greedy, sampled)


def score_run(config: RunConfig, options: Ceiling) -> dict[str, Any]:
    """The scores of a run that `measure_ceiling` has made, by the workdir's own config."""
    from sft_jax.training import run_training
    from sft_jax.weights.pretrained import read_run_config

    quality, _, _ = _quality(
        run_training(read_run_config(config.workdir), _document_losses(Path(config.workdir) / LOSSES)), options
    )
    return plain(quality)


def _examples(tasks: "Sequence[Task]", greedy: Sequence[Any], sampled: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    """A few prompts with what was shown and what came."""
    return [
        {
            "prompt": task.prompt or str(task.messages[-1].get("content")),
            "demonstration": task.shown,
            "greedy": greedy[k].text,
            "sampled": [one.text for one in sampled[k][:4]],
        }
        for k, task in enumerate(tasks[:6])
    ]
