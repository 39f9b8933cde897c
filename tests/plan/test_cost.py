"""Seconds from work, against what one computes by hand."""

import pytest

from sft_jax.plan import assumptions
from sft_jax.plan.chips import CHIPS, topology
from sft_jax.plan.cost import estimate
from sft_jax.plan.work import Product, Region, Transfer, Work, causal_imbalance, hbm_bytes, product_flops, sent_by_axes

V6E = topology("v6e:2x4")
LARGE = Work("large", products=(Product(4096, 4096, 4096),))
LARGE_SECONDS = 2 * 4096**3 / (918e12 * assumptions.MATMUL)


def seconds(*works, on=V6E) -> float:
    return estimate(Region("update", 1, works), on).step_seconds


def sent(kind="all-gather", size=1e9, devices=8, islands=1, waits=True) -> Work:
    return Work("sends", sent=(Transfer(kind, ("fsdp",), size, devices, islands, waits),))


def test_a_large_product_runs_at_its_fraction_of_the_peak():
    assert seconds(LARGE) == pytest.approx(LARGE_SECONDS)


def test_a_side_that_does_not_fill_the_matrix_unit_costs_as_much_as_one_that_does():
    short, full = (Work("x", products=(Product(8192, k, 8192),)) for k in (64, 256))
    assert seconds(short) == pytest.approx(seconds(full))
    assert seconds(short, on=topology("v5p:2x2x1")) == pytest.approx(seconds(full, on=topology("v5p:2x2x1")) / 2)


def test_what_only_reads_and_writes_waits_for_the_memory():
    assert seconds(Work("add", hbm=1640e6)) == pytest.approx(1e-3 / assumptions.MEMORY)
    assert seconds(LARGE._replace(hbm=1.0)) == pytest.approx(LARGE_SECONDS), "the slower of the two, not the sum"


def test_heads_narrower_than_the_matrix_unit_slow_attention_down():
    wide, narrow = (Work("attention", kernel_flops=1e12, head_dim=h) for h in (256, 128))
    assert seconds(narrow) == pytest.approx(2 * seconds(wide))


def test_all_wait_for_the_device_that_sees_the_whole_row():
    even = Work("attention", kernel_flops=1e12, head_dim=256)
    assert seconds(even._replace(imbalance=causal_imbalance(4))) == pytest.approx(7 / 4 * seconds(even))


def test_loops_within_loops_multiply():
    inner = Region("inner", 5, (LARGE,))
    program = Region("update", 1, (Region("outer", 3, (inner, LARGE)),))
    assert estimate(program, V6E).step_seconds == pytest.approx(18 * LARGE_SECONDS)
    assert product_flops(program) == 18 * 2 * 4096**3


def test_a_collective_that_waits_adds_and_one_beside_hides():
    alone = seconds(sent())
    assert seconds(LARGE, sent()) == pytest.approx(LARGE_SECONDS + alone)
    assert seconds(LARGE, sent(waits=False)) == pytest.approx(max(LARGE_SECONDS, alone))
    many = Region("loop", 50, (LARGE, LARGE, LARGE, sent(size=1e6, waits=False)))
    assert seconds(many) == pytest.approx(150 * LARGE_SECONDS)


def test_bytes_go_over_the_links_of_every_side_that_a_group_lies_along():
    link, share = 100e9 * assumptions.LINK, 1.0
    # 2x4 chips, no side of which is closed: two sides of half a ring each.
    assert seconds(sent(devices=8)) == pytest.approx(share * 1e9 / (2 * link))
    assert seconds(sent(devices=4)) == pytest.approx(share * 1e9 / link), "along one open side"
    pod = topology("v6e:16x16")
    assert seconds(sent(devices=256), on=pod) == pytest.approx(1e9 / (4 * link)), "two closed sides"
    assert seconds(sent("collective-permute", devices=256), on=pod) == pytest.approx(1e9 / (2 * link)), "one ring"
    assert seconds(sent(devices=64), on=topology("v5p:4x4x4")) == pytest.approx(1e9 / (6 * link)), "three closed sides"


def test_what_crosses_slices_goes_through_the_data_centres_network():
    """An all-reduce of X bytes over 2 slices of 4: within a slice 2 * 3/4 X, between them 2 * 1/2 of the share X/4."""
    whole = 1e9
    found = estimate(Region("u", 1, (sent("all-reduce", 2 * whole * 7 / 8, 8, islands=2),)), topology("v6e:2x2", 2))
    assert found.busy["dcn"] == pytest.approx(whole / 4 / (12.5e9 * assumptions.NETWORK))
    assert found.busy["ici"] == pytest.approx(2 * whole * 3 / 4 / (2 * 100e9 * assumptions.LINK))
    only_across = estimate(Region("u", 1, (sent("all-reduce", 1e9, 2, islands=2),)), topology("v6e:2x2", 2))
    assert only_across.busy["ici"] == 0 and only_across.bound_by == "dcn"


def test_transfers_to_the_host_run_beside():
    kept = Work("kept", host=1e9, waits=False)
    assert seconds(kept) == pytest.approx(1e9 / (32e9 * assumptions.HOST))
    assert seconds(Region("layers", 1, (Region("deep", 400, (LARGE,)), kept))) == pytest.approx(400 * LARGE_SECONDS)


def test_the_resource_that_needs_the_most_bounds():
    for work, name in ((LARGE, "compute"), (Work("a", hbm=1e9), "hbm"), (sent(), "ici"), (Work("h", host=1e9), "host")):
        assert estimate(Region("u", 1, (work,)), V6E).bound_by == name


def test_two_devices_a_chip_share_what_it_has():
    chip = CHIPS["tpu7x"]
    assert chip.devices == 2
    assert seconds(LARGE, on=topology("tpu7x:2x2x1")) == pytest.approx(2 * 2 * 4096**3 / (2307e12 * assumptions.MATMUL))


def test_bytes_are_summed_over_loops():
    program = Region("u", 1, (Region("loop", 7, (Work("a", hbm=3.0), sent(size=2.0))), sent("all-reduce", size=5.0)))
    assert hbm_bytes(program) == 21
    assert sent_by_axes(program) == {"fsdp": {"all-gather": 14.0, "all-reduce": 5.0}}
