"""Everything about a config that can be checked without a device or a data file, all problems at once."""

import dataclasses
import datetime
import math
import re
from typing import Any

from sft_jax.config.kinds import ADAPTERS, LOSSES, OPTIMIZERS, SINKS
from sft_jax.config.run import Distributed, Mesh, RunConfig, Sharding, leaf_fields
from sft_jax.errors import BadInput, nearest

_AT_LEAST_ONE = (
    "data.sequence_length",
    "data.streams",
    "train.epochs",
    "train.eval_new_tokens",
    "train.batch_size",
    "train.accumulation",
    "train.keep_last",
    "model.head_chunk",
)
_NOT_NEGATIVE = (
    "data.limit",
    "data.target_capacity",
    "data.workers",
    "optimizer.learning_rate",
    "optimizer.warmup_steps",
    "optimizer.weight_decay",
    "optimizer.clip_norm",
    "train.steps",
    "train.seed",
    "train.eval_every",
    "train.eval_samples",
    "train.save_every",
    "train.keep_every",
)


def url_problem(path: str) -> str:
    """What is wrong with `gs://bucket/path`, or nothing: fsspec, Orbax and TensorStore read some characters differently
    (patterns, fragments), and would write to different places."""
    if "://" not in path:
        return ""
    strange = sorted(
        set(re.findall(r"[#?*\[\]\\]", path)) | ({".."} & set(path.split("/"))) | ({"."} & set(path.split("/")))
    )
    if strange or "//" in path.partition("://")[2]:
        return f"{path} has {' and '.join(map(repr, strange)) or repr('//')}, which not all programs take for a name"
    return ""


def validate(config: RunConfig) -> None:
    """Check everything that can be checked without a device or a data file.

    Raises:
      BadInput: with every problem found, one a line.
    """
    values: dict[str, Any] = {name: value for name, _, value in leaf_fields(config)}
    problems = [f"{name} is {values[name]}, expected at least 1" for name in _AT_LEAST_ONE if values[name] < 1]
    problems += [f"{name} is {values[name]}, expected 0 or more" for name in _NOT_NEGATIVE if values[name] < 0]
    floats = [(name, value) for name, value in values.items() if isinstance(value, float)]
    problems += [f"{name} is {value}, expected a finite number" for name, value in floats if not math.isfinite(value)]
    for name in ("optimizer.b1", "optimizer.b2", "optimizer.momentum", "optimizer.decay_rate"):
        if values[name] is not None and not 0 <= values[name] < 1:
            problems.append(f"{name} is {values[name]}, expected at least 0 and less than 1")
    for name in ("optimizer.eps", "optimizer.clip_rms", "optimizer.factored_from", "adapter.rank", "adapter.alpha"):
        if values[name] is not None and values[name] <= 0:
            problems.append(f"{name} is {values[name]}, expected more than 0")
    ratio = config.optimizer.warmup_ratio
    if not 0 <= ratio < 1:
        problems.append(f"optimizer.warmup_ratio is {ratio}, expected at least 0 and less than 1")
    elif ratio and config.optimizer.warmup_steps:
        problems.append(
            f"optimizer.warmup_ratio is {ratio} and optimizer.warmup_steps is {config.optimizer.warmup_steps}: give one"
        )
    problems += _kind_problems(config)
    if config.train.seed >= 2**63:
        problems.append(f"train.seed is {config.train.seed}, expected less than 2**63")
    if not re.fullmatch(r"(gs|s3)://[^/]+/.+|(?!.*://).+", config.workdir):
        problems.append(
            f"workdir is {config.workdir!r}, expected a directory, gs://bucket/path or s3://bucket/path; mount a "
            "bucket of another kind and name the directory"
        )
    elif problem := url_problem(config.workdir):
        problems.append(f"workdir: {problem}")
    if not config.model.path:
        problems.append("model.path is empty: name a Hugging Face directory, a .gguf file, a workdir or hf://org/name")
    if not config.data.train:
        problems.append("data.train is empty: name at least one file of demonstrations")
    day = config.data.template_date
    if day and not _is_date(day):
        problems.append(f"data.template_date is {day!r}, expected a day as YYYY-MM-DD, or nothing for today")
    if config.train.eval_every and not config.data.eval:
        problems.append(
            f"train.eval_every is {config.train.eval_every} but data.eval is empty: name held-out files, or set "
            "train.eval_every to 0"
        )
    if config.train.eval_samples and not config.train.eval_every:
        problems.append(f"train.eval_samples is {config.train.eval_samples} but train.eval_every is 0: say how often")
    weights = config.data.weights
    if weights and len(weights) != len(config.data.train):
        problems.append(f"data.weights has {len(weights)} entries, data.train {len(config.data.train)}: one for each")
    if not all(0 < weight < math.inf for weight in weights):
        problems.append(f"data.weights is {weights}, expected finite numbers above 0")
    if config.data.streaming and not config.train.steps:
        problems.append("data.streaming needs train.steps: nobody counts the rows of an epoch in advance")
    if config.data.streaming and weights:
        problems.append("data.weights mixes prepared data; data.streaming reads its files one after the other")
    if config.data.limit and (config.data.streaming or weights):
        other = "data.streaming" if config.data.streaming else "data.weights"
        problems.append(f"data.limit draws from prepared data of one kind; it does not go with {other}")
    if config.loss.kind in LOSSES.names and LOSSES.settings_type(config.loss.kind).reads_pairs:
        if config.data.over_length in ("truncate", "split"):
            problems.append(
                f'data.over_length is "{config.data.over_length}": a cut answer has lost the token at which its reward '
                "is read. Take drop or error for loss.kind reward"
            )
        if config.data.format not in ("auto", "preference", "pair"):
            problems.append(f"data.format is {config.data.format}, but loss.kind reward compares two answers")
        if config.data.streaming:
            problems.append("data.streaming: loss.kind reward learns from prepared pairs")
        if config.train.eval_samples:
            problems.append("train.eval_samples: a reward model answers nothing")
    elif config.data.format == "pair":
        problems.append('data.format "pair" is for loss.kind reward; "preference" imitates the chosen answer')
    if config.data.over_length == "split" and config.data.sequence_length < 2:
        problems.append('data.over_length "split" needs data.sequence_length of at least 2')
    problems += _batch_problems(config) + layout_problems(config.mesh, config.sharding, config.distributed)
    if problems:
        raise BadInput("\n".join(problems))


