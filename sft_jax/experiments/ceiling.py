"""`make ceiling`: the ceiling of imitation for demonstrators of known skill and entropy (docs/ceiling.md).

Runs the five configs/ceiling_*.py, compares the measurements with the known values, and plots both.
"""

import dataclasses
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sft_jax.ceiling.measure import LOSSES, measure_ceiling, score_run
from sft_jax.ceiling.options import Ceiling
from sft_jax.cli.arguments import parse
from sft_jax.cli.processes import exit_status
from sft_jax.config import RunConfig, load_config
from sft_jax.demonstrations.skill import HELD_OUT, Demonstrator
from sft_jax.errors import EXIT_DONE

DEMONSTRATORS = {
    "scattered": Demonstrator("scattered", 0.6),
    "better": Demonstrator("scattered", 0.9),
    "systematic": Demonstrator("systematic", 0.6),
    "few": Demonstrator("scattered", 1.0),
    "small": Demonstrator("scattered", 1.0),
}
"""The demonstrator of each config."""
TOKENIZER = ".cache/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
"""For the figure of the tokens that each objective trains."""
TOKENS = 2
"""Trained tokens per demonstration: the answer and the end."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Run the ceiling experiment."""

    only: tuple[str, ...] = tuple(DEMONSTRATORS)
    """Configs to run."""
    pictures: str = "runs/ceiling"
    """Directory for the plots."""


def experiment(arguments: Sequence[str]) -> int:
    """Run the experiment; writes runs/ceiling/experiment.json and the plots."""
    from sft_jax.storage.atomic import write_json

    options = parse(Experiment, arguments, "ceiling_experiment")
    from sft_jax.data.chat.tokenizer import load_tokenizer
    from sft_jax.experiments.objectives import objectives
    from sft_jax.report.plots import token_boxes

    pictures = Path(options.pictures)
    pictures.mkdir(parents=True, exist_ok=True)
    (pictures / "objectives.svg").write_text(token_boxes(objectives(load_tokenizer(TOKENIZER))), encoding="utf-8")
    path = Path("runs/ceiling/experiment.json")
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for name in options.only:
        config = load_config(f"configs/ceiling_{name}.py")
        ceiling = Ceiling(
            **{field.name: getattr(config, field.name) for field in dataclasses.fields(RunConfig)},
            check=("exact",),
            prompts=1000,
            max_new_tokens=4,
        )
        result = measure_ceiling(config, ceiling)
        found[name] = {**result, "known": known(DEMONSTRATORS[name]), **checks(config, ceiling, result, name)}
        draw(found[name], pictures, name)
        print_row(name, found[name])
        write_json(path, found)
    return EXIT_DONE


def known(demonstrator: Demonstrator) -> dict[str, Any]:
    """The known results of perfect imitation."""
    return {
        "loss": demonstrator.entropy / TOKENS,
        "sampled": demonstrator.skill,
        "greedy": demonstrator.greedy,
        "best_of": [[k, demonstrator.best_of(k)] for k in (1, 2, 4, 8, 16)],
    }


def checks(config: RunConfig, options: Ceiling, result: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Loss above the demonstrator's own on the same rows, and the scores with a quarter of the demonstrations."""
    from sft_jax.evaluate.bootstrap import paired_difference

    sizes = result["scaling"]["sizes"]
    path = Path(config.data.eval[0])
    assert path.name == HELD_OUT
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    demonstrator = DEMONSTRATORS[name]
    own = [-demonstrator.log_probability(row["prompt"][:-1], row["completion"]) / TOKENS for row in rows]
    runs = [
        [json.loads(line) for line in (_run(config, sizes[-1], seed) / LOSSES).read_text("utf-8").splitlines()]
        for seed in range(options.seeds)
    ]
    best = [min(run, key=lambda row: sum(row["nll"]))["nll"] for run in runs]
    mean = [sum(values) / len(values) / TOKENS for values in zip(*best, strict=True)]
    above = paired_difference(mean, own)
    quarter = score_run(dataclasses.replace(config, workdir=str(_run(config, sizes[-3], 0))), options)
    return {"above_entropy": above._asdict(), "quarter": {"size": sizes[-3], **quarter}}


def _run(config: RunConfig, size: int, seed: int) -> Path:
    return Path(config.workdir) / f"n{size}-seed{seed}"


def draw(result: Mapping[str, Any], directory: Path, name: str) -> None:
    """Plot the loss curve with the known entropy, and best of n."""
    from sft_jax.ceiling.page import loss_plot, score_plot

    levels = [("demonstrator's entropy", result["known"]["loss"])]
    (directory / f"{name}_loss.svg").write_text(loss_plot(result, levels, standalone=True), "utf-8")
    (directory / f"{name}_scores.svg").write_text(score_plot(result, standalone=True), "utf-8")


def print_row(name: str, result: Mapping[str, Any]) -> None:
    """Print one line of the table in docs/ceiling.md."""
    exact, quality, scaling = result["known"], result["quality"], result["scaling"]
    best = dict(quality["best_of"])
    cells = [
        f"{scaling['losses'][-1]['value']:.4f} ({exact['loss']:.4f})",
        _interval(result["above_entropy"], 4),
        f"{_interval(quality['sampled'])} ({exact['sampled']:.2f})",
        f"{_interval(quality['greedy'])} ({exact['greedy']:.2f})",
        f"{_interval(best[4])} ({exact['best_of'][2][1]:.3f})",
        f"{result['quarter']['sampled']['value']:.3f}",
        result["verdict"]["answer"],
    ]
    assert all(math.isfinite(loss["value"]) for loss in scaling["losses"])
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def _interval(interval: Mapping[str, float], digits: int = 3) -> str:
    return f"{interval['value']:.{digits}f} [{interval['low']:.{digits}f}, {interval['high']:.{digits}f}]"


if __name__ == "__main__":
    sys.exit(exit_status(experiment, sys.argv[1:]))
