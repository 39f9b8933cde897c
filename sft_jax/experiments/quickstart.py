"""`make quickstart`: measure the pretrained model, fine-tune it, measure again, export it, show what changed.

Takes the options of `sft-jax train configs/quickstart.py`, e.g. --mesh.fsdp 8 --distributed.cpu-devices 8.
"""

import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sft_jax.api.model import Model, load
from sft_jax.cli.arguments import resolve_config
from sft_jax.cli.processes import exit_status, leave
from sft_jax.cli.train import train_on_terminal
from sft_jax.config import RunConfig
from sft_jax.data.forms.formats import detect_format
from sft_jax.data.read.readers import read_records
from sft_jax.distributed.start import start
from sft_jax.errors import EXIT_DONE, BadInput
from sft_jax.evaluate.behaviour import behaviour_of, prompt_of
from sft_jax.evaluate.task import Answer
from sft_jax.storage.location import require_local

CONFIG = "configs/quickstart.py"
LONGEST_ANSWER = 64
"""Tokens: the longest demonstrated answer has about 50."""
MARKER = ".quickstart"
"""Marks a workdir that the next quickstart may remove."""
SHOWN = ("call", "calls", "refusal")
"""Kinds of held-out conversations to show before and after."""


def peak_rss_bytes() -> int:
    """Peak resident memory of this process so far."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def held_out_rows(config: RunConfig) -> list[dict[str, Any]]:
    """The held-out demonstrations for measuring behaviour.

    Raises:
      BadInput: rows that are not messages in the house style.
    """
    rows = []
    for record in read_records(config.data.eval):
        detect_format(record, "messages")
        rows.append({"id": record.where, "kind": "", **record.value})
    behaviour_of(rows, [Answer(prompt_of(row)[1], stopped=True) for row in rows])  # fail now, not after training
    return rows


def answers(model: Model, rows: Sequence[Mapping]) -> list[Answer]:
    """Greedy answers to the held-out prompts."""
    tasks = [[*prompt_of(row)[0]] for row in rows]
    found = model.generate(tasks, max_new_tokens=LONGEST_ANSWER, batch_size=40)
    return [Answer(one.text, one.finish != "length") for [one] in found]


def show(console, rows: Sequence[Mapping], before: Sequence, after: Sequence) -> None:
    """Print three conversations, before and after."""
    for kind in SHOWN:
        place = next((i for i, row in enumerate(rows) if row["kind"] == kind), None)
        if place is None:
            continue
        messages, expected = prompt_of(rows[place])
        console.print(f"\n[bold]user[/]    {messages[-1]['content']}", highlight=False)
        for label, style, text in (
            ("before", "red", before[place].text),
            ("after", "green", after[place].text),
            ("shown", "dim", expected),
        ):
            console.print(f"{label:<8}", style=style, end="", highlight=False)
            console.print(text.strip().replace("\n", "\n        "), markup=False, highlight=False)


def clear(workdir: Path) -> None:
    """Remove the files of an earlier quickstart, and nothing else.

    Raises:
      BadInput: the directory contains files that are not from a quickstart.
    """
    if (workdir / MARKER).is_file():
        shutil.rmtree(workdir)
    elif workdir.exists() and not (workdir.is_dir() and not any(workdir.iterdir())):
        raise BadInput(f"{workdir} contains files that are not from a quickstart; use a new or empty --workdir")
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / MARKER).touch()


def quickstart(arguments: Sequence[str]) -> int:
    """Run all steps; writes quickstart.json to the workdir."""
    started = time.perf_counter()
    config = resolve_config([CONFIG, *arguments], "quickstart")
    require_local(config.workdir, "workdir")  # it also holds the export and its report
    workdir = Path(config.workdir)
    console = Console(soft_wrap=True, highlight=False)
    rows = held_out_rows(config)
    if config.distributed.processes > 1 or config.distributed.auto:
        raise BadInput(f"the quickstart runs in one process; to train with several, use `sft-jax train {CONFIG}`")
    clear(workdir)
    start(config.distributed, leave)
    config = dataclasses.replace(config, distributed=dataclasses.replace(config.distributed, cpu_devices=0))

    console.print(f"1/4  measuring {config.model.path} on {len(rows)} held-out prompts")
    before = answers(load(config.model.path, config.mesh, config.model.dtype, config.sharding), rows)
    console.print("2/4  fine-tuning on the shipped demonstrations")
    run = train_on_terminal(config)
    console.print("3/4  measuring again")
    after = answers(run.model, rows)
    console.print("4/4  exporting a Hugging Face directory")
    out = workdir / "export"
    run.model.export(out)
    result = {
        "before": behaviour_of(rows, before).as_dict(),
        "after": behaviour_of(rows, after).as_dict(),
        "seconds": round(time.perf_counter() - started, 1),
        "peak_rss_bytes": peak_rss_bytes(),
        "export": str(out),
    }
    (workdir / "quickstart.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    show(console, rows, before, after)
    summarise(console, result, workdir)
    return EXIT_DONE


def summarise(console, result: Mapping[str, Any], workdir: Path) -> None:
    """Print the results and what to try next."""
    table = Table("held-out prompts", "before", "after", title=None)
    for name in ("tool_call_exact_match", "correct_refusal", "well_formed", "stopped"):
        table.add_row(name.replace("_", " "), f"{result['before'][name]:.1%}", f"{result['after'][name]:.1%}")
    console.print()
    console.print(table)
    minutes, gigabytes = result["seconds"] / 60, result["peak_rss_bytes"] / 1e9
    console.print(f"{minutes:.1f} minutes, {gigabytes:.1f} GB peak memory; {workdir / 'quickstart.json'}")
    prompts = "sft_jax/demonstrations/held_out.jsonl"
    console.print(
        f"""
What to type next:
  .venv/bin/sft-jax sample {workdir} --prompts {prompts} --n 2 --temperature 0.7
  .venv/bin/sft-jax score {workdir} --data {prompts} --out scores.jsonl
  .venv/bin/sft-jax train {CONFIG} --workdir runs/mine --data.train YOUR.jsonl --data.eval \\
      --data.sequence-length 1024 --optimizer.learning-rate 1e-4
  open {workdir / "report.html"}""",
        highlight=False,
        markup=False,
    )


if __name__ == "__main__":
    sys.exit(exit_status(quickstart, sys.argv[1:]))