def _kind_problems(config: RunConfig) -> list[str]:
    """What is wrong with the kinds that are chosen by name, and with fields that the chosen ones lack."""
    chosen = [
        (OPTIMIZERS, config.optimizer.name, config.optimizer),
        (LOSSES, config.loss.kind, config.loss),
        (ADAPTERS, config.adapter.kind, config.adapter),
        *((SINKS, name, None) for name in config.train.sinks),
    ]
    problems = []
    for registry, name, section in chosen:
        try:
            registry.settings(name, section)
        except BadInput as error:
            problems.append(str(error))
    return problems


def _is_date(text: str) -> bool:
    try:
        return bool(re.fullmatch(r"\d{4}-\d{2}-\d{2}", text)) and bool(datetime.date.fromisoformat(text))
    except ValueError:
        return False


def _batch_problems(config: RunConfig) -> list[str]:
    rows, parts = config.train.batch_size, max(1, config.train.accumulation)
    if rows >= 1 and rows % parts:
        below, above = rows // parts * parts, -(-rows // parts) * parts
        valid = f"{below} or {above}" if below else f"{above}"
        return [f"train.batch_size {rows} is not divisible by train.accumulation {parts}; nearest valid: {valid}"]
    return []


def layout_problems(mesh: Mesh, sharding: Sharding, distributed: Distributed) -> list[str]:
    """Errors of a layout that don't depend on the devices, one line each."""
    axes = dataclasses.asdict(mesh)
    problems = [
        f"mesh.{axis} is {size}, expected -1 or at least 1" for axis, size in axes.items() if size < 1 and size != -1
    ]
    rest = [axis for axis, size in axes.items() if size == -1]
    if len(rest) > 1:
        problems.append(f"mesh axes {' and '.join(rest)} are both -1: only one axis can take the rest")
    for name, _, rule in leaf_fields(sharding, "sharding."):
        for axis in [] if rule == "none" else rule.split("+"):
            if axis not in axes:
                problems.append(f"{name} is {rule!r}: unknown mesh axis {axis!r}. {nearest(axis, list(axes))}")
    d = distributed
    leasts = {
        "processes": 1,
        "timeout_seconds": 1,
        "silence_seconds": 1,
        "process_id": 0,
        "devices": 0,
        "cpu_devices": 0,
    }
    for name, least in leasts.items():
        if getattr(d, name) < least:
            problems.append(f"distributed.{name} is {getattr(d, name)}, expected at least {least}")
    if d.processes > 1 and not re.fullmatch(r".+:\d+", d.coordinator):
        problems.append(
            f"distributed.processes is {d.processes} and distributed.coordinator {d.coordinator!r}, expected host:port "
            "of process 0"
        )
    elif d.process_id >= d.processes:
        problems.append(
            f"distributed.process_id is {d.process_id}, expected 0..{d.processes - 1} for {d.processes} process(es)"
        )
    return problems
