"""The workdir of a run: which run it holds, whether this run may resume it, and the files written at the start."""

import dataclasses
import json
from typing import TYPE_CHECKING

from sft_jax.config import RunConfig, from_json, identity_differences, to_json
from sft_jax.distributed.agree import KeepAlive, run_on_first_process
from sft_jax.errors import BadInput
from sft_jax.storage.atomic import write_atomic
from sft_jax.storage.location import Location
from sft_jax.weights.export import save_tokenizer
from sft_jax.weights.pretrained import MODEL_FILES, RUN_CONFIG, read_run_config

if TYPE_CHECKING:
    from sft_jax.train.inputs import Inputs

RECORD = "record.json"
"""File with the fingerprints of data and packing plan."""


def begun_as_first_sees_it(config: RunConfig, workdir: Location) -> RunConfig | None:
    """`begun_run` as process 0 sees it, since listings of the workdir may differ between processes for a while.

    Raises:
      BadInput: the workdir cannot be written.
    """

    def look(_: KeepAlive) -> str:
        workdir.check_writable()
        begun = begun_run(workdir)
        return to_json(begun) if begun else ""

    text = run_on_first_process("looks at the workdir", look, config.distributed.timeout_seconds)
    return from_json(text, str(workdir / RUN_CONFIG)) if text else None


def begun_run(workdir: Location) -> RunConfig | None:
    """The resolved config of the run in `workdir`; None if no run has taken a step there."""
    return read_run_config(workdir) if has_begun(workdir) else None


def has_begun(workdir: Location) -> bool:
    """Whether a run has taken a step here; a run rejected before its first step may be restarted."""
    folder = workdir.local()
    if not (folder / RUN_CONFIG).is_file():
        return False
    rows = folder / "metrics.jsonl"
    if rows.exists() and rows.stat().st_size:
        return True
    checkpoints = workdir / "checkpoints"
    if checkpoints.kind() != "directory":
        return False
    with workdir.explain_bucket_errors():
        return any(path.is_dir() for path in checkpoints.epath.iterdir())


def check_same_run(config: RunConfig, before: RunConfig | None) -> None:
    """Reject the workdir of another run. Called with the config first, and again once it is resolved.

    A workdir whose run never took a step may be reused.

    Args:
      before: the resolved config of the run to resume, if any.

    Raises:
      BadInput: a diff of the identity fields.
    """
    if before is None:
        return
    # Fields that the config leaves open are taken from the previous run.
    steps = config.train.steps or before.train.steps
    capacity = config.data.target_capacity or before.data.target_capacity
    date = config.data.template_date or before.data.template_date
    chosen = dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, steps=steps),
        data=dataclasses.replace(config.data, target_capacity=capacity, template_date=date),
    )
    differences = identity_differences(before, chosen)
    if differences:
        listed = "\n  ".join(differences)
        raise BadInput(
            f"{config.workdir} holds another run; these fields differ:\n  {listed}\nChoose another --workdir."
        )


CHANGED = {
    "data": "the demonstrations changed since this run began; restore the files",
    "plan": "the rows are packed differently than when this run began; resume with the sft_jax version that started it",
}
"""Meaning of a difference in each entry of the record, and the fix."""


def check_same_record(workdir: Location | None, found: dict[str, str]) -> None:
    """Reject data or rows that changed since the run in the workdir began.

    Raises:
      BadInput: with both fingerprints.
    """
    if workdir is None or not (path := workdir.local() / RECORD).is_file():
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    for name, value in found.items():
        if before[name] != value:
            raise BadInput(
                f"{workdir}: {CHANGED[name]}, or choose another --workdir (fingerprint {before[name][:12]}, now "
                f"{value[:12]})"
            )


def claim_workdir(inputs: "Inputs") -> None:
    """Write the files that make the run independent of its inputs; only on process 0.

    Raises:
      BadInput: the workdir cannot be written.
    """
    workdir = inputs.workdir.local()
    model = workdir / MODEL_FILES
    try:
        model.mkdir(parents=True, exist_ok=True)
        save_tokenizer(inputs.pretrained.tokenizer, model)
        for path, text in (
            (model / "config.json", json.dumps(inputs.pretrained.hf_config, indent=2)),
            (model / "generation_config.json", json.dumps(inputs.pretrained.generation_config, indent=2)),
            (workdir / RECORD, json.dumps(inputs.record)),
            (workdir / RUN_CONFIG, to_json(inputs.config)),
        ):
            content = f"{text.rstrip()}\n".encode()
            write_atomic(path, lambda file, content=content: file.write(content))
    except OSError as error:
        raise BadInput(f"workdir {workdir} cannot be written: {error}") from error
    inputs.workdir.publish()
