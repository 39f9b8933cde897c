"""`make solutions`: four real demonstrators of different skill on one set of questions (docs/ceiling.md).

The data is GSM8K's `example_model_solutions.jsonl` (Cobbe et al. 2021, MIT; not part of this repository): for each
question a human's solution and those of four models, each marked right or wrong. The same pretrained model imitates
each demonstrator, a mixture of the models, and only their right solutions; then the likelihood of every held-out
solution is measured.
"""

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft_jax.cli.arguments import parse
from sft_jax.cli.processes import exit_status
from sft_jax.config import RunConfig, load_config
from sft_jax.errors import EXIT_DONE, BadInput
from sft_jax.storage.location import require_local

MODELS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
HUMAN = "human"
ARMS = (*MODELS, HUMAN, "mixed", "mixed, right only")


@dataclass(frozen=True)
class Experiment:
    """Imitate real demonstrators of different skill."""

    solutions: str = "example_model_solutions.jsonl"
    """GSM8K's file of that name."""
    demonstrations: int = 80
    """Demonstrations per arm."""
    held_out: int = 40
    """Questions whose solutions are measured."""
    workdir: str = "runs/solutions"


def experiment(arguments: Sequence[str]) -> int:
    """Run the experiment; writes WORKDIR/solutions.json."""
    options = parse(Experiment, arguments, "solutions_experiment")
    require_local(options.workdir, "--workdir")
    rows = _read(options)
    held_out, training = rows[: options.held_out], rows[options.held_out :]
    documents = [(row, who) for row in held_out for who in (*MODELS, HUMAN)]
    base = load_config("configs/quickstart.py")
    found: dict[str, Any] = {"before": losses_of(base.model.path, documents)}
    print_arm("before", found["before"])
    for arm in ARMS:
        workdir = Path(options.workdir) / arm.replace(", ", "-").replace(" ", "-")
        train(base, workdir, demonstrations_of(arm, training, options.demonstrations))
        found[arm] = losses_of(str(workdir), documents)
        print_arm(arm, found[arm])
    path = Path(options.workdir) / "solutions.json"
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return EXIT_DONE


def _read(options: Experiment) -> list[dict[str, Any]]:
    path = Path(options.solutions)
    if not path.is_file():
        raise BadInput(
            f"{path}: no such file. Get it from GSM8K (github.com/openai/grade-school-math) and set --solutions FILE"
        )
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    needed = options.held_out + options.demonstrations
    if len(rows) < needed:
        raise BadInput(f"{path}: {len(rows)} questions, the experiment needs at least {needed}")
    return rows


def solution(row: Mapping[str, Any], who: str) -> tuple[str, bool]:
    """(text, whether it is right) of one demonstrator."""
    return (row["ground_truth"], True) if who == HUMAN else (row[who]["solution"], row[who]["is_correct"])


def demonstrations_of(arm: str, rows: Sequence[Mapping[str, Any]], count: int) -> list[dict[str, Any]]:
    """`count` demonstrations: from one demonstrator, from the four models in turn, or only the right ones of these."""
    made = []
    for number, row in enumerate(rows):
        who = MODELS[number % len(MODELS)] if arm.startswith("mixed") else arm
        text, right = solution(row, who)
        if right or "right" not in arm:
            made.append(_demonstration(row, text))
        if len(made) == count:
            return made
    raise BadInput(f"only {len(made)} demonstrations of {arm!r}, expected {count}. Lower --demonstrations")


def _demonstration(row: Mapping[str, Any], text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": text}]}


def train(base: RunConfig, workdir: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Train for two epochs with the quickstart's optimizer."""
    from sft_jax.cli.train import train_on_terminal
    from sft_jax.storage.atomic import write_atomic

    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / "demonstrations.jsonl"
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    write_atomic(path, lambda file: file.write(text))
    data = dataclasses.replace(base.data, train=(str(path),), eval=(), sequence_length=512)
    optimizer = dataclasses.replace(base.optimizer, learning_rate=1e-4, warmup_steps=2)
    batch = dataclasses.replace(base.train, epochs=2, batch_size=4, tensorboard=False)
    train_on_terminal(dataclasses.replace(base, workdir=str(workdir), data=data, optimizer=optimizer, train=batch))


def losses_of(model: str, documents: Sequence[tuple[Mapping[str, Any], str]]) -> dict[str, Any]:
    """Loss per token by demonstrator, and how often the right of two solutions to a question is more likely."""
    from sft_jax.api.model import load
    from sft_jax.config import Data
    from sft_jax.data.pack.prepare import encode_rows
    from sft_jax.data.read.rows import Row
    from sft_jax.evaluate.bootstrap import mean_interval
    from sft_jax.evaluate.held_out import document_losses

    raw = [Row("held out", n, _demonstration(row, solution(row, who)[0])) for n, (row, who) in enumerate(documents)]
    loaded = load(model)
    data = Data(("held out",), sequence_length=loaded.architecture.max_positions)
    examples = encode_rows(raw, data, loaded.tokenizer).examples
    losses = document_losses(loaded.architecture, loaded.compute, loaded.parameters, examples, batch_size=8)
    found: dict[str, Any] = {}
    for who in (*MODELS, HUMAN):
        mine = [loss for loss, (_, other) in zip(losses, documents, strict=True) if other == who]
        found[who] = mean_interval([one.nll for one in mine], [one.weight for one in mine])._asdict()
    by_question: dict[str, list[tuple[float, bool]]] = {}
    for loss, (row, who) in zip(losses, documents, strict=True):
        if who != HUMAN:
            by_question.setdefault(row["question"], []).append((loss.nll / loss.weight, solution(row, who)[1]))
    wins = [
        float(right < wrong)
        for each in by_question.values()
        for right, is_right in each
        if is_right
        for wrong, other in each
        if not other
    ]
    found["right is likelier"] = mean_interval(wins)._asdict()
    return found


def print_arm(arm: str, found: Mapping[str, Any]) -> None:
    """Print one line of the table in docs/ceiling.md."""
    cells = [f"{one['value']:.3f} [{one['low']:.3f}, {one['high']:.3f}]" for one in found.values()]
    print(f"| {arm} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    sys.exit(exit_status(experiment, sys.argv[1:]))
