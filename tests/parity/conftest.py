"""`make parity`: comparisons with the real libraries, in an environment with torch. Not part of `make test`."""

from pathlib import Path

import jax
import pytest
import torch

from sft_jax.api import run
from sft_jax.parallel.mesh import make_mesh

ROOT = Path(__file__).parents[2]
MODEL = ".cache/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

torch.set_num_threads(2)
jax.config.update("jax_platforms", "cpu")


def pytest_addoption(parser) -> None:
    parser.addoption("--model", default=MODEL, help="the real model, a GGUF file; relative to the repository's root")


@pytest.fixture(scope="session")
def model_path(request) -> Path:
    """The real SmolLM2, as a GGUF file."""
    path = ROOT / request.config.getoption("--model")
    assert path.is_file(), f"{path}: no such file. `make parity` fetches it; or give another with --model PATH."
    return path


@pytest.fixture(scope="module")
def one_thread_of_torch():
    """Two of them wait for each other in a spin at every small operation: 30 times slower when a core is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def on_one_device(monkeypatch):
    """Runs take one of the eight simulated devices, as the others do: their batches divide among no more."""
    monkeypatch.setattr(run, "make_mesh", lambda config: make_mesh(config, jax.devices()[:1]))


@pytest.fixture(scope="session")
def quiet_trl() -> dict:
    """Settings of every TRL trainer here: on the CPU in float32, its loss at every step, nothing saved or sent."""
    return {
        "use_cpu": True,
        "bf16": False,
        "activation_checkpointing": False,
        "dataloader_pin_memory": False,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
