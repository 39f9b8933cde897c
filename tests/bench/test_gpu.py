"""`python -m bench.gpu` in its tiny form, which runs the code of the full one, and what it does when things fail."""

import importlib.util
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.cases import TINY_CONFIG, StepCase, full
from bench.child import run_child
from bench.gpu import Check, _one_side
from bench.page import page
from bench.rows import make_rows

pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).parents[2]
HAS_TORCH = importlib.util.find_spec("torch") is not None


def run_gpu(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.gpu", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, "JAX_PLATFORMS": "cpu", **environment}, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """(the JSON, the Markdown) of one run."""
    out = tmp_path_factory.mktemp("gpu")
    done = run_gpu("--tiny", "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((out / "gpu.json").read_text()), (out / "gpu.md").read_text()


def test_the_tiny_form_measures_every_section(tiny):
    result, _ = tiny
    assert result["tiny"] and result["machine"]["platform"] == "cpu" and result["machine"]["versions"]["jax"]
    assert {name: section["status"] for name, section in result["sections"].items()} == {
        "attention": "done",
        "parity": "done",
        "steps": "done",
    }


def test_attention_is_compared_with_the_reference_and_timed_beside_the_anchor(tiny):
    cases = tiny[0]["sections"]["attention"]["cases"]
    compared = [row for row in cases if not row["timed"]]
    assert {row["implementation"] for row in compared} == {"triton", "blockwise"}
    assert {row["dtype"] for row in compared} == {"bfloat16", "float32"}
    for row in compared:
        assert all(0 <= error <= row["tolerance"] for error in row["errors"].values())
        assert row["dtype"] == "float32" or min(row["errors"].values()) > 0  # rounding is seen
    assert [row["implementation"] for row in cases if row["timed"]] == ["anchor", "triton", "blockwise"]
    assert all(row["seconds"] > 0 and row["tflops"] > 0 for row in cases if row["timed"])


def test_the_same_steps_run_on_both_devices(tiny):
    for row in tiny[0]["sections"]["parity"]["cases"]:
        assert len(row["device"]["loss"]) == len(row["cpu"]["grad_norm"]) == 5
        assert row["device"]["loss"][-1] < row["device"]["loss"][0]
        assert row["differences"] == {"loss": 0, "grad_norm": 0}  # both are the CPU here


def test_a_step_counts_what_the_rows_hold(tiny):
    ours = [row for row in tiny[0]["sections"]["steps"]["cases"] if row["side"] == "ours"]
    assert [row["remat"] for row in ours] == ["none", "attention"]
    rows = make_rows(2, 64, 256, packed=True)
    for row in ours:
        assert (row["tokens"], row["target_tokens"], row["pairs"]) == (
            128,
            rows.trained.sum(),
            TINY_CONFIG["num_hidden_layers"] * rows.pairs,
        )
        assert row["tokens_per_second"] == pytest.approx(128 / row["step_seconds"]) and row["compile_seconds"] > 0
        assert row["mfu"] is None and row["flops"] > 0  # a CPU has no peak on its datasheet
        assert row["losses"][0] == pytest.approx(math.log(256), abs=0.1)
    assert ours[0]["losses"] == pytest.approx(ours[1]["losses"], rel=1e-3)


def test_torch_trains_the_same_rows_or_is_skipped_with_the_reason(tiny):
    (theirs,) = [row for row in tiny[0]["sections"]["steps"]["cases"] if row["side"] == "torch"]
    if not HAS_TORCH:
        assert theirs["status"] == "skipped" and theirs["why"] == "torch not installed"
        return
    ours = tiny[0]["sections"]["steps"]["cases"][0]
    assert all(theirs[name] == ours[name] for name in ("rows", "length", "packed", "tokens", "target_tokens"))
    assert theirs["losses"][0] == pytest.approx(ours["losses"][0], abs=0.1)
    assert theirs["ours_over_torch"] == pytest.approx(theirs["step_seconds"] / ours["step_seconds"])


def test_the_page_has_a_row_a_case_and_no_path(tiny):
    result, text = tiny
    assert text.count("\n### ") == 3 and "/tmp" not in text
    measured = [row for row in result["sections"]["steps"]["cases"] if row["status"] == "done"]
    assert text.count("| ours |") + text.count("| torch |") == len(measured)
    assert ("torch not installed" in text) is not HAS_TORCH


def test_a_package_that_is_missing_is_named(tmp_path):
    (tmp_path / "gguf.py").write_text("raise ModuleNotFoundError('No module named gguf', name='gguf')")
    done = run_gpu("--tiny", "--out", tmp_path / "out", PYTHONPATH=os.pathsep.join((str(tmp_path), str(ROOT))))
    assert done.returncode == 2
    assert "gguf is from is not installed" in done.stderr and "collect_wheels" in done.stderr


def test_without_a_gpu_only_the_tiny_form_runs(tmp_path):
    done = run_gpu("--out", tmp_path)
    assert done.returncode == 2 and "no GPU: JAX found cpu" in done.stderr


def test_a_case_that_fails_leaves_the_others_and_its_traceback(tmp_path):
    first, second, third = run_child("tests.bench.failing_child", {"end": "", "needs": 0}, 30, tmp_path)
    assert (first["status"], first["seconds"], third["status"]) == ("done", 1.0, "done")
    assert second["status"] == "failed" and second["why"] == "ValueError: no such kernel"
    assert "in fail" in second["traceback"]


def test_a_case_without_the_time_it_needs_is_skipped(tmp_path):
    *_, third = run_child("tests.bench.failing_child", {"end": "", "needs": 100}, 30, tmp_path)
    assert third["status"] == "skipped" and third["why"].endswith("s left")


def test_a_child_that_crashes_keeps_what_it_measured(tmp_path):
    first, *_, last = run_child("tests.bench.failing_child", {"end": "crash", "needs": 0}, 30, tmp_path)
    assert first["status"] == "done"
    assert last["status"] == "failed" and "ended with status -6" in last["why"]


def test_a_child_that_does_not_end_is_ended(tmp_path):
    started = time.monotonic()
    *rows, last = run_child("tests.bench.failing_child", {"end": "never", "needs": 0}, 5, tmp_path)
    assert time.monotonic() - started < 20 and len(rows) == 3
    assert last["status"] == "overran"


@pytest.fixture
def check(tmp_path):
    made = Check(1000, False, tmp_path / "out", tmp_path)
    made.result["machine"] = {"peak_flops": 1e12, "device": "a card"}
    return made


def test_a_step_that_does_not_fit_is_tried_with_half_the_rows(check, monkeypatch):
    def child(module, arguments, limit, **environment):
        del module, limit, environment
        fits = arguments["case"]["rows"] <= 4
        return [{"status": "done", "step_seconds": 1.0} if fits else {"status": "out_of_memory", "why": "full"}]

    monkeypatch.setattr(check, "child", child)
    assert _one_side(check, "ours", StepCase("models/a", rows=16))["rows"] == 4
    kept = json.loads((check.out / "gpu.json").read_text())["sections"]["steps"]
    assert [(row["rows"], row["status"]) for row in kept["cases"]] == [
        (16, "out_of_memory"),
        (8, "out_of_memory"),
        (4, "done"),
    ]
    assert kept["status"] == "done" and not check.failed


@pytest.mark.parametrize(("seconds", "status"), [(3, "skipped"), (1000, "overran")])
def test_what_the_end_of_the_check_cuts_short_is_no_failure(tmp_path, seconds, status):
    check = Check(seconds, False, tmp_path / "out", tmp_path)
    *_, last = check.child("tests.bench.failing_child", {"end": "never", "needs": 0}, 5)
    assert last["status"] == status and "had not finished" in last["why"]


@pytest.mark.parametrize("status", ["failed", "overran"])
def test_one_failure_fails_the_check_and_stands_on_the_page(check, status):
    check.add("parity", [{"status": "done", "dtype": "float32"}, {"status": status, "why": "lost its way"}])
    check.add("steps", [{"status": "skipped", "why": "3 s left"}])
    assert check.failed and [section["status"] for section in check.result["sections"].values()] == ["failed", "done"]
    assert f"- {status}: the section: lost its way" in page(check.result)


def test_the_full_form_names_models_that_are_here_and_every_kind_of_case():
    cases = full()
    assert all((ROOT / case.model / "config.json").exists() for case in (*cases.pairs, *cases.alone))
    compared = [case for case in cases.attention if not case.timed]
    for field in ("dtype", "packed", "head_dim", "length"):
        assert len({getattr(case, field) for case in compared if case.implementation == "triton"}) > 1, field
    assert {(case.window is None, case.softcap is None) for case in compared} == {
        (True, True), (True, False), (False, True), (False, False),
    }  # fmt: skip
    assert {case.remat for case in cases.alone} == {"none", "attention"}
