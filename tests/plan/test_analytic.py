"""The closed form, against the jaxpr and against what was compiled."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sft_jax.config import Mesh
from sft_jax.plan import work
from sft_jax.plan.analytic import update_memory, update_work
from sft_jax.plan.chips import topology
from sft_jax.plan.flops import executed_flops
from sft_jax.plan.sharding import abstract_mesh

PLANS = json.loads((Path(__file__).parents[2] / "configs" / "plans.json").read_text(encoding="utf-8"))
COMPILED = [name for name, kept in PLANS.items() if kept["plan"]["method"] == "compiled"]


@pytest.fixture
def closed_form(small_config):
    """(mesh, options as `small_run`) -> the update's work on eight v5e chips."""

    def make(mesh: Mesh, architecture, **options):
        config, shapes = small_config(mesh, **options)
        return update_work(config, architecture, shapes, abstract_mesh(config, 8), topology("v5e:2x4"))

    return make


@pytest.mark.parametrize("remat", ["none", "minimal", "attention", "full"])
@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize(
    "mesh", [Mesh(fsdp=8), Mesh(fsdp=2, tensor=4), Mesh(data=2, fsdp=4)], ids=["fsdp", "tensor", "data"]
)
def test_the_operations_are_those_of_the_jaxpr(remat, mesh, qk_norm, closed_form, traced_on, small):
    """Products exactly; the kernels as often as they run, one block a row."""
    options = {"remat": remat, "attention": "splash", "length": 512, "targets": 512, "head_chunk": 64}
    options["architecture"] = replace(small, vocab=512, qk_norm=qk_norm)
    expected = executed_flops(traced_on(mesh, **options))
    program = closed_form(mesh, **options)
    # The kernel's backward pass multiplies outputs and their gradients outside of itself: one number a head.
    besides = 2.0 * 8 * 512 * small.depth * small.heads * small.head_dim
    assert 8 * work.product_flops(program) == pytest.approx(expected["dot_general"] - besides, rel=1e-9)
    kernels = expected.total() - expected["dot_general"]
    assert 8 * work.kernel_flops(program) == pytest.approx(kernels, rel=1e-9) and kernels > 0


def test_replicas_send_the_gradients_and_the_heads_for_each_chunk(closed_form, small):
    """As the compiled program does: `test_counts.py` has the same number."""
    found = work.sent_by_axes(closed_form(Mesh(data=8, fsdp=1), small, dtype="float32"))
    layers = 4 * 64 * (2 * 8 * 16 + 2 * 4 * 16 + 3 * 192)
    head = (64 // 32) * 500 * 64
    assert found == {"data": {"all-reduce": pytest.approx(2 * 7 / 8 * 4 * (layers + head))}}


def test_weights_are_put_together_as_each_generation_does_it(small_config, small):
    """For eight devices in a loop of permutes; for more by gathers, on tori of three sides by sums in zeros."""

    def sent(on, fsdp):
        config, shapes = small_config(Mesh(fsdp=fsdp), rows=fsdp, dtype="bfloat16")
        chips = topology(on)
        program = update_work(config, small, shapes, abstract_mesh(config, fsdp), chips)
        found = work.sent_by_axes(program)["fsdp"]
        waits = {one.waits for _, each in work.each(program) if each.name == "weights" for one in each.sent}
        return set(found), found, waits

    kinds, _, waits = sent("v5e:2x4", 8)
    assert kinds == {"collective-permute", "reduce-scatter"} and waits == {False}
    kinds, wide, waits = sent("v5e:4x8", 32)
    assert kinds == {"all-gather", "reduce-scatter"} and waits == {True}
    kinds, deep, waits = sent("v5p:2x4x4", 32)
    assert kinds == {"all-reduce", "reduce-scatter"} and waits == {True}
    assert deep["all-reduce"] == 2 * wide["all-gather"]
    assert sent("tpu7x:2x2x4", 32)[2] == {False}, "cores of their own"


def test_offload_moves_what_attention_keeps(closed_form, small_config, small):
    program = closed_form(Mesh(fsdp=8), small, remat="offload", dtype="bfloat16")
    tokens = 128
    kept = 4 * tokens * (2 * (64 + 2 * 8 * 16 + 2 * 4 * 16) + 4 * 8)
    assert sum(times * one.host for times, one in work.each(program)) == 2 * kept, "there and back"
    config, shapes = small_config(Mesh(fsdp=8), remat="offload", dtype="bfloat16")
    assert update_memory(config, small, shapes, abstract_mesh(config, 8)).host == kept


def test_each_policy_keeps_less_than_the_one_before(small_config, small):
    def peak(remat):
        config, shapes = small_config(Mesh(fsdp=8), remat=remat, length=4096, targets=64)
        return update_memory(config, small, shapes, abstract_mesh(config, 8)).peak

    peaks = [peak(remat) for remat in ("none", "minimal", "attention", "full")]
    assert peaks == sorted(peaks, reverse=True) and len(set(peaks)) == 4
    assert peak("offload") < peak("attention")


def test_there_are_compiled_plans_to_compare_with():
    assert len(COMPILED) >= 8


@pytest.mark.parametrize("name", COMPILED)
def test_the_closed_form_is_near_what_was_compiled(name):
    """Of the shipped configs: memory, time and operations."""
    kept = PLANS[name]
    seconds, peak, executed = kept["closed_form"]
    assert 0.7 < seconds / kept["plan"]["step_seconds"] < 1.3
    assert 0.75 < peak / kept["plan"]["peak_bytes_per_chip"] < 1.25
    assert executed == pytest.approx(kept["plan"]["executed_flops"], rel=0.01)
