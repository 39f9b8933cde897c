"""Plan every shipped config on the topology in its docstring, and write the result there: `make plan-configs`.

    python -m sft_jax.experiments.plan_configs [configs/llama31_8b.py ...]

A config's docstring has a line `Plan:  sft-jax plan configs/NAME.py --topology T [--slices N]`; this writes the
`Planned:` lines below it. `configs/plans.json` stores each plan in full, with what shows whether it is up to date: the
config, the model, and the closed-form figures, which change with the chips, the assumptions and the cost model.
"""

import ast
import json
import re
import shlex
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sft_jax.cli.plan import batch_shapes
from sft_jax.cli.processes import exit_status
from sft_jax.config import RunConfig, leaf_fields, load_config
from sft_jax.errors import EXIT_DONE, BadInput
from sft_jax.plan.chips import topology
from sft_jax.plan.isolated import Request
from sft_jax.plan.planned import Planned, can_compile, plan_analytic, plan_compiled
from sft_jax.report.plan import WORDS
from sft_jax.weights.pretrained import architecture_at

PLANS = Path("configs/plans.json")
WIDTH = 118
DIGITS = 6
"""Significant digits of stored figures; further ones differ between CPUs."""


def shipped() -> dict[str, Request]:
    """Config path -> plan request, for every config with a `Plan:` line."""
    found = {}
    for path in sorted(Path("configs").glob("*.py")):
        line = re.search(r"^Plan: +sft-jax plan (.*)$", _docstring(path), re.MULTILINE)
        if line is None:
            continue
        named, *options = shlex.split(line[1])
        if named != str(path):
            raise BadInput(f"{path}: its Plan: line names {named}")
        values = dict(zip(options[::2], options[1::2], strict=True))
        config = load_config(path)
        architecture = architecture_at(config.model.path)
        wanted = topology(values["--topology"], int(values.get("--slices", "1")))
        found[str(path)] = Request(config, architecture, batch_shapes(config, architecture), wanted)
    return found


def _docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def fingerprint(request: Request) -> str:
    """Hash of the model, the chips and the config, as far as it differs from the defaults: a new field changes no plan.
    `distributed` does not affect plans."""
    defaults = {name: value for name, _, value in leaf_fields(RunConfig())}
    values = sorted((name, value) for name, _, value in leaf_fields(request.config) if value != defaults[name])
    config = [[name, value] for name, value in values if not name.startswith("distributed.")]
    text = json.dumps([config, asdict(request.architecture), request.shapes, str(request.topology)])
    return sha256(text.encode()).hexdigest()[:16]


def closed_form(request: Request) -> list[float]:
    """[seconds per step, peak bytes per chip, executed FLOPs] in closed form."""
    plan = plan_analytic(request)
    return [float(f"{x:.{DIGITS}g}") for x in (plan.step_seconds, plan.peak_bytes_per_chip, plan.executed_flops)]


def record(request: Request, plan: Planned) -> dict[str, Any]:
    """The entry of a plan in `plans.json`."""
    values = {name: value for name, value in vars(plan).items() if name not in ("collectives", "compile_seconds")}
    versions = {name: _version(name) for name in ("jax", "libtpu")} if plan.method == "compiled" else {}
    return {"fingerprint": fingerprint(request), "closed_form": closed_form(request), **versions, "plan": values}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def planned_lines(kept: dict[str, Any]) -> str:
    """The `Planned:` lines of a docstring."""
    plan = kept["plan"]
    gib = 2**30
    peak, room = plan["peak_bytes_per_chip"] / gib, plan["usable_bytes_per_chip"] / gib
    how = f"compiled with jax {kept['jax']}" if plan["method"] == "compiled" else "in closed form, no GPU measured yet"
    chips = f"{plan['chips']} chip{'s' * (plan['chips'] > 1)}"
    speed = f"about {plan['tokens_per_second_per_chip']:,.0f} tokens/s a chip ({100 * plan['mfu']:.0f} % MFU)"
    text = (
        f"{chips}; {peak:.1f} of {room:.1f} GiB a chip, {room - peak:.1f} to spare; {speed}, bounded by "
        f"{WORDS[plan['bound_by']]} ({how})"
    )
    lines = textwrap.wrap(text, WIDTH - 11)
    return "\n".join(("Planned:   " if i == 0 else " " * 11) + line for i, line in enumerate(lines))


def write_docstring(path: Path, lines: str) -> None:
    """Put the `Planned:` lines below the `Plan:` line."""
    text = path.read_text(encoding="utf-8")
    text = re.sub(r"^Planned:.*\n(?: {11}.*\n)*", "", text, flags=re.MULTILINE)
    text = re.sub(r"^(Plan: .*\n)", lambda found: found[1] + lines + "\n", text, count=1, flags=re.MULTILINE)
    path.write_text(text, encoding="utf-8")


def read_plans() -> dict[str, Any]:
    """The stored plans, by config path."""
    return json.loads(PLANS.read_text(encoding="utf-8")) if PLANS.exists() else {}


def refresh(arguments: Sequence[str]) -> int:
    """Plan the named configs, or all."""
    every, plans = shipped(), read_plans()
    for name in arguments or every:
        if name not in every:
            raise BadInput(f"{name} is not a config with a Plan: line. Known: {', '.join(every)}")
        request = every[name]
        plan = plan_compiled(request) if can_compile(request.topology) else plan_analytic(request)
        if not plan.fits or (plan.method != "compiled" and not request.topology.is_gpu):
            raise BadInput(f"{name}: {plan.problem or 'this machine cannot compile for TPUs, which TPU plans need'}")
        plans[name] = record(request, plan)
        write_docstring(Path(name), planned_lines(plans[name]))
        print(f"{name}\n{textwrap.indent(planned_lines(plans[name]), '  ')}", flush=True)
        ordered = {each: plans[each] for each in every if each in plans}
        PLANS.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(exit_status(refresh, sys.argv[1:]))
