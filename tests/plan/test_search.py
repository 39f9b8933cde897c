"""The search over layouts: what it tries, in which order, and what it offers."""

import math
from dataclasses import replace

import pytest

from sft_jax.config import Mesh
from sft_jax.experiments.plan_configs import shipped
from sft_jax.plan.analytic import update_memory
from sft_jax.plan.chips import topology
from sft_jax.plan.isolated import Request
from sft_jax.plan.planned import check, plan_analytic, usable_bytes
from sft_jax.plan.search import (
    Candidate,
    _candidate,
    _corrected,
    _pick_next,
    candidates,
    config_lines,
    flags,
    nearest_that_fits,
    search,
)

SHIPPED = shipped()


@pytest.fixture
def small_request(small_config, small):
    """(mesh, chips, options as `small_run`) -> what is planned."""

    def make(mesh=Mesh(), on="v5e:2x4", slices=1, **options) -> Request:  # noqa: B008
        config, shapes = small_config(mesh, **options)
        config = replace(config, train=replace(config.train, batch_size=shapes.tokens[1]))
        return Request(config, small, shapes, topology(on, slices))

    return make


def test_every_mesh_policy_and_number_of_micro_batches_is_tried(small_request):
    found = candidates(small_request(rows=16))
    layouts = {
        (*vars(each.request.config.mesh).values(), each.request.config.model.remat,
         each.request.config.train.accumulation) for each in found
    }  # fmt: skip
    assert len(layouts) == len(found)
    assert {math.prod(layout[:5]) for layout in layouts} == {8}
    assert (1, 8, 1, 1, 1, "full", 2) in layouts and (2, 1, 2, 2, 1, "offload", 8) in layouts
    assert not any(layout[0] * layout[1] * layout[-1] > 16 for layout in layouts), "a row a device at least"
    for each in found:
        parts, rows, _ = each.request.shapes.tokens
        assert parts * rows == 16 == each.request.config.train.batch_size
    assert [each.seconds for each in found] == sorted(each.seconds for each in found)


def test_only_data_goes_across_slices(small_request):
    found = candidates(small_request(on="v5e:2x2", slices=2))
    assert found and all(each.request.config.mesh.data % 2 == 0 for each in found)


def test_moments_are_tried_on_request(small_request):
    found = candidates(small_request(), bf16_moment=True)
    assert {each.request.config.optimizer.first_moment_dtype for each in found} == {"float32", "bfloat16"}
    assert len(found) == 2 * len(candidates(small_request()))


@pytest.mark.parametrize("name", SHIPPED)
def test_the_closed_form_finds_a_layout_at_least_as_fast_as_the_shipped_one(name):
    request = SHIPPED[name]
    own, room = plan_analytic(request), usable_bytes(request.topology)
    fits = (
        each for each in candidates(request) if each.peak <= room and each.host <= request.topology.chip.host_memory
    )
    best = next(fits)
    assert own.fits and best.seconds <= own.step_seconds * (1 + 1e-9)


def test_what_was_compiled_corrects_the_layouts_like_it(small_request):
    one = candidates(small_request(rows=16))[0]
    plan = replace(
        plan_analytic(one.request), step_seconds=2 * one.seconds, peak_bytes_per_chip=3 * one.peak, fits=True
    )
    seconds, peak = _corrected(one, [(one, plan)])
    assert 1.5 * one.seconds < seconds < 2 * one.seconds and 2 * one.peak < peak < 3 * one.peak
    far = max(candidates(small_request(rows=16)), key=lambda each: each.request.config.mesh.tensor)
    assert _corrected(far, [(one, plan)])[0] / far.seconds < seconds / one.seconds
    assert _corrected(one, []) == (one.seconds, one.peak)


def test_the_search_goes_on_while_a_layout_may_be_faster_and_fits(small_request):
    every = candidates(small_request(rows=16))
    first = _pick_next(list(every), [], room=1e18)
    assert first is not None and first.seconds == every[0].seconds
    quick = replace(plan_analytic(first.request), step_seconds=first.seconds / 100, fits=True)
    compiled = [(first, quick)] * 4
    assert _pick_next(every[1:], compiled, room=1e18) is None, "no other comes near"
    assert _pick_next(every[1:], compiled[:1], room=1e18) is not None, "a few are compiled in any case"
    assert _pick_next(every[1:], compiled[:1], room=1.0) is None, "none fits"


def test_a_layout_that_does_not_divide_the_model_is_passed_over(small_request):
    """Eight devices cannot share four heads of keys."""
    found = search(small_request(rows=8), False, 0.0, lambda _: None)
    assert found and all(plan.mesh["tensor"] <= 4 and plan.fits for plan in found)
    for plan in found:
        assert plan.method == "analytic" and f"--mesh.fsdp {plan.mesh['fsdp']}" in flags(plan)
    times = [plan.step_seconds for plan in found]
    assert times == sorted(times) and len(times) == len(
        {(*plan.mesh.items(), plan.remat, plan.accumulation) for plan in found}
    )


