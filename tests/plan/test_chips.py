import pytest

from sft_jax.errors import BadInput
from sft_jax.plan.chips import CHIPS, GIB, chip_of, peak_flops, topology, topology_name

NAMES = ["v4:2x2x1", "v5p:2x2x1", "v5p:1x1x1", "v5e:4x4", "v5e:1x1", "v6e:2x4", "tpu7x:2x2x1"]


@pytest.mark.parametrize("name", NAMES)
def test_a_topology_has_as_many_devices_as_libtpu_says(name, tpus_of):
    devices = tpus_of(name)
    found = topology(name)
    assert found.devices == len(devices)
    assert chip_of(devices[0].device_kind) == found.chip


def test_every_kind_of_tpu_is_compared_with_libtpu():
    assert {name.partition(":")[0] for name in NAMES} == {name for name, chip in CHIPS.items() if chip.sides}


def test_slices_multiply_the_chips():
    two = topology("v5p:4x4x8", 2)
    assert (two.chips, two.devices) == (256, 256)
    assert topology("tpu7x:4x4x8", 2).devices == 512


def test_gpus_are_given_by_their_number():
    sixteen = topology("h100:16")
    assert (sixteen.chips, sixteen.devices, sixteen.is_gpu) == (16, 16, True)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("v5litepod:4x4", "use v5e:4x4"),
        ("v5litepod-16", "v5litepod-16 use v5e:4x4"),
        ("v5e-8", "use v5e:2x4"),
        ("v6e-256", "use v6e:16x16"),
        ("v5p-128", "use v5p:4x4x4 .128 counts cores"),
        ("v5p-8", "use v5p:2x2x1"),
        ("ironwood-64", "use tpu7x:4x4x4"),
        ("v7x:2x2x1", "use tpu7x:2x2x1"),
        ("h100-8", "use h100:8"),
        ("v5q:4x4", "Did you mean .*'v5p'"),
        ("potato", "Examples of topologies: v4:2x2x4, v5e:4x4"),
        ("v5e", "e.g. v5e:4x4"),
        ("v5e:16", "e.g. v5e:4x4"),
        ("v5e:4x4x4", "2 sides"),
        ("v5p:4x4", "3 sides"),
        ("v5e:3x4", "even"),
        ("v5e:0x4", "e.g. v5e:4x4"),
        ("h100:8x8", "number of GPUs"),
    ],
)
def test_a_topology_that_does_not_exist_is_refused_with_one_that_does(name, words):
    with pytest.raises(BadInput, match=words):
        topology(name)


def test_gpus_have_no_slices():
    with pytest.raises(BadInput, match="nodes of 8"):
        topology("h100:8", 2)


@pytest.mark.parametrize("kind", [kind for kind, chip in CHIPS.items() if chip.sides])
@pytest.mark.parametrize("chips", [1, 4, 8, 16, 64, 256, 4096])
def test_what_is_spelled_is_a_topology_of_so_many_chips(kind, chips):
    assert topology(topology_name(kind, chips)).chips == chips


def test_peaks_are_those_of_the_datasheets_for_each_device_that_jax_shows():
    """Ironwood has two; the longest name that fits decides."""
    assert peak_flops("TPU v5 lite") == 197e12 and peak_flops("TPU v5") == 459e12
    assert peak_flops("TPU7x") == 2307e12 / 2 and peak_flops("TPU v4") == 275e12
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12 and peak_flops("cpu") is None
    assert CHIPS["v6e"].memory == 32 * GIB
