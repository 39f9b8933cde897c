"""Workdirs of sft_jax 0.1 go on: config.json, data fingerprints, and checkpoints whose layers are stacked otherwise.

`written_by_0_1.tar.xz` has three runs of eight steps as 0.1.0 (commit 61c28ff) left them after step 4, with the metrics
of all eight: AdamW on Qwen2 with three full and two windowed layers (which it stacked as five periods), SGD, and a
reward model (train.objective reward).
"""

import json
import tarfile
from pathlib import Path

import pytest

import sft_jax as sft
from sft_jax.config import from_json

EIGHT_DEVICES = {"mesh.fsdp": 4, "mesh.context": 2}  # the runs were of one, with batches of four
ARCHIVE = Path(__file__).with_name("written_by_0_1.tar.xz")


@pytest.fixture(params=["windowed", "sgd", "reward"])
def folder(request, tmp_path, monkeypatch) -> Path:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path / request.param)
    return tmp_path / request.param


def test_a_run_goes_on_where_0_1_left_it(folder):
    before = [json.loads(line) for line in (folder / "metrics-8.jsonl").read_text().splitlines()]
    with sft.Run("config.py", **EIGHT_DEVICES) as run:
        assert run.steps_done == 4
        run.fit()
    after = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in after] == [row["step"] for row in before] == list(range(1, 9))
    for one, other in zip(before[4:], after[4:], strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)
        assert other["tokens"] == one["tokens"]


def test_its_model_is_loaded(folder):
    model = sft.load("run")
    assert all(bool(abs(array).max() > 0) for name, array in model.parameters.items() if name.endswith("kernel"))
    before = from_json((folder / "run" / "config.json").read_text(), "config.json")
    assert before.loss.kind == ("reward" if folder.name == "reward" else "cross_entropy")
    assert before.train.objective is None and (before.optimizer.b1 is None) == (folder.name == "sgd")
