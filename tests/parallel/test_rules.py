import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from sft_jax.config import Mesh, Sharding
from sft_jax.errors import BadInput
from sft_jax.parallel.mesh import mesh_sizes
from sft_jax.parallel.nearest import nearest_mesh
from sft_jax.parallel.rules import ONE_DEVICE, Activation, Layout, recorded_activations, shardings, spec


def test_logical_axes_become_mesh_axes_by_the_rules():
    assert spec(("layers", "embed", "heads"), Sharding()) == PartitionSpec(None, ("fsdp", "context"), "tensor")
    assert spec(("act_batch", "act_length", None), Sharding()) == PartitionSpec(("data", "fsdp"), "context", None)
    assert spec(("embed",), Sharding(embed="none")) == PartitionSpec(None)


def test_an_unknown_logical_axis_is_refused_with_the_nearest():
    with pytest.raises(BadInput, match=r"unknown logical axis 'embd'. Did you mean 'embed'"):
        spec(("embd",), Sharding())


def test_two_dimensions_on_one_mesh_axis_are_refused():
    with pytest.raises(BadInput, match="'vocab' and 'embed' are both sharded over mesh axis 'tensor'"):
        spec(("vocab", "embed"), Sharding(embed="tensor"))


def test_an_indivisible_dimension_names_parameter_axis_numbers_and_a_layout_that_works(mesh_of):
    with pytest.raises(BadInput) as error:
        shardings({"w": (6, 9)}, {"w": ("embed", "heads")}, mesh_of(fsdp=2, tensor=4), Sharding())
    message = str(error.value)
    assert "parameter w: heads 9 is not divisible by tensor = 4" in message
    assert "--sharding.heads none" in message and "3 shards" in message
    assert "embed" not in message


def test_shard_divides_an_array_and_refuses_a_wrong_number_of_axes(mesh_of):
    layout = Layout(mesh_of(fsdp=4))
    placed = jax.jit(lambda x: layout.shard(x, "act_batch", None))(jnp.ones((8, 3)))
    assert placed.sharding.shard_shape(placed.shape) == (2, 3)
    for one in (layout, ONE_DEVICE):
        with pytest.raises(ValueError, match="axes"):
            one.shard(jnp.ones((8, 3)), "act_batch")
        with pytest.raises(BadInput, match="unknown logical axis"):
            one.shard(jnp.ones(8), "rows", name="x")


def test_one_axis_takes_the_rest_of_the_devices():
    assert mesh_sizes(Mesh(data=2, fsdp=-1), 8) == {"data": 2, "fsdp": 4, "tensor": 1, "context": 1, "expert": 1}


@pytest.mark.parametrize(
    ("mesh", "words"),
    [(Mesh(data=2, fsdp=3), ["6 devices", "found 8"]), (Mesh(data=3, fsdp=-1), ["a multiple of 3", "found 8"])],
)
def test_a_mesh_that_is_not_the_devices_names_both_numbers(mesh, words):
    with pytest.raises(BadInput) as error:
        mesh_sizes(mesh, 8)
    assert all(word in str(error.value) for word in words)


def test_rows_are_rounded_up_to_what_the_layout_divides(mesh_of):
    assert ONE_DEVICE.round_up_batch(3) == 3
    assert [Layout(mesh_of(data=2, fsdp=2)).round_up_batch(size) for size in (1, 4, 5)] == [4, 4, 8]


def test_activations_are_recorded_with_their_axes_while_tracing(mesh_of):
    layout = Layout(mesh_of(fsdp=2))
    with recorded_activations() as found:
        for _ in range(2):
            jax.eval_shape(lambda x: layout.shard(x, "act_batch", "act_embed", name="hidden"), jnp.ones((4, 3)))
    assert found == [Activation("hidden", (4, 3), jnp.dtype("float32"), ("act_batch", "act_embed"))]


def test_an_activation_that_does_not_divide_is_refused_by_its_name(mesh_of):
    layout = Layout(mesh_of(fsdp=4))
    with pytest.raises(BadInput, match="activation hidden: act_batch 6"):
        jax.eval_shape(lambda x: layout.shard(x, "act_batch", None, name="hidden"), jnp.ones((6, 3)))


def test_the_nearest_mesh_has_as_many_devices_and_differs_least():
    sizes = {"data": 1, "fsdp": 4, "tensor": 8, "context": 1, "expert": 1}
    assert nearest_mesh(sizes, lambda mesh: mesh.shape["tensor"] <= 4) == {**sizes, "fsdp": 8, "tensor": 4}
    assert nearest_mesh(sizes, lambda mesh: mesh.shape["fsdp"] == 1) == {**sizes, "fsdp": 1, "data": 4}
    assert nearest_mesh(sizes, lambda mesh: False) is None
