"""A process that is killed, stopped, cut off or fails: the others leave in time, with the right status."""

import os
import signal
import socket
import subprocess
import sys
import time

import jax
import pytest

from sft_jax.distributed.relay import _copy, open_relay
from sft_jax.distributed.watchdog import Watchdog, wait_for_watchdog
from sft_jax.errors import EXIT_DONE, EXIT_FAILED, EXIT_PREEMPTED

pytestmark = pytest.mark.xdist_group("machine")  # its processes keep to seconds: one such test at a time
SILENCE = 6

MEMBER = """
import sys, time
from sft_jax.cli.processes import leave, leave_the_others
from sft_jax.config import Distributed
from sft_jax.distributed.start import start
port, process, ends = sys.argv[1:]
start(Distributed(coordinator=f"127.0.0.1:{port}", processes=3, process_id=int(process), silence_seconds=6,
                  cpu_devices=1, timeout_seconds=60), leave)
print("up", flush=True)
if ends:
    seconds, status = map(int, ends.split(":"))
    time.sleep(seconds)
    if status:
        leave_the_others(status)
    sys.exit(status)
time.sleep(100)
"""


@pytest.fixture
def members(free_port):
    """(how each of three processes ends, "seconds:status" or "" for never) -> the processes, once all have met."""
    started = []

    def start(*ends):
        for process, end in enumerate(ends):
            started.append(
                subprocess.Popen(
                    [sys.executable, "-c", MEMBER, str(free_port), str(process), end],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        for process in started:
            assert process.stdout.readline() == "up\n", process.communicate()
        return started

    yield start
    for process in started:
        process.kill()
        process.communicate()


def statuses(processes, within):
    """Exit statuses of the processes and what they said; fails where one takes longer."""
    end = time.monotonic() + within
    said = [process.communicate(timeout=max(0.1, end - time.monotonic()))[1] for process in processes]
    return [process.returncode for process in processes], said


def test_who_loses_the_coordinator_leaves_with_42_at_once_and_is_not_aborted(members):
    first, *others = members("", "", "")
    first.kill()
    found, said = statuses(others, within=SILENCE)
    assert found == [EXIT_PREEMPTED, EXIT_PREEMPTED], said
    for text in said:
        assert "the coordinator 127.0.0.1:" in text and "has closed the connection" in text and "newest" in text


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_who_is_silent_is_named_and_the_others_leave_with_42_before_the_runtime_aborts(members, how):
    first, second, third = members("", "", "")
    second.send_signal(how)
    found, said = statuses([first, third], within=3 * SILENCE)
    assert found == [EXIT_PREEMPTED, EXIT_PREEMPTED], said
    assert all("process 1 has been silent for more than 6 s" in text for text in said), said
    if how == signal.SIGSTOP:  # when it wakes, nobody is there
        second.send_signal(signal.SIGCONT)
        assert statuses([second], within=3 * SILENCE)[0] == [EXIT_PREEMPTED]


@pytest.mark.slow
def test_a_stopped_coordinator_is_noticed_by_its_silence(members):
    first, *others = members("", "", "")
    first.send_signal(signal.SIGSTOP)
    found, said = statuses(others, within=3 * SILENCE)
    assert found == [EXIT_PREEMPTED, EXIT_PREEMPTED], said
    assert all("has not answered for 6 s" in text for text in said)
    first.send_signal(signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("who", [0, 2])
def test_the_others_leave_with_the_status_of_the_one_that_failed(members, who):
    processes = members(*(f"1:{EXIT_FAILED}" if process == who else "" for process in range(3)))
    found, said = statuses(processes, within=2 * SILENCE)
    assert found == [EXIT_FAILED] * 3, said
    assert all(f"process {who} has exited: status 1" in text for i, text in enumerate(said) if i != who), said


@pytest.mark.slow
def test_who_is_done_earlier_is_not_missed(members):
    found, said = statuses(members("1:0", "10:0", "1:0"), within=30)
    assert found == [EXIT_DONE] * 3, said


def test_the_verdict_is_awaited_once_and_only_for_errors_of_the_runtime():
    watch = Watchdog(None, 1, 2, "127.0.0.1:1", silence_seconds=0.1)  # type: ignore[arg-type]
    failed = jax.errors.JaxRuntimeError("all-reduce failed")
    took = []
    for error in (ValueError("ours"), failed, failed):
        begin = time.monotonic()
        wait_for_watchdog(watch, error)
        took.append(time.monotonic() - begin)
    assert took[0] < 0.1 and took[1] >= 0.15 and took[2] < 0.1, took


def test_a_relay_passes_bytes_both_ways_and_tells_who_closed_first():
    lost = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = open_relay(f"127.0.0.1:{server.getsockname()[1]}", lambda: lost.append(True))
        for closes_first in ("client", "server"):
            client = socket.create_connection(tuple(address.split(":")), timeout=5)
            upstream, _ = server.accept()
            client.sendall(b"ping")
            assert upstream.recv(9) == b"ping"
            upstream.sendall(b"pong")
            assert client.recv(9) == b"pong"
            (client if closes_first == "client" else upstream).close()
            if closes_first == "client":
                assert upstream.recv(9) == b"" and not lost
                upstream.close()
            else:
                assert client.recv(9) == b"" and lost
                client.close()


def test_a_relay_tells_a_source_that_ended_from_a_target_that_no_longer_takes_bytes():
    """A process that was stopped finds the coordinator gone by sending to it: that is no farewell of its own."""
    for refused, source_ended in ((False, True), (True, False)):
        source, far_source = socket.socketpair()
        target, far_target = socket.socketpair()
        with source, far_source, target, far_target:
            far_source.sendall(b"beat")
            if refused:
                far_target.shutdown(socket.SHUT_RD)
            else:
                far_source.shutdown(socket.SHUT_WR)
            assert _copy(source, target) is source_ended


def test_a_relay_lets_the_client_try_again_until_the_coordinator_is_there(free_port):
    address = open_relay(f"127.0.0.1:{free_port}", lambda: os._exit(1))
    with socket.create_connection(tuple(address.split(":")), timeout=5) as client:
        assert client.recv(9) == b""
    with (
        socket.create_server(("127.0.0.1", free_port)) as server,
        socket.create_connection(tuple(address.split(":")), timeout=5) as client,
    ):
        upstream, _ = server.accept()
        upstream.sendall(b"here")
        assert client.recv(9) == b"here"
        client.close()
        assert upstream.recv(9) == b""
        upstream.close()
