"""Start-up that fails: each case in a process of its own, since JAX is told once."""

import socket
import subprocess
import sys

import pytest

JOIN = """
import sys
from sft_jax.cli.processes import leave
from sft_jax.config import Distributed
from sft_jax.errors import BadInput
from sft_jax.distributed.start import start
try:
    start(eval(sys.argv[1]), leave)
except BadInput as error:
    sys.exit(f"refused: {error}")
"""


def join(config: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", JOIN, config], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("process_id", [0, 1])
def test_processes_that_do_not_find_each_other_end_with_2_and_say_what_they_waited_for(process_id):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{probe.getsockname()[1]}"
    done = join(f"Distributed(coordinator={where!r}, processes=2, process_id={process_id}, timeout_seconds=2)")
    assert done.returncode == 2, done.stderr
    assert f"process {process_id} of 2 waited 2 s" in done.stderr and where in done.stderr
    assert "Traceback" not in done.stderr


def test_auto_without_a_cluster_says_how_to_name_the_processes():
    done = join("Distributed(auto=True, cpu_devices=1)")
    assert done.returncode == 1 and "refused: distributed.auto" in done.stderr, done.stderr
    assert "--distributed.coordinator" in done.stderr and "Traceback" not in done.stderr


def test_an_address_that_cannot_be_used_is_refused_before_anybody_waits():
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        done = join(f"Distributed(coordinator='127.0.0.1:{port}', processes=2)")
    assert f"process 0 cannot listen on port {port}" in done.stderr and "another port" in done.stderr, done.stderr
    done = join("Distributed(coordinator='no-such-host.invalid:1234', processes=2, process_id=1)")
    assert "no host has the name 'no-such-host.invalid'" in done.stderr, done.stderr


def test_fewer_devices_than_expected_are_refused_with_those_of_each_process():
    done = join("Distributed(cpu_devices=3, devices=4)")
    assert "distributed.devices is 4, found 3 cpu devices: 3 on process 0" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
