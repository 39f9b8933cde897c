"""The golden models, and loading them in any layout over the eight simulated devices."""

from pathlib import Path

import pytest

from sft_jax.config import Mesh, Sharding
from sft_jax.model.decoder import abstract_parameters
from sft_jax.parallel.mesh import make_mesh
from sft_jax.parallel.rules import shardings
from sft_jax.weights.load import load_parameters, open_model

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(params=sorted(path.name for path in GOLDEN.iterdir()))
def golden(request) -> Path:
    """The directory of each golden model in turn."""
    return GOLDEN / request.param


@pytest.fixture
def llama3() -> Path:
    """The golden model with grouped heads and a head of its own."""
    return GOLDEN / "llama3"


@pytest.fixture
def goldens() -> Path:
    return GOLDEN


@pytest.fixture
def layout_of():
    """(architecture, mesh axes, rules) -> parameter name -> sharding; fsdp takes the devices that are left."""

    def layout_of(architecture, rules=None, **axes):
        shapes, logical = abstract_parameters(architecture)
        mesh = make_mesh(Mesh(**{"fsdp": -1, **axes}))
        return shardings({name: s.shape for name, s in shapes.items()}, logical, mesh, rules or Sharding())

    return layout_of


@pytest.fixture
def load(layout_of):
    """(path) -> (ModelFiles, parameters), over eight devices."""

    def load(path, architecture=None, rules=None, dtype="float32", **axes):
        files = open_model(str(path))
        architecture = architecture or files.architecture
        return files, load_parameters(files, architecture, layout_of(architecture, rules, **axes), dtype)

    return load
