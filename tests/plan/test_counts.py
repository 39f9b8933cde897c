"""Counts in the compiled program, against those in the jaxpr and against sizes known by hand."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax.config import Mesh
from sft_jax.model.decoder import abstract_parameters
from sft_jax.parallel.mesh import make_mesh
from sft_jax.plan import work
from sft_jax.plan.counts import works
from sft_jax.plan.flops import executed_flops
from sft_jax.plan.hlo import executed, parse, trips
from sft_jax.plan.work import Stretch


def _module(function, *arguments):
    return parse(jax.jit(function).lower(*arguments).compile().as_text())


def _works(module, mesh=None, kernels=None) -> Stretch:
    return works(module, mesh or make_mesh(Mesh(fsdp=1), jax.devices()[:1]), kernels or {}, 1.0)


def products(module, mesh=None) -> float:
    return work.product_flops(_works(module, mesh))


def hbm_bytes(module) -> float:
    return work.hbm_bytes(_works(module))


def sent(module, mesh):
    """Every collective, and how often it runs."""
    return [(one, times) for times, each in work.each(_works(module, mesh)) for one in each.sent]


def test_a_loop_counts_as_often_as_it_runs():
    def loop(x, kernels):
        return jax.lax.scan(lambda x, kernel: (jnp.sin(x @ kernel), None), x, kernels)[0]

    module = _module(loop, jnp.ones((8, 16)), jnp.ones((11, 16, 16)))
    loops = [each for body in module.computations.values() for each in body if each.opcode == "while"]
    assert [trips(module, each) for each in loops] == [11]
    assert products(module) == 11 * 2 * 8 * 16 * 16


def test_a_loop_that_counts_in_steps_runs_as_many_times():
    text = """HloModule m
%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %p = (s32[], f32[4]{0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %two = s32[] constant(2)
  %next = s32[] add(%i, %two)
  %x = f32[4]{0} get-tuple-element(%p), index=1
  ROOT %t = (s32[], f32[4]{0}) tuple(%next, %x)
}

%condition (p: (s32[], f32[4])) -> pred[] {
  %p = (s32[], f32[4]{0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %limit = s32[] constant(LIMIT)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (a: (s32[], f32[4])) -> (s32[], f32[4]) {
  %a = (s32[], f32[4]{0}) parameter(0)
  ROOT %loop = (s32[], f32[4]{0}) while(%a), condition=%condition, body=%body
}
"""
    for limit, times in ((7, 4), (8, 4), (9, 5)):
        module = parse(text.replace("LIMIT", str(limit)))
        (loop,) = (each for each in module.computations["main"] if each.opcode == "while")
        assert trips(module, loop) == times
        assert {each.times for each in executed(module) if each.computation == "body"} == {times}


def test_every_branch_of_a_conditional_counts():
    def either(x, i):
        return jax.lax.switch(i, [lambda x: x @ x, lambda x: x @ x.T @ x, lambda x: x], x)

    assert products(_module(either, jnp.ones((64, 64)), 1)) == 3 * 2 * 64**3


def test_a_loop_of_unknown_length_is_refused():
    module = _module(lambda x: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ x, x), jnp.ones((4, 4)))
    with pytest.raises(ValueError, match="does not compare a counter with a constant"):
        products(module)


@pytest.mark.slow
@pytest.mark.parametrize(
    "mesh", [Mesh(fsdp=1), Mesh(fsdp=8), Mesh(fsdp=2, tensor=2, context=2)], ids=["one", "fsdp", "three"]
)
def test_the_compiled_products_are_those_of_the_jaxpr_divided_over_the_devices(mesh, compile_on, traced_on):
    options = {"attention": "reference", "remat": "full"}
    traced = traced_on(mesh, **options)
    devices = jax.devices()[: math.prod(vars(mesh).values())]
    module = parse(compile_on(devices, mesh, targets=128, **options).as_text())
    assert products(module, make_mesh(mesh, devices)) * len(devices) == executed_flops(traced).total()


@pytest.mark.slow
def test_the_products_that_tpus_compile_to_loops_of_permutes_are_counted_whole(compile_on, traced_on, small, tpus_of):
    """XLA divides products over fsdp into loops that pass the kernels round; the kernels of attention stand apart."""
    mesh, devices = Mesh(fsdp=8), tpus_of("v5e:2x4")
    wide = replace(small, embed=512, mlp=2048, head_dim=64)
    options = {
        "length": 1024, "targets": 1024, "rows": 16, "remat": "full", "dtype": "bfloat16", "head_chunk": 512,
        "architecture": wide,
    }  # fmt: skip
    counted = executed_flops(traced_on(mesh, devices, **options))["dot_general"]
    module = parse(compile_on(devices, mesh, **options).as_text())
    assert products(module, make_mesh(mesh, devices)) * 8 == pytest.approx(counted, rel=1e-3)
    assert any(one.kind == "collective-permute" for one, _ in sent(module, make_mesh(mesh, devices)))


@pytest.mark.slow
def test_data_parallel_replicas_send_each_gradient_once_and_the_heads_for_each_chunk(compile_on, small):
    mesh = Mesh(data=8, fsdp=1)
    module = parse(compile_on(jax.devices(), mesh, targets=128).as_text())
    found = [(one, times) for one, times in sent(module, make_mesh(mesh, jax.devices())) if one.bytes > 1000]
    assert {(one.kind, one.axes) for one, _ in found} == {("all-reduce", ("data",))}
    shapes = {name: 4 * np.prod(leaf.shape) for name, leaf in abstract_parameters(small)[0].items()}
    chunks = 128 // 32
    # The embedding is tied: a part of its gradient comes from the lookup.
    expected = 2 * 7 / 8 * (sum(shapes.values()) + chunks * shapes["embedding"])
    assert sum(one.bytes * times for one, times in found) == pytest.approx(expected, rel=0.01)


def test_a_product_reads_its_operands_and_writes_its_result():
    module = _module(lambda a, b: a @ b, jnp.ones((256, 128)), jnp.ones((128, 512)))
    assert hbm_bytes(module) == 4 * (256 * 128 + 128 * 512 + 256 * 512)


def test_a_slice_reads_the_slice_and_an_update_in_place_writes_the_update():
    rows = jnp.ones((64, 256))
    cut = _module(lambda x, i: jax.lax.dynamic_slice_in_dim(x, i, 2) * 2, rows, 3)
    assert hbm_bytes(cut) == pytest.approx(2 * 2 * 256 * 4, abs=64)

    def fill(rows):
        return jax.lax.fori_loop(
            0, 64, lambda i, x: jax.lax.dynamic_update_slice(x, jnp.full((1, 256), i * 1.0), (i, 0)), rows
        )

    moved = hbm_bytes(parse(jax.jit(fill, donate_argnums=0).lower(rows).compile().as_text()))
    assert moved < 4 * rows.nbytes  # not 64 times the whole
