"""launch/skypilot: the run commands as a shell makes them; a real SkyPilot takes the files."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
FILES = sorted((ROOT / "launch" / "skypilot").glob("*.yaml"))
NODES = {
    "SKYPILOT_NODE_IPS": "10.0.0.5\n10.0.0.6",
    "SKYPILOT_NUM_NODES": "2",
    "SKYPILOT_NODE_RANK": "1",
    "SKYPILOT_NUM_GPUS_PER_NODE": "8",
}
EXPECTED = {
    "tpu.yaml": ["--distributed.auto", "True", "--distributed.devices", "16"],
    "gpu.yaml": [
        "--distributed.coordinator", "10.0.0.5:9876", "--distributed.processes", "2", "--distributed.process-id", "1",
        "--distributed.devices", "16",
    ],
}  # fmt: skip


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_run_command_gets_its_words_and_restarts_on_42(path, tmp_path):
    task = yaml.safe_load(path.read_text(encoding="utf-8"))
    program = tmp_path / ".venv" / "bin" / "sft-jax"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\nexit 42\n")
    program.chmod(0o755)
    environment = {**os.environ, **NODES, "RUN": "configs/a.py --workdir '/runs/a b'"}
    done = subprocess.run(["bash", "-c", task["run"]], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 42 and task["resources"]["job_recovery"]["recover_on_exit_codes"] == [42]
    assert done.stdout.splitlines() == ["train", "configs/a.py", "--workdir", "/runs/a b", *EXPECTED[path.name]]
    assert set(task["secrets"].values()) == {""}  # given by the caller, written nowhere


@pytest.mark.slow
def test_skypilot_takes_the_files(tmp_path):
    program = "import sys, sky; [print(sky.Task.from_yaml(f).resources) for f in sys.argv[1:]]"
    python = ROOT / ".cache" / "launchers" / "bin" / "python"
    done = subprocess.run(
        [python, "-c", program, *FILES], env={**os.environ, "HOME": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "'H100': 8" in done.stdout and "'tpu-v6e-16': 1" in done.stdout and done.stdout.count("[Spot]") == 2
