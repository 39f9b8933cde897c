"""What the compiled update of each layout of docs/layouts.md sends, compared with golden files.

`python -m tests.plan.test_collectives` writes the files again and keeps the reasons of the lines that stay.
"""

import math
import re
from pathlib import Path

import jax
import pytest

from sft_jax.config import Mesh
from sft_jax.parallel.mesh import make_mesh
from sft_jax.plan.collectives import Collective, collective_lines, collectives
from tests.plan.conftest import SMALL, compile_small

GOLDEN = Path(__file__).parent / "golden"

LAYOUTS = {
    "data": (Mesh(data=8, fsdp=1), {}),
    "fsdp": (Mesh(fsdp=8), {}),
    "data-fsdp": (Mesh(data=2, fsdp=4), {}),
    "tensor": (Mesh(fsdp=1, tensor=4), {}),
    "fsdp-tensor": (Mesh(fsdp=4, tensor=2), {}),
    "fsdp-context": (Mesh(fsdp=2, context=4), {}),
    "fsdp-context-ring": (Mesh(fsdp=2, context=4), {"context_attention": "ring"}),
    "data-fsdp-tensor": (Mesh(data=2, fsdp=2, tensor=2), {}),
}


def compiled(name):
    """The update's text and mesh in one of LAYOUTS, on as many of the eight simulated devices as it needs."""
    mesh, options = LAYOUTS[name]
    devices = jax.devices()[: math.prod(vars(mesh).values())]
    return compile_small(devices, mesh, **options).as_text(), make_mesh(mesh, devices)


def _lines(name) -> list[tuple[str, str]]:
    """(collective, reason) of each line of a golden file."""
    pairs = []
    for line in (GOLDEN / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        collective, _, reason = line.partition("  # ")
        pairs.append((collective.rstrip(), reason.strip()))
    return pairs


@pytest.fixture(scope="module", params=LAYOUTS)
def layout(request):
    return request.param, *compiled(request.param)


def test_a_layout_sends_what_its_golden_file_says_and_why(layout):
    name, text, mesh = layout
    golden = _lines(name)
    assert collective_lines(collectives(text, mesh)) == [line for line, _ in golden]
    assert all(len(reason) > 10 for _, reason in golden), "each collective has a reason"


def test_no_layout_gathers_a_stack_of_layers_or_makes_logits_whole(layout):
    _, text, mesh = layout
    a = SMALL
    d, n, k, h, f = a.embed, a.heads, a.kv_heads, a.head_dim, a.mlp
    kernels = [sorted(kernel) for kernel in ((d, n, h), (d, k, h), (d, f))]
    for each in collectives(text, mesh):
        dims = [int(size) for size in re.findall(r"\d+", each.shape.partition("[")[2])]
        assert not (each.kind == "all-gather" and dims[:1] == [a.depth] and sorted(dims[1:]) in kernels), each
    rows = {a.padded_to(mesh.shape["tensor"]).rows // mesh.shape["tensor"], a.padded_to(mesh.shape["tensor"]).rows}
    batch = mesh.shape["data"] * mesh.shape["fsdp"]
    chunk = max(1, 32 // (8 // batch)) * (8 // batch)  # positions of a device that meet the head at once
    shapes = {tuple(map(int, dims.split(","))) for dims in re.findall(r"f32\[([\d,]+)\]", text)}
    logits = [shape for shape in shapes if shape[-1] in rows and a.embed not in shape[:-1] and len(shape) > 1]
    assert logits
    assert max(math.prod(shape) for shape in logits) == chunk * min(rows), logits


def test_groups_of_devices_become_mesh_axes(mesh_of):
    """In every spelling of XLA: explicit, iota, transposed iota, named, pairs."""
    mesh = mesh_of(data=2, fsdp=2, tensor=2)
    text = """
  %a = f32[4]{0} all-reduce(%x), replica_groups={{0,4},{1,5},{2,6},{3,7}}, metadata={op_name="jit(f)/x"}
  %b = (f32[2,8]{1,0}, f32[]) all-gather-start(%x), replica_groups=[4,2]<=[8], dimensions={0}
  %c = f32[4]{0} reduce-scatter(%x), replica_groups=[4,2]<=[2,2,2]T(0,2,1), metadata={op_name="jit(f)/x"}
  %d = f32[4]{0} all-reduce(%x), replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, use_global_device_ids=true
  %e = f32[4]{0} collective-permute(%x), source_target_pairs={{0,4},{4,0},{1,5},{5,1},{2,6},{6,2},{3,7},{7,3}}
  %f = f32[4]{0} all-reduce(%x), replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}, to_apply=%add
  ROOT %g = f32[4]{0} all-to-all(%x), replica_groups={{0,1,2},{3,4,5,6,7}}
  %h = f32[4]{0} all-reduce(%x), replica_groups=mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0)) {'axis_1'}
"""
    found = collectives(text, mesh)
    assert [(each.kind, each.axes) for each in found] == [
        ("all-reduce", ("data",)),
        ("all-gather", ("tensor",)),
        ("reduce-scatter", ("fsdp",)),
        ("all-reduce", ("data", "fsdp")),
        ("collective-permute", ("data",)),
        ("all-to-all", ("data", "fsdp", "tensor")),
        ("all-reduce", ("data",)),
    ]
    assert found[1].shape == "f32[2,8]", "the largest of the result"


def test_a_part_of_an_axis_is_that_axis(mesh_of):
    """Over two slices XLA reduces within each of them first."""
    text = "  %a = f32[4]{0} all-reduce(%x), replica_groups={{0,2},{4,6},{1,3},{5,7}}, to_apply=%add"
    (found,) = collectives(text, mesh_of(data=4, fsdp=2))
    assert found.axes == ("data",)


def test_a_collective_says_how_often_and_for_what():
    names = {
        "jit(update)/transpose(jvp())/while/body/closed_call/mlp/BTD,DF->BTF/dot_general": (
            "each layer, backward", "mlp BTD,DF->BTF",
        ),
        "jit(update)/jvp(head)/while/body/closed_call/(reduce_sum:BMV,BMD->VD/dot_general)": (
            "each chunk of the head", "head reduce_sum",
        ),
        "jit(update)/jvp()/embedding/shard_map/all_to_all": ("update", "embedding all_to_all"),
    }  # fmt: skip
    mesh = make_mesh(Mesh(fsdp=8))
    for name, expected in names.items():
        text = f'  %a = f32[4]{{0}} all-reduce(%x), replica_groups={{}}, metadata={{op_name="{name}"}}'
        assert collectives(text, mesh) == [Collective("all-reduce", ("fsdp",), "f32[4]", *expected)]


def record() -> None:
    """Write the golden files; new lines get an empty reason, which the tests refuse."""
    for name in LAYOUTS:
        path = GOLDEN / f"{name}.txt"
        reasons = dict(_lines(name)) if path.is_file() else {}
        found = collective_lines(collectives(*compiled(name)))
        path.write_text("".join(f"{line:<84}  # {reasons.get(line, '')}\n" for line in found), encoding="utf-8")


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    record()