def test_the_nearest_layout_that_fits_changes_as_little_as_it_can():
    request = SHIPPED["configs/llama31_8b_v6e8.py"]
    config = replace(request.config, model=replace(request.config.model, remat="none"))
    config = replace(config, train=replace(config.train, accumulation=1))
    shapes = type(request.shapes)(*((1, 32, shape[2]) for shape in request.shapes))
    too_large = request._replace(config=config, shapes=shapes)
    assert not plan_analytic(too_large).fits
    other = nearest_that_fits(too_large)
    assert other is not None and other.fits
    assert other.mesh["fsdp"] == 8 and other.remat != "none"


def test_no_layout_fits_where_the_state_is_larger_than_all_memory():
    request = SHIPPED["configs/llama31_70b_v6e64.py"]
    config = replace(request.config, mesh=Mesh(fsdp=4))
    assert nearest_that_fits(request._replace(config=config, topology=topology("v6e:2x2"))) is None


def test_a_candidate_is_the_plan_in_closed_form(small_request):
    request = small_request(Mesh(fsdp=4, tensor=2), rows=16, remat="minimal")
    mesh = check(request)
    found: Candidate = _candidate(request, mesh)
    plan = plan_analytic(request)
    assert found.seconds == plan.step_seconds and found.peak == plan.peak_bytes_per_chip
    assert found.peak == update_memory(request.config, request.architecture, request.shapes, mesh).peak


def test_the_lines_to_paste_say_everything_that_was_searched(small_request):
    request = small_request(Mesh(data=2, fsdp=2, tensor=2), rows=16, remat="attention")
    optimizer = replace(request.config.optimizer, first_moment_dtype="bfloat16")
    plan = plan_analytic(request._replace(config=replace(request.config, optimizer=optimizer)))
    assert config_lines(plan) == [
        "mesh=Mesh(data=2, fsdp=2, tensor=2)",
        'model=Model(..., remat="attention")',
        "train=Train(..., accumulation=1)",
        'optimizer=Optimizer(..., first_moment_dtype="bfloat16")',
    ]
    assert flags(plan) == (
        "--mesh.data 2 --mesh.fsdp 2 --mesh.tensor 2 --model.remat attention --train.accumulation 1 "
        "--optimizer.first-moment-dtype bfloat16"
    )


@pytest.mark.slow
def test_the_best_are_compiled_until_the_time_is_over(small_request):
    pytest.importorskip("libtpu", reason="libtpu exists for Linux on x86-64 alone")
    lines: list[str] = []
    found = search(small_request(rows=8), False, 1.0, lines.append)
    assert [plan.method for plan in found] == ["compiled"] and found[0].fits
    assert "costed in closed form" in lines[0] and "--search-minutes reached" in lines[-1]


def test_a_layout_of_which_the_compiler_dies_does_not_end_the_search(small_request, monkeypatch):
    """The compiler is replaced: what makes the real one die is mended when it is found."""
    died: list[Request] = []

    def compile_all_but_the_first(request: Request):
        if not died:
            died.append(request)
            raise RuntimeError("ended with status -6")
        return replace(plan_analytic(request), fits=True)

    monkeypatch.setattr("sft_jax.plan.search.plan_compiled", compile_all_but_the_first)
    lines: list[str] = []
    found = search(small_request(rows=8), False, 1e9, lines.append)
    assert len(died) == 1 and found and all(plan.fits for plan in found)
    assert any("ended with status -6" in line for line in lines)


def test_an_interrupted_search_keeps_what_was_compiled(small_request, monkeypatch):
    found: list[Request] = []

    def compile_two(request: Request):
        if len(found) == 2:
            raise KeyboardInterrupt
        found.append(request)
        return replace(plan_analytic(request), fits=True)

    monkeypatch.setattr("sft_jax.plan.search.plan_compiled", compile_two)
    lines: list[str] = []
    assert len(search(small_request(rows=8), False, 1e9, lines.append)) == 2
    assert lines[-1] == "interrupted: 2 compiled"


def test_a_search_that_is_interrupted_before_anything_was_compiled_ends(small_request, monkeypatch):
    def interrupted(request: Request):
        raise KeyboardInterrupt

    monkeypatch.setattr("sft_jax.plan.search.plan_compiled", interrupted)
    with pytest.raises(KeyboardInterrupt):
        search(small_request(rows=8), False, 1e9, lambda _: None)
