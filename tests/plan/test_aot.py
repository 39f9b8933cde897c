"""Compiled updates: memory a device, the head's work, and TPUs that are not here."""

import math
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax.config import Mesh
from sft_jax.errors import BadInput
from sft_jax.model.attention import splash
from sft_jax.model.attention.dispatch import attend
from sft_jax.model.attention.reference import TokenPositions
from sft_jax.parallel.mesh import make_mesh
from sft_jax.parallel.rules import Layout
from sft_jax.plan.aot import memory_of

LONG = 65_536


@pytest.mark.slow
@pytest.mark.parametrize("context_attention", ["all_gather", "ring"])
def test_at_64k_tokens_the_memory_of_a_device_falls_as_the_context_axis_grows(compile_on, small, context_attention):
    one_layer = replace(small, layers=small.layers[:1], heads=2, kv_heads=1)

    def temporaries(context):
        compiled = compile_on(
            jax.devices()[:context], Mesh(fsdp=1, context=context), length=LONG, targets=1024, rows=1,
            architecture=one_layer, context_attention=context_attention, remat="full",
        )  # fmt: skip
        return memory_of(compiled).temporaries

    four, eight = temporaries(4), temporaries(8)
    assert eight < 0.62 * four, (four, eight)
    assert eight < 0.02 * LONG * LONG * 4, "and nothing is near a [T, T] array"


@pytest.mark.slow
def test_the_heads_work_divides_by_the_context_axis(compile_on, small):
    """The flops that XLA counts of a model that is nearly all head (its chunk covers all targets: no loop)."""
    headed = replace(small, layers=small.layers[:1], vocab=8192, mlp=8)

    def flops(**mesh):
        devices = jax.devices()[: math.prod(mesh.values())]
        compiled = compile_on(devices, Mesh(fsdp=1, **mesh), rows=1, targets=128, architecture=headed, head_chunk=128)
        return compiled.cost_analysis()["flops"]

    whole = flops(context=1)
    assert whole > 6 * 8192 * 64 * 128, "three products of 128 targets and the vocabulary"
    assert flops(context=4) < 0.3 * whole
    assert flops(context=4) == pytest.approx(flops(context=8) * 2, rel=0.2)


TOPOLOGIES = (
    "v5e:2x4",
    pytest.param("v5p:2x2x1", marks=pytest.mark.slow),
    pytest.param("v6e:2x4", marks=pytest.mark.slow),
    "tpu7x:2x2x1",
)


@pytest.fixture(params=TOPOLOGIES)
def tpus(request, tpus_of):
    """The devices of a TPU of each generation."""
    return tpus_of(request.param)


@pytest.mark.parametrize("name", ["v6e:4x4", "v5p:4x4x4", "tpu7x:2x4x4", "v4:2x2x4"])
def test_an_axis_may_lie_along_a_part_of_a_side_of_the_torus(name, tpus_of):
    devices = tpus_of(name)
    mesh = make_mesh(Mesh(data=1, fsdp=-1, tensor=2), devices)
    assert {device.id for device in mesh.devices.flat} == {device.id for device in devices}


@pytest.mark.parametrize("context_attention", ["all_gather", "ring"])
def test_the_attention_of_a_divided_row_compiles_for_every_tpu(tpus, context_attention):
    """Forward and backward, with a window and a soft-cap, heads over tensor and rows over context."""
    mesh = make_mesh(Mesh(fsdp=-1, tensor=2, context=2), tpus)

    def loss(q, k, v, places):
        how = "auto", context_attention, Layout(mesh), q, k, v, places, places
        return (attend(*how) * attend(*how, window=200, softcap=20.0)).sum()

    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp", "context"))
    q, k = (
        jax.ShapeDtypeStruct((mesh.shape["fsdp"], 1024, heads, 64), jnp.bfloat16, sharding=rows) for heads in (8, 4)
    )
    places = TokenPositions(*(jax.ShapeDtypeStruct(q.shape[:2], jnp.int32, sharding=rows),) * 2)
    traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(q, k, k, places)
    text = traced.lower(lowering_platforms=("tpu",)).compile().as_text()
    kernels = [line for line in text.splitlines() if 'custom_call_target="tpu_custom_call"' in line]
    assert len(kernels) >= 6, "three kernels for each of the two attentions"
    seen = 1024 if context_attention == "all_gather" else 512
    keys = re.findall(rf"bf16\[(?:1,)?2,{seen},64\]", kernels[0].partition("custom-call(")[2])
    assert len(keys) >= 2, "the kernel reads the two key heads of this device and repeats none"


def test_the_kernel_skips_the_blocks_that_the_mask_hides():
    """Of 8 x 8 blocks of 512, those below and on the diagonal; of a window of 600 tokens, at most three a row."""

    def blocks(window, offset=0):
        info = splash._kernel(True, 4, 4096, 4096, offset, window, None).fwd_mask_info
        return int((np.asarray(info.block_mask) > 0).sum())

    assert blocks(None) == 8 * 9 // 2
    assert blocks(600) == 1 + 2 + 6 * 3
    assert blocks(None, offset=4096) == 64, "of the keys before a shard, all"
    assert blocks(600, offset=4096) == 3, "but those of a window"


def test_an_update_compiles_for_a_tpu_and_keeps_its_layers_apart(compile_on, small, tpus_of):
    devices = tpus_of("v5e:2x4")
    compiled = compile_on(devices, Mesh(fsdp=4, tensor=2), dtype="bfloat16", remat="full")
    text, a = compiled.as_text(), small
    found = memory_of(compiled)
    assert 0 < found.arguments < found.peak
    gathered = re.findall(r"= bf16\[([\d,]+)\]\S* all-gather(?:-start)?\(", text)
    assert gathered
    assert not any(dims.split(",")[0] == str(a.depth) for dims in gathered), "a layer at a time"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("topology", "mesh", "options"),
    [
        ("v5p:2x2x1", Mesh(fsdp=2, context=2), {"context_attention": "ring", "remat": "offload"}),
        ("v6e:2x4", Mesh(fsdp=2, context=4), {"remat": "minimal"}),
        ("tpu7x:2x2x1", Mesh(data=2, fsdp=2, tensor=2), {"remat": "dots"}),
        ("v5e:2x4", Mesh(fsdp=8), {"scan_layers": False}),
    ],
)
def test_layouts_and_remat_policies_compile_for_tpus(compile_on, tpus_of, topology, mesh, options):
    compiled = compile_on(tpus_of(topology), mesh, length=512, dtype="bfloat16", **options)
    assert memory_of(compiled).peak > 0


def test_slices_lie_on_the_data_axis_and_nothing_else_goes_between_them(tpus_of):
    devices = tpus_of("v5e:2x4", slices=2)
    mesh = make_mesh(Mesh(data=4, fsdp=-1), devices)
    of_slice = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    assert (of_slice == of_slice.reshape(4, -1)[:, 0].reshape(4, 1, 1, 1, 1)).all()
    assert of_slice[:2].max() == 0 and of_slice[2:].min() == 1
    with pytest.raises(BadInput, match=r"mesh.data is 1, but the 16 devices form 2 slices.*--mesh.data 2"):
        make_mesh(Mesh(fsdp=16), devices)


def test_an_unknown_topology_is_refused_with_the_spelling(tpus_of):
    with pytest.raises(BadInput, match=r"topology 'v9:2x2'.*Examples of topologies: v4:2x2x4, v5e:4x4"):
        tpus_of("v9:2x2")
