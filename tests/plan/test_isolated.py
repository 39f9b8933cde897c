"""Compiling in a process of its own: what comes back, and that nothing stays behind."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

from sft_jax.config import Mesh
from sft_jax.plan import isolated
from sft_jax.plan.aot import OutOfMemory, out_of_memory
from sft_jax.plan.chips import GIB, topology
from sft_jax.plan.isolated import Request, compile_isolated
from sft_jax.plan.planned import plan_compiled


@pytest.fixture
def small_request(small_config, small):
    config, shapes = small_config(Mesh(fsdp=4), rows=4)
    return Request(replace(config, train=replace(config.train, batch_size=4)), small, shapes, topology("v5e:2x2"))


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (85.94G) "
            "exceeds available HBM (15.75G).",
            ("hbm", 85.94, 15.75),
        ),
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space host. Used "
            "163.28G of 128.00G host. Exceeded host capacity by 35.28G.",
            ("host", 163.28, 128.0),
        ),
        ("Ran out of memory in memory space hbm. Used 16896M of 15.75G hbm.", ("hbm", 16.5, 15.75)),
    ],
)
def test_what_the_compiler_says_about_memory_is_read(message, expected):
    found = out_of_memory(message)
    assert found is not None
    assert (found.space, found.needed / GIB, found.available / GIB) == pytest.approx(expected)
    assert f"needs {expected[1]:.2f} GiB of {expected[0]}" in str(found)


def test_another_message_is_not_about_memory():
    assert out_of_memory("INTERNAL: something else") is None


def test_a_process_that_dies_is_reported_with_what_it_said(small_request, monkeypatch, tmp_path):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho the reason is this\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(isolated.sys, "executable", str(broken))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"exited with status 3 and no result(.|\n)*the reason is this"):
        compile_isolated(small_request)
    assert [each.name for each in tmp_path.iterdir()] == ["python"], "nothing stays behind"


@pytest.mark.slow
def test_the_compiled_update_comes_back_and_this_process_stays_as_it_was(small_request, monkeypatch, tmp_path):
    pytest.importorskip("libtpu", reason="libtpu exists for Linux on x86-64 alone")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = dict(os.environ)
    found = compile_isolated(small_request)
    assert 0 < found.memory.arguments < found.memory.peak and found.traced_flops > 0
    assert found.collectives and found.compile_seconds > 0
    assert dict(os.environ) == before and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_what_does_not_fit_is_told_with_both_numbers(small_config, small):
    pytest.importorskip("libtpu", reason="libtpu exists for Linux on x86-64 alone")
    config, shapes = small_config(Mesh(fsdp=4), rows=4096, length=4096, targets=64)
    config = replace(config, train=replace(config.train, batch_size=4096))
    request = Request(config, small, shapes, topology("v5e:2x2"))
    with pytest.raises(OutOfMemory) as caught:
        compile_isolated(request)
    assert caught.value.needed > caught.value.available == 15.75 * GIB
    plan = plan_compiled(request)
    assert not plan.fits and "the compiler says" in plan.problem
    assert plan.peak_bytes_per_chip == caught.value.needed and plan.step_seconds > 0


PROGRAM = """
import sys
from tests.plan.conftest import SMALL, small_run
from sft_jax.config import Mesh
from sft_jax.plan.chips import topology
from sft_jax.plan.isolated import Request, compile_isolated
config, shapes = small_run(Mesh(fsdp=4), rows=4)
compile_isolated(Request(config, SMALL, shapes, topology("v5e:2x2")))
"""


def _compiling_in(directory: Path) -> list[str]:
    """Command lines of the processes that compile there."""
    found = []
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = each.read_bytes().decode(errors="replace")
        except OSError:  # it has ended
            continue
        if "sft_jax.plan.isolated" in text and str(directory) in text:
            found.append(text)
    return found


def _until(condition, seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_the_compiling_process_ends_with_the_one_that_started_it(end, tmp_path):
    root = Path(__file__).parents[2]
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
    parent = subprocess.Popen([sys.executable, "-c", PROGRAM], env=environment, stderr=subprocess.DEVNULL)
    try:
        assert _until(lambda: bool(_compiling_in(tmp_path)))
        parent.send_signal(end)
        parent.wait(timeout=30)
        assert _until(lambda: not _compiling_in(tmp_path), 20)
        if end == signal.SIGINT:
            assert not list(tmp_path.glob("sft-jax-plan-*"))
    finally:
        parent.kill()
