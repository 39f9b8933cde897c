"""A small model's update, compiled for any mesh."""

import pytest

from sft_jax.config import Mesh, Model, RunConfig, Sharding, Train
from sft_jax.data.batches import Batch
from sft_jax.model.architecture import Architecture
from sft_jax.plan.aot import compile_update, topology_devices

SMALL = Architecture(
    vocab=500, embed=64, mlp=192, layers=4, heads=8, kv_heads=4, head_dim=16, max_positions=65536, tied=True
)
"""Every size is another, so that an array's shape tells what it is; the vocabulary needs padding over eight devices."""


def compile_small(devices, mesh: Mesh, length=128, targets=64, rows=8, sharding=None, architecture=SMALL, **model):
    """The compiled update on one row a batch device, `targets` of `length` positions trained."""
    by_position, by_target = (1, rows, length), (1, rows, targets)
    config = RunConfig(
        model=Model(path="none", **{"head_chunk": 32, **model}),
        train=Train(steps=9),
        mesh=mesh,
        sharding=sharding or Sharding(),
    )
    shapes = Batch(by_position, by_position, by_position, by_target, by_target, by_target)  # type: ignore[arg-type]
    return compile_update(config, architecture, shapes, devices)


@pytest.fixture(scope="session")
def small() -> Architecture:
    return SMALL


@pytest.fixture(scope="session")
def compile_on():
    return compile_small


@pytest.fixture(scope="session")
def tpus_of():
    """(topology, slices) -> its devices; none of them is here."""
    pytest.importorskip("libtpu", reason="libtpu exists for Linux on x86-64 alone")
    return topology_devices
