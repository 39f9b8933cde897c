"""Our train step beside a plain transformers + torch one: same weights, same documents, same update, in one run.

    .venv/bin/python -m tests.parity.bench [--model F] [--rounds 3] [--steps 3] [--json F]        (or: make bench)

A step trains the documents of one step of configs/quickstart.py, in float32, with AdamW and gradients clipped to 1:
  ours              packed rows, as `sft-jax train configs/quickstart.py` makes them
  torch, padded     the same documents sorted by length, padded, in micro-batches of 8
  torch, packed     the very same rows: `position_ids` that restart make transformers build a block-diagonal mask
  torch, all logits as padded, through `model(..., labels=...)` as most people write it
The first two torch forms are the best we know how to write: the head meets trained tokens alone, sdpa attention, fused
AdamW, every core. Each side is a process of its own, and the sides take turns.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CONFIG = "configs/quickstart.py"
MODEL = ".cache/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LEARNING_RATE = 2e-5
DOCUMENTS = 8  # of a padded micro-batch
TORCH = ("torch, padded", "torch, packed", "torch, all logits")
SIDES = ("ours", *TORCH)

# Only standard modules are imported above, and none of the libraries here: Linux counts the peak memory of the process
# that starts another one as that one's own.


def our_config(directory: Path, steps: int):
    """What the quickstart reads, at a constant learning rate, with the model of `directory`."""
    from dataclasses import replace

    from sft_jax.config import Optimizer, load_config

    config = load_config(CONFIG)
    return replace(
        config,
        workdir=str(directory / f"run-{os.getpid()}"),
        model=replace(config.model, path=str(directory / "model")),
        data=replace(config.data, eval=()),
        optimizer=Optimizer(learning_rate=LEARNING_RATE, schedule="constant", clip_norm=1.0),
        train=replace(config.train, steps=steps),
    )


def prepare(directory: Path, steps: int) -> None:
    """The rows of every step and its documents one by one, for torch, which should not have to import JAX."""
    import numpy as np

    from sft_jax.storage.location import Location
    from sft_jax.train.inputs import read_inputs

    config = our_config(directory, steps)
    source = read_inputs(config, Location(config.workdir)).source
    arrays = {}
    for step in range(steps):
        batch = source.batch(step)
        labels = np.full_like(batch.tokens, -100)
        cell, row, place = np.nonzero(batch.target_weights)
        labels[cell, row, batch.target_index[cell, row, place] + 1] = batch.target_tokens[cell, row, place]
        for name, array in (("tokens", batch.tokens), ("labels", labels), ("positions", batch.positions)):
            arrays[f"{name}-{step}"] = array[0].astype(np.int64)
        arrays[f"segments-{step}"] = batch.segment_ids[0]
    np.savez(directory / "rows.npz", **arrays)


def our_steps(directory: Path, steps: int) -> Iterator[tuple[float, int]]:
    """(loss, trained tokens) of one step after the other."""
    from sft_jax.api.run import Run

    with Run(our_config(directory, steps)) as run:
        for _ in range(steps):
            (row,) = run.step()
            yield row["loss"], int(row["target_tokens"])


def torch_steps(side: str, directory: Path, steps: int) -> Iterator[tuple[float, int]]:
    """The same in torch; the gradient of an update is that of its summed loss over its number of trained tokens."""
    import numpy as np
    import torch
    import transformers

    torch.set_num_threads(os.cpu_count() or 1)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory / "model", dtype=torch.float32, attn_implementation="sdpa"
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0.0, fused=True)
    rows = np.load(directory / "rows.npz")
    for step in range(steps):
        names = ("tokens", "labels", "positions", "segments")
        tokens, labels, positions, segments = (rows[f"{name}-{step}"] for name in names)
        if side == "torch, packed":
            arrays = {"input_ids": tokens, "position_ids": positions, "labels": labels}
            batches = [{name: torch.from_numpy(array) for name, array in arrays.items()}]
        else:
            batches = padded(tokens, labels, segments)
        count, total = int((labels != -100).sum()), 0.0
        for batch in batches:
            if side == "torch, all logits":
                loss = model(**batch, use_cache=False, num_items_in_batch=count).loss
            else:
                expected = batch.pop("labels")[:, 1:]
                trained = expected != -100
                hidden = model.model(**batch, use_cache=False).last_hidden_state
                logits = model.lm_head(hidden[:, :-1][trained])
                loss = torch.nn.functional.cross_entropy(logits, expected[trained], reduction="sum") / count
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield total, count


def padded(tokens: Any, labels: Any, segments: Any) -> list[dict[str, Any]]:
    """Micro-batches of 8 documents of like length, taken out of packed rows."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    documents = [
        (torch.from_numpy(tokens[row][inside]), torch.from_numpy(labels[row][inside]))
        for row in range(len(tokens))
        for number in range(1, segments[row].max() + 1)
        for inside in [segments[row] == number]
    ]
    documents.sort(key=lambda document: len(document[0]))
    batches = []
    for start in range(0, len(documents), DOCUMENTS):
        ids, expected = map(list, zip(*documents[start : start + DOCUMENTS], strict=True))
        batches.append(
            {
                "input_ids": pad_sequence(ids, batch_first=True),
                "attention_mask": pad_sequence([torch.ones_like(one) for one in ids], batch_first=True),
                "labels": pad_sequence(expected, batch_first=True, padding_value=-100),
            }
        )
    return batches


