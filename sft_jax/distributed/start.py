"""Start-up: simulated devices, finding the other processes before the first device is touched, and counting devices."""

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
from sft_jax.distributed.watchdog import Leave, Watchdog, farewell, lost_coordinator, start_watchdog, stay
from sft_jax.errors import EXIT_BAD_INPUT, BadInput

SLACK_SECONDS = 60
"""How much longer than ours the runtime's own time limits are: it aborts, and says less."""

watch: Watchdog | None = None
"""The watchdog of this process; None in a run of one process."""


class Members(NamedTuple):
    """The processes of a run, and which one this is."""

    coordinator: str
    """host:port of process 0."""
    processes: int
    process: int
    gpus: list[int] | None = None
    """The local GPUs of this process; None for all."""


def start(config: Distributed, leave: Leave = stay) -> None:
    """Configure the backend and join the other processes; call it once, before any `jax.devices()`.

    Args:
      leave: ends this process where it cannot go on: the others do not come within the timeout (JAX would abort it with
        a stack of C++), or one of them is gone later.

    Raises:
      BadInput: `auto` where no cluster says who the processes are; an address that cannot be used; a TPU that another
        process holds; fewer devices than `config.devices`.
    """
    if config.cpu_devices:
        _simulate(config.cpu_devices)
    else:
        check_tpu_is_free()
        if libtpu_without_tpu():  # else it prints errors of its own before JAX falls back to the CPU
            jax.config.update("jax_platforms", "cpu")
    if not jax.distributed.is_initialized():  # else by an earlier run of this process
        members = detect(config) if config.auto else Members(config.coordinator, config.processes, config.process_id)
        if members.processes > 1:
            _join(members, config, leave)
    if config.devices:
        _check_devices(config)


def _simulate(devices: int) -> None:
    """Raises BadInput where JAX has been used in this process and has other devices: it finds them once."""
    try:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", devices)
    except RuntimeError as error:
        found = jax.local_devices()
        if len(found) != devices or found[0].platform != "cpu":
            raise BadInput(
                f"distributed.cpu_devices is {devices}, but JAX has been used in this process already and has "
                f"{len(found)} {found[0].platform} device(s). Start a new process (restart the notebook's kernel) and "
                "make the run before anything else uses JAX, or set distributed.cpu_devices to 0"
            ) from error


def detect(config: Distributed) -> Members:
    """Who the processes are by the environment of Cloud TPU, GKE, Slurm or Open MPI.

    Raises:
      BadInput: none of these.
    """
    try:
        coordinator, processes, process, gpus = detect_cluster(config.timeout_seconds)
    except (ValueError, RuntimeError, OSError, KeyError) as error:
        raise BadInput(f"distributed.auto: the cluster's environment cannot be read: {error}. {BY_HAND}") from error
    if coordinator is None or processes is None or process is None:
        raise BadInput(
            f"distributed.auto: no cluster environment (Cloud TPU, GKE, Slurm, Open MPI) tells the processes. {BY_HAND}"
        )
    return Members(coordinator, processes, process, None if gpus is None else list(gpus))


BY_HAND = "Name them by hand with --distributed.coordinator, --distributed.processes, --distributed.process-id."


def _join(members: Members, config: Distributed, leave: Leave) -> None:
    global watch
    _check_address(members)
    # gloo carries the collectives of CPU processes; accelerators bring their own.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")

    def lost() -> None:
        if watch is not None:
            lost_coordinator(watch, "has closed the connection")

    port = members.coordinator.rsplit(":", 1)[1]
    with _deadline(members, config.timeout_seconds, leave):
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
    place = joined()
    assert place is not None
    watch = start_watchdog(
        place.store, members.process, members.processes, members.coordinator, float(config.silence_seconds), leave
    )
    # Before JAX's own exit hook, which waits for the others and then ends the coordinator.
    atexit.register(farewell, watch, 0, "")


def _check_address(members: Members) -> None:
    """Raises BadInput where process 0 cannot listen, or another one cannot look up where it would."""
    host, port = members.coordinator.rsplit(":", 1)
    try:
        if members.process == 0:
            with socket.create_server(("", int(port))):
                pass
        else:
            socket.getaddrinfo(host.strip("[]"), int(port))
    except socket.gaierror as error:
        raise BadInput(
            f"distributed.coordinator {members.coordinator}: no host has the name {host!r} ({error.strerror}). Give "
            "the address of process 0 as the other hosts know it."
        ) from error
    except OSError as error:
        raise BadInput(
            f"distributed.coordinator {members.coordinator}: process 0 cannot listen on port {port}: {error.strerror}. "
            "Another run may hold it: stop that one, or take another port for all processes."
        ) from error


@contextlib.contextmanager
def _deadline(members: Members, seconds: int, leave: Leave) -> Iterator[None]:
    """End the process when what is inside takes longer than the timeout; Python cannot interrupt it."""

    def give_up() -> None:
        others = "the others did not all come" if members.process == 0 else "it did not answer"
        leave(
            EXIT_BAD_INPUT,
            f"error: process {members.process} of {members.processes} waited {seconds} s at the "
            f"coordinator {members.coordinator}: {others}. Start every process with the same --distributed.coordinator "
            "(host:port of process 0) and --distributed.processes, and its own --distributed.process-id; the port must "
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
    """Raises BadInput, on every process, where the devices of all are not `config.devices`."""
    if jax.device_count() != config.devices:
        per_process = dict.fromkeys(range(jax.process_count()), 0)
        for device in jax.devices():
            per_process[device.process_index] += 1
        listed = ", ".join(f"{number} on process {process}" for process, number in per_process.items())
        raise BadInput(
            f"distributed.devices is {config.devices}, found {jax.device_count()} {jax.devices()[0].device_kind} "
            f"devices: {listed}. A host is missing or does not see all its chips; set distributed.devices to 0 to take "
            "what is there."
        )
