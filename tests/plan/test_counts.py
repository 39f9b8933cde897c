"""Counts in the compiled program, against those in the jaxpr and against sizes known by hand."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

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
from sft_jax.plan.hlo import parse, trips
from sft_jax.plan.work import Region


def _module(function, *arguments):
    return parse(jax.jit(function).lower(*arguments).compile().as_text())


def _works(module, mesh=None, kernels=None) -> Region:
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
        assert [count for count, each in work.each(_works(module)) if each.name == "next"] == [times]


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


TPU_PROGRAM = """HloModule m
%copy_fusion (p: bf16[8,64,128]) -> bf16[8,64,128] {
  %p = bf16[8,64,128]{2,1,0} parameter(0)
  ROOT %c = bf16[8,64,128]{2,1,0} copy(%p)
}

%slicing (stack: bf16[8,64,128], i: s32[]) -> bf16[64,128] {
  %stack = bf16[8,64,128]{2,1,0} parameter(0)
  %same = bf16[8,64,128]{2,1,0} fusion(%stack), kind=kLoop, output_to_operand_aliasing={{}: (0, {})}, calls=%copy_fusion
  %i = s32[] parameter(1)
  %part = bf16[1,64,128]{2,1,0} dynamic-slice(%same, %i), dynamic_slice_sizes={1,64,128}
  ROOT %flat = bf16[64,128]{1,0} bitcast(%part)
}

%outer (stack.1: bf16[8,64,128], i.1: s32[]) -> bf16[64,128] {
  %stack.1 = bf16[8,64,128]{2,1,0} parameter(0)
  %i.1 = s32[] parameter(1)
  ROOT %inner = bf16[64,128]{1,0} fusion(%stack.1, %i.1), kind=kLoop, calls=%slicing
}

%updating (stack.2: bf16[8,64,128], row: bf16[1,64,128], i.2: s32[]) -> bf16[8,64,128] {
  %stack.2 = bf16[8,64,128]{2,1,0} parameter(0)
  %row = bf16[1,64,128]{2,1,0} parameter(1)
  %i.2 = s32[] parameter(2)
  %new = bf16[8,64,128]{2,1,0} dynamic-update-slice(%stack.2, %row, %i.2)
  ROOT %as = bf16[8,64,128]{2,1,0} bitcast(%new)
}

%all-reduce-scatter.1 (given: f32[128,64]) -> f32[128,16] {
  %given = f32[128,64]{1,0} parameter(0)
  %sum = f32[128,64]{1,0} all-reduce(%given), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %own = f32[128,16]{1,0} slice(%sum), slice={[0:128], [0:16]}
}

%aside (x.1: bf16[64,128]) -> bf16[64,128] {
  %x.1 = bf16[64,128]{1,0} parameter(0)
  ROOT %reduced = bf16[64,128]{1,0} all-reduce(%x.1), channel_id=2, replica_groups={{0,1,2,3}}, to_apply=%add
}

