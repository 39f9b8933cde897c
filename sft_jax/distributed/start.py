"""Start-up: simulate devices, join the other processes before JAX touches a device, and check the device count."""

import atexit
import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import NamedTuple

import jax

from sft_jax.config import Distributed
from sft_jax.distributed.jax_internals import detect_cluster, joined
from sft_jax.distributed.relay import open_relay
from sft_jax.distributed.tpu_lock import check_tpu_is_free, libtpu_without_tpu
from sft_jax.distributed.watchdog import (
    ExitProcess,
    Watchdog,
    announce_exit,
    log_exit,
    on_coordinator_lost,
    start_watchdog,
)
from sft_jax.errors import EXIT_BAD_INPUT, BadInput

SLACK_SECONDS = 60
"""Margin by which the runtime's timeouts exceed ours: the runtime aborts with a less useful message."""

watch: Watchdog | None = None
"""The watchdog of this process; None in a single-process run."""


class Members(NamedTuple):
    """The processes of a run, and the id of this one."""

    coordinator: str
    """host:port of process 0."""
    processes: int
    process: int
    gpus: list[int] | None = None
    """The local GPUs of this process; None for all."""


def start(config: Distributed, exit_process: ExitProcess = log_exit) -> None:
    """Configure the backend and join the other processes; call once, before any `jax.devices()`.

    Args:
      exit_process: called to end this process when it cannot continue: the others do not join within the timeout (JAX
        would abort with a C++ stack trace), or one is lost later.

    Raises:
      BadInput: `auto` outside a known cluster; an unusable address; a TPU held by another process; a device count other
        than `config.devices`.
    """
    if config.cpu_devices:
        _simulate(config.cpu_devices)
    else:
        check_tpu_is_free()
        if libtpu_without_tpu():  # otherwise it prints errors before JAX falls back to the CPU
            jax.config.update("jax_platforms", "cpu")
    if not jax.distributed.is_initialized():  # an earlier run in this process may have done it
        members = detect(config) if config.auto else Members(config.coordinator, config.processes, config.process_id)
        if members.processes > 1:
            _join(members, config, exit_process)
    if config.devices:
        _check_devices(config)


def _simulate(devices: int) -> None:
    """Raises BadInput if JAX is already initialized in this process with other devices."""
    try:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", devices)
    except RuntimeError as error:
        found = jax.local_devices()
        if len(found) != devices or found[0].platform != "cpu":
            raise BadInput(
                f"distributed.cpu_devices is {devices}, but JAX is already initialized in this process with "
                f"{len(found)} {found[0].platform} device(s). Start a new process (restart the notebook kernel) and "
                "create the run before anything else uses JAX, or set distributed.cpu_devices to 0"
            ) from error


def detect(config: Distributed) -> Members:
    """The processes according to the environment of Cloud TPU, GKE, Slurm or Open MPI.

    Raises:
      BadInput: none of these is present.
    """
    try:
        coordinator, processes, process, gpus = detect_cluster(config.timeout_seconds)
    except (ValueError, RuntimeError, OSError, KeyError) as error:
        raise BadInput(f"distributed.auto: the cluster's environment cannot be read: {error}. {BY_HAND}") from error
    if coordinator is None or processes is None or process is None:
        raise BadInput(f"distributed.auto: found no cluster environment (Cloud TPU, GKE, Slurm, Open MPI). {BY_HAND}")
    return Members(coordinator, processes, process, None if gpus is None else list(gpus))


BY_HAND = "Set --distributed.coordinator, --distributed.processes and --distributed.process-id instead."


def _join(members: Members, config: Distributed, exit_process: ExitProcess) -> None:
    global watch
    _check_address(members)
    # CPU processes need gloo for collectives; accelerators have their own.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")

    def lost() -> None:
        if watch is not None:
            on_coordinator_lost(watch, "has closed the connection")

    port = members.coordinator.rsplit(":", 1)[1]
    with _deadline(members, config.timeout_seconds, exit_process):
        jax.distributed.initialize(
            members.coordinator if members.process == 0 else open_relay(members.coordinator, lost),
            members.processes,
            members.process,
            local_device_ids=members.gpus,
            initialization_timeout=config.timeout_seconds + SLACK_SECONDS,
            heartbeat_timeout_seconds=2 * config.silence_seconds + SLACK_SECONDS,
            cluster_detection_method="deactivate",
            coordinator_bind_address=f"[::]:{port}" if socket.has_dualstack_ipv6() else f"0.0.0.0:{port}",
        )
    member = joined()
    assert member is not None
    watch = start_watchdog(
        member.store,
        members.process,
        members.processes,
        members.coordinator,
        float(config.silence_seconds),
        exit_process,
    )
    # Runs before JAX's own exit hook, which waits for the others and then stops the coordinator.
    atexit.register(announce_exit, watch, 0, "")


def _check_address(members: Members) -> None:
    """Raises BadInput if process 0 cannot listen on the port, or another process cannot resolve the host."""
    host, port = members.coordinator.rsplit(":", 1)
    try:
        if members.process == 0:
            with socket.create_server(("", int(port))):
                pass
        else:
            socket.getaddrinfo(host.strip("[]"), int(port))
    except socket.gaierror as error:
        raise BadInput(
            f"distributed.coordinator {members.coordinator}: no host has the name {host!r} ({error.strerror}). Use "
            "an address of process 0 that the other hosts can resolve."
        ) from error
    except OSError as error:
        raise BadInput(
            f"distributed.coordinator {members.coordinator}: process 0 cannot listen on port {port}: {error.strerror}. "
            "Another run may be using it: stop that run, or choose another port for all processes."
        ) from error


@contextlib.contextmanager
def _deadline(members: Members, seconds: int, exit_process: ExitProcess) -> Iterator[None]:
    """End the process if the body takes longer than the timeout; Python cannot interrupt the C++ call inside."""

    def give_up() -> None:
        others = "not all of the others joined" if members.process == 0 else "it did not answer"
        exit_process(
            EXIT_BAD_INPUT,
            f"error: process {members.process} of {members.processes} waited {seconds} s for the "
            f"coordinator {members.coordinator}: {others}. Start every process with the same --distributed.coordinator "
            "(host:port of process 0) and --distributed.processes, and its own --distributed.process-id. The port must "
            "be open between the hosts.",
        )

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _check_devices(config: Distributed) -> None:
    """Raises BadInput, on every process, if the total device count is not `config.devices`."""
    if jax.device_count() != config.devices:
        per_process = dict.fromkeys(range(jax.process_count()), 0)
        for device in jax.devices():
            per_process[device.process_index] += 1
        listed = ", ".join(f"{number} on process {process}" for process, number in per_process.items())
        raise BadInput(
            f"distributed.devices is {config.devices}, found {jax.device_count()} {jax.devices()[0].device_kind} "
            f"devices: {listed}. A host is missing or does not see all of its chips. Set distributed.devices to 0 to "
            "accept any number."
        )
