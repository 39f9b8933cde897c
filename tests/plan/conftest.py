"""A small model's update, compiled for any mesh."""

import math

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from sft_jax.config import Mesh, Model, RunConfig, Sharding, Train
from sft_jax.data.pack.batches import Batch
from sft_jax.model.architecture import Architecture, LayerSpec
from sft_jax.plan.aot import compile_traced, topology_devices, trace_update

SMALL = Architecture(
    vocab=500,
    embed=64,
    mlp=192,
    layers=(LayerSpec(),) * 4,
    heads=8,
    kv_heads=4,
    head_dim=16,
    max_positions=65536,
    tied=True,
)
"""Every size is another, so that an array's shape tells what it is; the vocabulary needs padding over eight devices."""


def small_run(mesh: Mesh, length=128, targets=64, rows=8, sharding=None, **model) -> tuple[RunConfig, Batch]:
    """A config, and the shapes of a batch: `targets` of `length` positions trained."""
    by_position, by_target = (1, rows, length), (1, rows, targets)
    config = RunConfig(
        model=Model(path="none", **{"head_chunk": 32, **model}),
        train=Train(steps=9),
        mesh=mesh,
        sharding=sharding or Sharding(),
    )
    return config, Batch(by_position, by_position, by_position, by_target, by_target, by_target)  # type: ignore[arg-type]


def compile_small(devices, mesh: Mesh, architecture=SMALL, **options):
    """The compiled update on these devices; `options` as `small_run`."""
    config, shapes = small_run(mesh, **options)
    return compile_traced(trace_update(config, architecture, shapes, devices), devices)


@pytest.fixture(scope="package", autouse=True)
def compile_anew():
    """What is tested is what a compiler makes; and a TPU's writes programs that cannot be loaded without a TPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_ENABLE_COMPILATION_CACHE", "false")  # for processes that compile
        jax.config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()
        yield
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()


@pytest.fixture(scope="session")
def traced_on():
    """(mesh, options as `small_run`) -> the traced update on simulated devices, every token a target."""

    def trace(mesh: Mesh, devices=None, architecture=SMALL, **options):
        config, shapes = small_run(mesh, **{"targets": 128, **options})
        devices = devices or jax.devices()[: math.prod(vars(mesh).values())]
        return trace_update(config, architecture, shapes, devices)

    return trace


@pytest.fixture(scope="session")
def small_config():
    return small_run


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