ENTRY %main (stack.3: bf16[8,64,128], i.3: s32[], g: f32[128,64], q: bf16[2,16,32]) -> bf16[64,128] {
  %stack.3 = bf16[8,64,128]{2,1,0} parameter(0)
  %i.3 = s32[] parameter(1)
  %g = f32[128,64]{1,0} parameter(2)
  %q = bf16[2,16,32]{2,1,0} parameter(3)
  %room = bf16[8,64,128]{2,1,0} custom-call(), custom_call_target="AllocateBuffer"
  %sliced = bf16[64,128]{1,0} fusion(%stack.3, %i.3), kind=kLoop, calls=%outer
  %row.1 = bf16[1,64,128]{2,1,0} bitcast(%sliced)
  %updated = bf16[8,64,128]{2,1,0} fusion(%room, %row.1, %i.3), kind=kLoop, calls=%updating
  %scattered = f32[128,16]{1,0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.1
  %start = ((bf16[64,128]{1,0}), bf16[64,128]{1,0}) call-start(%sliced), to_apply=%aside
  %kept = (bf16[64,128]{1,0:S(5)}, bf16[64,128]{1,0}, u32[]{:S(2)}) copy-start(%sliced)
  %near = ((bf16[8,64,128]{2,1,0}), bf16[1,64,128]{2,1,0:S(1)}, u32[]{:S(2)}) slice-start(%stack.3), slice={[0:1]}
  %attend.3 = bf16[2,4,16,8]{3,2,1,0} custom-call(%q), custom_call_target="tpu_custom_call"
  ROOT %done = bf16[64,128]{1,0} call-done(%start)
}
"""


@pytest.fixture
def tpu_works(mesh_of):
    """Name of an instruction of TPU_PROGRAM -> its work."""
    program = works(parse(TPU_PROGRAM), mesh_of(fsdp=4), {"attend": 1e6}, 1.75)
    return {each.name: each for _, each in work.each(program)}


STACK, ROW = 8 * 64 * 128 * 2, 64 * 128 * 2


def test_a_slice_within_fusions_under_another_layout_reads_the_slice_alone(tpu_works):
    assert tpu_works["sliced"].hbm == 2 * ROW + 4, "the row, its result, the index"


def test_an_update_in_place_writes_the_update_alone(tpu_works):
    assert tpu_works["updated"].hbm == 2 * ROW + 4


def test_room_that_is_set_aside_is_no_work(tpu_works):
    assert "room" not in tpu_works and "done" not in tpu_works


def test_a_sum_of_which_each_device_keeps_its_part_is_a_reduce_scatter_that_is_waited_for(tpu_works):
    (sent,) = tpu_works["scattered"].sent
    assert (sent.kind, sent.axes, sent.devices, sent.waits) == ("reduce-scatter", ("fsdp",), 4, True)
    assert sent.bytes == 128 * 64 * 4 * 3 / 4


def test_a_collective_on_cores_of_its_own_is_counted_and_not_waited_for(tpu_works):
    (sent,) = tpu_works["start"].sent
    assert (sent.kind, sent.bytes, sent.waits) == ("all-reduce", 2 * ROW * 3 / 4, False)
    assert not tpu_works["start"].waits


def test_what_goes_to_the_host_is_read_here_and_written_there(tpu_works):
    assert tpu_works["kept"].host == ROW and tpu_works["kept"].hbm == ROW and not tpu_works["kept"].waits


def test_a_prefetch_reads_what_it_fetches(tpu_works):
    assert tpu_works["near"].hbm == ROW and tpu_works["near"].host == 0


def test_a_kernel_has_the_operations_of_one_call_and_its_unevenness(tpu_works):
    kernel = tpu_works["attend.3"]
    assert (kernel.kernel_flops, kernel.head_dim, kernel.imbalance) == (1e6, 8, 1.75)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        # two of [8192, 8192] x [8192, 28672]
        ("%y = f32[2,8192,28672] convolution(%a, %b), dim_labels=0bf_io0->0bf", (8192, 8192, 28672, 2)),
        # heads added by the kernel: their number is a part of the result's width
        (
            "%y = f32[512,64,8] convolution(%c, %d), window={size=64 pad=63_63}, dim_labels=b0f_0io->b0f",
            (512, 32, 512, 1),
        ),
        # heads summed over: their number is a part of what is summed
        ("%y = f32[512,1,32] convolution(%e, %f), window={size=64}, dim_labels=b0f_0io->b0f", (512, 512, 32, 1)),
    ],
)
def test_a_convolution_is_a_product_of_matrices_whose_sides_are_told(line, expected, mesh_of):
    shapes = {
        "a": "[2,8192,8192]", "b": "[8192,28672,1]", "c": "[512,1,32]", "d": "[64,32,8]", "e": "[512,64,8]",
        "f": "[64,8,32]",
    }  # fmt: skip
    parameters = "".join(f"  %{name} = f32{shape} parameter({i})\n" for i, (name, shape) in enumerate(shapes.items()))
    module = parse(f"HloModule m\nENTRY %main (x: f32[]) -> f32[] {{\n{parameters}  ROOT {line}\n}}\n")
    (found,) = [each for _, each in work.each(works(module, mesh_of(fsdp=1), {}, 1.0))]
    (product,) = found.products
    m, k, n, count = expected
    assert product.flops == 2 * m * k * n * count
    assert (product.k, product.n) == (k, n)


SLICES = """HloModule m
ENTRY %main (x: bf16[64,128]) -> bf16[64,128] {
  %x = bf16[64,128]{1,0} parameter(0)
  %token = token[] after-all()
  %send.1 = (bf16[64,128]{1,0}, u32[], token[]) send(%x, %token), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  ROOT %r = bf16[64,128]{1,0} bitcast(%x)
}
"""  # noqa: E501


def test_what_goes_to_the_other_slices_is_counted_over_data():
    """The devices say which slice they are of; these are stand-ins."""

    devices = np.array([SimpleNamespace(slice_index=i // 2) for i in range(8)], dtype=object).reshape(4, 2)
    mesh: Any = SimpleNamespace(devices=devices)
    (found,) = [each for _, each in work.each(works(parse(SLICES), mesh, {}, 1.0))]
    (one,) = found.sent
    assert (one.kind, one.axes, one.islands, one.waits) == ("all-reduce", ("data",), 4, False)
    assert one.bytes == 2 * 3 / 4 * 64 * 128 * 2


@pytest.mark.slow
def test_two_slices_send_a_shard_of_the_gradients_across(compile_on, small, tpus_of):
    mesh, devices = Mesh(data=2, fsdp=4), tpus_of("v5e:2x2", 2)
    module = parse(compile_on(devices, mesh, rows=8, dtype="bfloat16", length=512, targets=512).as_text())
    found = [(one, times) for one, times in sent(module, make_mesh(mesh, devices)) if one.islands > 1]
    total = sum(one.bytes * times for one, times in found)
    numbers = sum(np.prod(leaf.shape) for leaf in abstract_parameters(small)[0].values())
    assert {one.axes for one, _ in found} == {("data",)}
    assert total > 0.9 * 2 * numbers / 4, "an all-reduce of a quarter of all gradients, 2 bytes each"
