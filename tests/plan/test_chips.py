import pytest

from sft_jax.errors import BadInput
from sft_jax.plan.chips import TOPOLOGY_DEVICES, topology_size

NAMES = ["v2:2x2", "v3:4x4", "v4:2x2x1", "v5:2x2x2", "v5p:2x2x1", "v5e:4x4", "v6e:2x4", "tpu7x:2x2x1"]


@pytest.mark.parametrize("name", NAMES)
def test_a_topology_has_as_many_devices_as_libtpu_says(name, tpus_of):
    assert topology_size(name) == len(tpus_of(name))


def test_every_kind_of_topology_is_compared_with_libtpu():
    assert {name.partition(":")[0] for name in NAMES} == set(TOPOLOGY_DEVICES)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("v5litepod:4x4", "unknown kind 'v5litepod'"),
        ("v7x:2x2x1", "tpu7x"),
        ("v5e", "e.g. v5e:4x4"),
        ("v5e:16", "e.g. v5e:4x4"),
        ("v5e:3x4", "even"),
    ],
)
def test_a_topology_that_does_not_exist_is_refused_with_one_that_does(name, words):
    with pytest.raises(BadInput, match=words):
        topology_size(name)
