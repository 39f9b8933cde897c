"""Real runs of the command line on the tiny model: in this process, or in one of its own where that is the point."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sft_jax.cli.main import run_command

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def config_file(tmp_path, tiny_model, demonstrations) -> Path:
    """A config of a short run; its workdir is tmp_path/run."""
    path = tmp_path / "config.py"
    path.write_text(
        f"""from sft_jax.config import Data, Model, Optimizer, RunConfig, Train

def get_config() -> RunConfig:
    return RunConfig(
        workdir={str(tmp_path / "run")!r},
        model=Model(path={str(tiny_model)!r}),
        data=Data(
            train=({str(demonstrations)!r},),
            eval=({str(demonstrations.with_name("held_out.jsonl"))!r},),
            sequence_length=128,
        ),
        optimizer=Optimizer(learning_rate=1e-3, schedule="cosine", warmup_steps=2),
        train=Train(steps=12, batch_size=8, eval_every=6, save_every=4, tensorboard=False),
    )
""",
        encoding="utf-8",
    )
    return path


@pytest.fixture
def run(capfd):
    """(arguments) -> (exit status, stdout, stderr) of `sft-jax` in this process, on its eight simulated devices."""

    def finish(*arguments: object) -> tuple[int, str, str]:
        try:
            status = run_command([str(argument) for argument in arguments])
        except SystemExit as end:  # --help
            status = int(end.code or 0)
        out, err = capfd.readouterr()
        return status, out, err

    return finish


@pytest.fixture
def command():
    """(arguments) -> a started `sft-jax` process with text pipes; it has one device unless it is told otherwise."""
    started = []

    def start(*arguments: object, module: str = "sft_jax") -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, arguments)],
            cwd=ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def process(command):
    """(arguments) -> (exit status, stdout, stderr) of a `sft-jax` process that has ended."""

    def finish(*arguments: object, seconds: float = 240) -> tuple[int, str, str]:
        started = command(*arguments)
        out, err = started.communicate(timeout=seconds)
        return started.returncode, out, err

    return finish


@pytest.fixture
def rows_of():
    """workdir -> the rows of its metrics.jsonl."""

    def read(workdir: Path) -> list[dict]:
        return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]

    return read
