"""What the plan says of a layout is what the devices then hold."""

import math
from dataclasses import replace

import jax
import pytest

from sft_jax.config import Mesh, Model, RunConfig, Sharding, Train
from sft_jax.data.pack.batches import Batch
from sft_jax.errors import BadInput
from sft_jax.parallel.mesh import make_mesh
from sft_jax.plan.sharding import abstract_mesh, named_devices, place_all, shards_of, totals
from sft_jax.train.program import make_program
from sft_jax.train.sharding import abstract_batch

SHAPES = Batch(*((1, 8, 128),) * 3, *((1, 8, 64),) * 3)  # type: ignore[arg-type]
LAYOUTS = [
    (Mesh(data=2, fsdp=4), Sharding()),
    (Mesh(data=2, fsdp=2, tensor=2), Sharding()),
    (Mesh(fsdp=2, context=4), Sharding(embed="context+fsdp")),
    (Mesh(fsdp=4, tensor=2), Sharding(kv_heads="none", vocab="none", act_targets="tensor")),
]


def _config(mesh, sharding=None) -> RunConfig:
    return RunConfig(model=Model(path="none"), mesh=mesh, sharding=sharding or Sharding(), train=Train(steps=3))


@pytest.mark.parametrize(("mesh", "sharding"), LAYOUTS)
def test_the_plan_is_what_the_devices_then_hold(small, mesh, sharding):
    config = _config(mesh, sharding)
    placed = place_all(config, small, SHAPES, abstract_mesh(config, 8), "cpu")
    real = make_mesh(mesh)
    program = make_program(config, small, SHAPES, real)
    batch = dict(zip(Batch._fields, zip(abstract_batch(SHAPES), program.batch_layout, strict=True), strict=True))
    [adam, *_] = (part for part in program.state_layout.opt_state if hasattr(part, "mu"))
    moments = {
        f"{name} {key}": (leaf, getattr(adam, name)[key])
        for name in ("mu", "nu")
        for key, leaf in program.state.trainable.items()
    }
    assert adam.mu == adam.nu == program.state_layout.trainable, "moments lie as their parameter does"
    truth = {name: (leaf, program.state_layout.trainable[name]) for name, leaf in program.state.trainable.items()}
    truth |= batch | moments
    seen = set()
    for each in placed:
        if each.name not in truth:
            continue
        leaf, where = truth[each.name]
        assert each.shape == leaf.shape and each.shard_shape == where.shard_shape(leaf.shape), each
        assert each.bytes_per_device == math.prod(each.shard_shape) * leaf.dtype.itemsize
        holders = where.devices_indices_map(leaf.shape)
        order = list(real.devices.flat)
        for shard in shards_of(each, dict(real.shape)):
            for number in shard.devices:
                index = [part.indices(size)[:2] for part, size in zip(holders[order[number]], leaf.shape, strict=True)]
                assert tuple(index) == shard.index, (each.name, number)
        seen.add(each.name)
    assert seen == set(truth)


def test_what_is_replicated_is_counted_and_has_a_reason(small):
    config = _config(Mesh(data=2, fsdp=4))
    placed = {each.name: each for each in place_all(config, small, SHAPES, abstract_mesh(config, 8), "cpu")}
    assert placed["embedding"].copies == 2 and "every replica holds all parameters" in placed["embedding"].why[0]
    assert placed["final_norm.scale"].copies == 8
    assert placed["final_norm.scale"].why[0].startswith("data, fsdp: 64 numbers, too few to shard")
    assert placed["layer_output"].copies == 1 and not placed["layer_output"].why
    assert placed["head_kernel"].why[1] == "fsdp: no dimension is sharded over it (sharding.vocab is tensor)"
    sums = {what: (held, spared) for what, held, spared in totals(list(placed.values()), 8)}
    assert sums["gradient"] == sums["parameter"] and sums["optimizer"][0] == 2 * sums["parameter"][0] + 4
    held, spared = sums["parameter"]
    kernels = sum(each.bytes_per_device for each in placed.values() if each.kind == "parameter" and each.copies == 2)
    assert spared == kernels // 2 + (held - kernels) * 7 // 8


def test_activations_have_the_shapes_of_the_layout(small):
    config = replace(_config(Mesh(fsdp=2, context=4)), model=Model(path="none", dtype="bfloat16", head_chunk=32))
    with pytest.raises(BadInput, match=r"shards of 32 tokens, but the splash kernel .* multiple of 512"):
        place_all(config, small, SHAPES, abstract_mesh(config, 8), "tpu")
    placed = {each.name: each for each in place_all(config, small, SHAPES, abstract_mesh(config, 8), "cpu")}
    assert placed["query"].dtype == "bfloat16" and placed["query"].shard_shape == (4, 32, 8, 16)
    assert placed["logits"].shard_shape == (4, 8, 500), "8 targets of each of 4 rows meet the head at once on a device"
    assert {"layer_input", "key", "value", "attention_out", "mlp_inner", "target_hidden"} <= placed.keys()


def test_devices_are_named_by_the_axes_of_the_mesh():
    sizes = {"data": 2, "fsdp": 4, "tensor": 1}
    assert named_devices((3, 7), sizes) == "fsdp 3, each data"
    assert named_devices((0, 1, 2), sizes) == "data 0, fsdp 0..2"
    assert named_devices(tuple(range(8)), sizes) == "each data, each fsdp"
    assert named_devices((0, 5), sizes) == "devices 0, 5"
    assert named_devices((0,), {"data": 1}) == "the one device"


def test_a_layout_that_does_not_fit_is_refused_as_in_training(small):
    config = _config(Mesh(tensor=8, fsdp=1))
    with pytest.raises(BadInput, match=r"kv_heads 4 is not divisible by tensor = 8(.|\n)*mesh.tensor 4"):
        place_all(config, small, SHAPES, abstract_mesh(config, 8), "cpu")
    assert jax.device_count() == 8
