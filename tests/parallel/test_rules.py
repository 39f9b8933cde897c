import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from sft_jax.config import Mesh, Sharding
from sft_jax.errors import BadInput
from sft_jax.parallel.mesh import mesh_sizes
from sft_jax.parallel.rules import layout, shard, shardings, spec


def test_logical_axes_become_mesh_axes_by_the_rules():
    assert spec(("layers", "embed", "heads"), Sharding()) == PartitionSpec(None, ("fsdp", "context"), "tensor")
    assert spec(("act_batch", "act_length", None), Sharding()) == PartitionSpec(("data", "fsdp"), "context", None)
    assert spec(("embed",), Sharding(embed="none")) == PartitionSpec(None)


def test_an_unknown_logical_axis_is_refused_with_the_nearest():
    with pytest.raises(BadInput, match=r"unknown logical axis 'embd'. Did you mean 'embed'"):
        spec(("embd",), Sharding())


def test_two_dimensions_on_one_mesh_axis_are_refused():
    with pytest.raises(BadInput, match="'vocab' and 'embed' are both divided over mesh axis 'tensor'"):
        spec(("vocab", "embed"), Sharding(embed="tensor"))


def test_an_indivisible_dimension_names_parameter_axis_numbers_and_a_layout_that_works(mesh_of):
    with pytest.raises(BadInput) as error:
        shardings({"w": (6, 9)}, {"w": ("embed", "heads")}, mesh_of(fsdp=2, tensor=4), Sharding())
    message = str(error.value)
    assert "parameter w: heads 9 is not divisible by tensor = 4" in message
    assert "--sharding.heads none" in message and "3 parts" in message
    assert "embed" not in message


def test_shard_divides_an_array_and_refuses_a_wrong_number_of_axes(mesh_of):
    with layout(mesh_of(fsdp=4), Sharding()):
        placed = jax.jit(lambda x: shard(x, "act_batch", None))(jnp.ones((8, 3)))
        assert placed.sharding.shard_shape(placed.shape) == (2, 3)
        with pytest.raises(ValueError, match="axes"):
            shard(jnp.ones((8, 3)), "act_batch")
        with pytest.raises(BadInput, match="unknown logical axis"):
            shard(jnp.ones(8), "rows", name="x")


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
