"""The shipped configs: planned on the chips that their docstrings name, and the figures there still true."""

import importlib.util
import re
from pathlib import Path

import pytest

from sft_jax.experiments.plan_configs import (
    closed_form,
    fingerprint,
    planned_lines,
    read_plans,
    shipped,
    write_docstring,
)
from sft_jax.plan.aot import topology_devices, trace_update
from sft_jax.plan.flops import executed_flops
from sft_jax.plan.planned import plan_compiled

EVERY, PLANS = shipped(), read_plans()
ON_TPUS = [name for name, request in EVERY.items() if not request.topology.is_gpu]
SMALL = "configs/smollm2_135m_v5e4.py"
NEEDS_LIBTPU = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu exists for Linux on x86-64 alone"
)


def test_the_models_and_slices_that_people_ask_for_are_there():
    names = " ".join(EVERY)
    for model in ("smollm2_135m", "qwen3_06b", "llama32_1b", "llama31_8b", "qwen3_8b", "llama31_70b"):
        assert model in names
    kinds = {(request.topology.kind, request.topology.chips) for request in EVERY.values()}
    assert {
        ("v5e", 4),
        ("v5e", 16),
        ("v6e", 8),
        ("v6e", 64),
        ("v5p", 64),
        ("tpu7x", 64),
        ("h100", 1),
        ("h100", 8),
    } <= kinds


def test_every_config_is_recorded_and_nothing_else():
    assert list(PLANS) == list(EVERY)


@pytest.mark.parametrize("name", EVERY)
def test_what_the_docstring_states_is_what_was_planned_for_this_config(name):
    """Run make plan-configs where this fails: the config, a chip, an assumption or the cost model has changed."""
    kept = PLANS[name]
    assert kept["fingerprint"] == fingerprint(EVERY[name])
    assert kept["closed_form"] == pytest.approx(closed_form(EVERY[name]), rel=1e-5)
    assert planned_lines(kept) in Path(name).read_text(encoding="utf-8")
    assert kept["plan"]["fits"]


@pytest.mark.slow
@NEEDS_LIBTPU
@pytest.mark.parametrize("name", ON_TPUS)
def test_the_update_still_does_what_it_did_when_it_was_planned(name):
    """Traced, not compiled: a change of the model or of the step changes its operations."""
    config, architecture, shapes, topology = EVERY[name]
    traced = trace_update(config, architecture, shapes, topology_devices(topology.name, topology.slices))
    assert executed_flops(traced).total() == pytest.approx(PLANS[name]["plan"]["traced_flops"], rel=1e-6)


@pytest.mark.slow
@NEEDS_LIBTPU
def test_a_small_config_compiles_to_what_is_recorded():
    plan, kept = plan_compiled(EVERY[SMALL]), PLANS[SMALL]["plan"]
    assert plan.method == "compiled" and plan.fits
    for name in ("peak_bytes_per_chip", "step_seconds", "hbm_traffic_bytes"):
        assert getattr(plan, name) == pytest.approx(kept[name], rel=0.05), name


def test_the_lines_are_written_below_the_command_and_replaced(tmp_path):
    path = tmp_path / "config.py"
    path.write_text('"""A run.\n\nPlan:      sft-jax plan x\nTrain:     sft-jax train x\n"""\n')
    write_docstring(path, "Planned:   one\n           two")
    write_docstring(path, "Planned:   three")
    assert (
        path.read_text()
        == '"""A run.\n\nPlan:      sft-jax plan x\nPlanned:   three\nTrain:     sft-jax train x\n"""\n'
    )


@pytest.mark.parametrize("name", EVERY)
def test_the_docstring_has_the_commands_for_this_very_file(name):
    text = Path(name).read_text(encoding="utf-8")
    assert re.search(rf"^Plan: +sft-jax plan {re.escape(name)} --topology ", text, re.MULTILINE)
    assert re.search(rf"^Train: +sft-jax train {re.escape(name)} ", text, re.MULTILINE)
    assert re.search(r"^Hardware: ", text, re.MULTILINE)
