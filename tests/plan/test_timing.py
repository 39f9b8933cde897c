"""An update that runs where the plan says it would: here on CPU devices, which no topology names."""

import io
from dataclasses import replace

import jax
from rich.console import Console

from sft_jax.config import Mesh
from sft_jax.plan.chips import topology
from sft_jax.plan.isolated import Request
from sft_jax.plan.planned import plan_analytic
from sft_jax.plan.timing import local_gpus, measured_seconds
from sft_jax.report.plan import measured_table


def test_the_update_runs_and_its_time_stands_beside_the_plan(small_config, small):
    config, shapes = small_config(Mesh(fsdp=2), rows=4)
    config = replace(config, train=replace(config.train, batch_size=4))
    request = Request(config, small, shapes, topology("h100:2"))
    seconds = measured_seconds(request, jax.devices()[:2])
    assert 0 < seconds < 60
    plan = plan_analytic(request)
    measured = {
        "measured_step_seconds": seconds,
        "measured_tokens_per_second_per_chip": plan.tokens_per_step / seconds / 2,
        "measured_mfu": plan.mfu * plan.step_seconds / seconds,
    }
    text = io.StringIO()
    Console(file=text, width=120).print(measured_table(plan, measured))
    assert text.getvalue().count(f"{seconds / plan.step_seconds:.2f}") >= 1 and "measured / planned" in text.getvalue()


def test_other_devices_are_not_the_topology():
    assert local_gpus(topology("h100:8")) == [] and local_gpus(topology("v5e:2x4")) == []