def worker(task: str, directory: Path, steps: int) -> None:
    """One process: losses of all steps, speed of those after the first (it compiles, it warms caches), peak memory."""
    if task == "prepare":
        prepare(directory, steps)
        return
    updates = our_steps(directory, steps) if task == "ours" else torch_steps(task, directory, steps)
    ends, losses, counts = zip(*((time.perf_counter(), *update) for update in updates), strict=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = {
        "losses": losses,
        "tokens_per_second": sum(counts[1:]) / (ends[-1] - ends[0]),
        "step_seconds": (ends[-1] - ends[0]) / (steps - 1),
        "peak_bytes": peak if sys.platform == "darwin" else peak * 1024,
    }
    (directory / "result.json").write_text(json.dumps(result), encoding="utf-8")


def run(*arguments: object) -> None:
    """A process in the repository's root; its output is shown only if it fails."""
    command = [sys.executable, "-m", *map(str, arguments)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed with status {done.returncode}:\n{done.stdout}{done.stderr}")


def measure(model: str, rounds: int, steps: int) -> dict[str, Any]:
    """Every side in turn, `rounds` times, each in its own process."""
    measured: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    load = os.getloadavg()[0]  # of others: later readings hold our own runs
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        run("sft_jax", "export", model, "--out", directory / "model")
        run("tests.parity.bench", "--worker", "prepare", "--directory", directory, "--steps", steps)
        for number in range(1, rounds + 1):
            for side in SIDES:
                run("tests.parity.bench", "--worker", side, "--directory", directory, "--steps", steps)
                result = json.loads((directory / "result.json").read_text(encoding="utf-8"))
                measured[side].append(result)
                print(f"round {number}  {side:18}{result['tokens_per_second']:8.1f} trained tokens/s", flush=True)
    names = ("tokens_per_second", "step_seconds", "peak_bytes")
    sides = {
        side: {**{name: statistics.median(row[name] for row in rows) for name in names}, "rounds": rows}
        for side, rows in measured.items()
    }
    versions = {name: version(name) for name in ("jax", "torch", "transformers")}
    return {"sides": sides, "versions": versions, "cores": os.cpu_count(), "load_before": load}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL, help="the model: a GGUF file or a Hugging Face directory")
    parser.add_argument("--rounds", type=int, default=3, help="times every side runs")
    parser.add_argument("--steps", type=int, default=3, help="timed steps of a run, after one that is not timed")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    parser.add_argument("--worker", choices=("prepare", *SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.worker, options.directory, options.steps)
        return
    if options.rounds < 1 or options.steps < 1:
        parser.error("--rounds and --steps are at least 1")
    result = measure(options.model, options.rounds, options.steps + 1)
    sides = result["sides"]
    best = max(sides[side]["tokens_per_second"] for side in TORCH)
    result["ratio"] = sides["ours"]["tokens_per_second"] / best
    result["plain_ratio"] = sides["ours"]["tokens_per_second"] / sides["torch, all logits"]["tokens_per_second"]
    print(f"\n{'':18}{'tokens/s':>9}{'s/step':>8}{'ours is':>9}{'peak GiB':>10}{'first loss':>12}{'last loss':>11}")
    for side, row in sides.items():
        faster = sides["ours"]["tokens_per_second"] / row["tokens_per_second"]
        losses = row["rounds"][0]["losses"]
        print(
            f"{side:18}{row['tokens_per_second']:9.1f}{row['step_seconds']:8.2f}{faster:8.2f}x"
            f"{row['peak_bytes'] / 2**30:10.2f}{losses[0]:12.5f}{losses[-1]:11.5f}"
        )
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    print(f"trained tokens a second, median of {options.rounds} rounds of {options.steps} steps; {versions}")
    print(
        f"{result['cores']} cores, load {result['load_before']:.1f} at the start (another program on these cores slows "
        f"torch's spinning threads most); ours / plain torch = {result['plain_ratio']:.2f}, ours / best torch = "
        f"{result['ratio']:.2f}"
    )
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    first = [row["rounds"][0]["losses"][0] for row in sides.values()]
    if max(first) - min(first) > 1e-3:
        raise SystemExit(f"the sides do not train the same: their first losses are {first}")


if __name__ == "__main__":
    main()
