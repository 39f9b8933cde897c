"""Three hosts with addresses of their own (network namespaces), one of which is cut off in the middle of a run."""

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group("machine")  # its processes keep to seconds: one such test at a time
ROOT = Path(__file__).resolve().parents[3]
HOSTS = 3
SILENCE, STEPS = 6, 60
_numbers = itertools.count()


def ip(*words) -> None:
    subprocess.run(["ip", *map(str, words)], check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def hosts():
    """(names of the hosts' namespaces, a function that cuts one off or (up=True) puts it back)."""
    if shutil.which("ip") is None or os.getuid() != 0:
        pytest.skip("network namespaces need root and iproute2")
    switch, names = f"sft{os.getpid()}s", [f"sft{os.getpid()}h{i}" for i in range(HOSTS)]
    made = []
    try:
        for name in (switch, *names):
            ip("netns", "add", name)
            made.append(name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", switch, "link", "add", "bridge0", "type", "bridge")
        ip("-n", switch, "link", "set", "bridge0", "up")
        for i, name in enumerate(names):
            ip("link", "add", "eth0", "netns", name, "type", "veth", "peer", "name", f"port{i}", "netns", switch)
            ip("-n", switch, "link", "set", f"port{i}", "master", "bridge0", "up")
            ip("-n", name, "address", "add", f"10.77.0.{i + 1}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            # What `ip netns exec` shows as /etc/hosts: a host's name is the address at which the others find it.
            own = Path("/etc/netns") / name
            own.mkdir(parents=True)
            (own / "hosts").write_text(f"127.0.0.1 localhost\n10.77.0.{i + 1} {os.uname().nodename}\n")
        yield names, lambda i, up=False: ip("-n", switch, "link", "set", f"port{i}", "up" if up else "down")
    finally:
        for name in made:
            subprocess.run(["ip", "netns", "delete", name], check=False)
            shutil.rmtree(Path("/etc/netns") / name, ignore_errors=True)


@pytest.fixture
def start(hosts, config_file):
    """workdir -> the processes of a run, one on each host."""
    started = []

    def run(workdir) -> list[subprocess.Popen]:
        port = 29400 + next(_numbers)
        processes = [
            subprocess.Popen(
                ["ip", "netns", "exec", name, sys.executable, "-m", "sft_jax", "train", config_file,
                 "--workdir", workdir, "--distributed.coordinator", f"10.77.0.1:{port}",
                 "--distributed.processes", str(HOSTS), "--distributed.process-id", str(i),
                 "--distributed.cpu-devices", "1", "--distributed.devices", str(HOSTS),
                 "--distributed.silence-seconds", str(SILENCE), "--mesh.data", str(HOSTS), "--mesh.fsdp", "1",
                 "--train.batch-size", "12", "--train.steps", str(STEPS), "--train.save-every", "5",
                 "--train.eval-every", "0"],
                cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                text=True,
            )
            for i, name in enumerate(hosts[0])
        ]  # fmt: skip
        started.extend(processes)
        return processes

    yield run
    for process in started:
        process.kill()
        process.communicate()


def ends(processes, within) -> tuple[list[int], list[str]]:
    end = time.monotonic() + within
    said = [process.communicate(timeout=max(0.1, end - time.monotonic()))[1] for process in processes]
    return [process.returncode for process in processes], said


def losses(workdir) -> list[tuple[int, float]]:
    path = workdir / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [(row["step"], row["loss"]) for row in map(json.loads, lines)]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_host_that_is_cut_off_ends_all_in_time_and_the_run_goes_on_with_the_same_losses(hosts, start, tmp_path):
    _, link = hosts
    statuses, said = ends(start(tmp_path / "whole"), within=240)
    assert statuses == [0, 0, 0], said
    for victim in (2, 0):
        workdir = tmp_path / f"cut-{victim}"
        processes = start(workdir)
        end = time.monotonic() + 120
        while len(losses(workdir)) < 8:
            assert time.monotonic() < end and all(process.poll() is None for process in processes), ends(processes, 1)
            time.sleep(0.02)
        link(victim)
        # The silence, a beat to find it out, three to tell it, and as much again for a slow machine.
        statuses, said = ends(processes, within=3 * SILENCE)
        assert statuses == [42, 42, 42], said
        assert 8 <= len(losses(workdir)) < STEPS
        _check_what_is_said(said, victim, (workdir / "logs" / "process-1.log").read_text())
        link(victim, up=True)
        statuses, said = ends(start(workdir), within=240)
        assert statuses == [0, 0, 0], said
        assert losses(workdir) == losses(tmp_path / "whole")


def _check_what_is_said(said: list[str], victim: int, log: str) -> None:
    others = [text for i, text in enumerate(said) if i != victim]
    if victim:
        assert all("process 2 has been silent for more than 6 s" in text for text in others), said
    else:
        assert all("the coordinator 10.77.0.1:" in text and "has not answered for 6 s" in text for text in others), said
    assert "sft_jax.distributed.watchdog: process 1 of 3 exits: " in log
