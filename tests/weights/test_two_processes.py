"""Two processes share one model: each reads its half, and together they write it again."""

import json
import socket
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import numpy as np
import pytest
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run_two():
    """(arguments of two_processes.py) -> what each of the two processes reported."""

    def run_two(*arguments):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "tests.weights.two_processes", f"127.0.0.1:{port}"]
        processes = [
            subprocess.Popen([*command, str(i), *map(str, arguments)], stdout=PIPE, stderr=PIPE, cwd=ROOT, text=True)
            for i in range(2)
        ]
        try:
            ends = [process.communicate(timeout=120) for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.communicate()
        assert [process.returncode for process in processes] == [0, 0], ends
        return [json.loads(out.splitlines()[-1]) for out, _ in ends]

    return run_two


def test_each_process_reads_its_half_and_the_export_is_whole(llama3, run_two, tmp_path):
    reports = run_two(llama3, tmp_path / "out")
    theirs = load_file(llama3 / "model.safetensors")
    for report in reports:
        for name, tensor in theirs.items():
            share = 1 if tensor.ndim == 1 else 2
            assert report["bytes"][name] == tensor.nbytes // share, name
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == theirs.keys()
    for name in theirs:
        np.testing.assert_array_equal(written[name], theirs[name], err_msg=name)
    assert [report["refused"] for report in reports] == [True, True]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
