"""Start-up: simulated devices, and finding the other processes before the first device is touched."""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator

import jax

from sft_jax.config import Distributed
from sft_jax.errors import EXIT_BAD_INPUT, BadInput


def start(config: Distributed) -> None:
    """Configure the backend and join the other processes; call it once, before any `jax.devices()`.

    Where the other processes do not come within the timeout, the process ends here with the status of bad input and a
    message: JAX would abort it with a stack of C++.

    Raises:
      BadInput: `auto` where no cluster says who the processes are.
    """
    if config.cpu_devices:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", config.cpu_devices)
    if jax.distributed.is_initialized():  # by an earlier run of this process
        return
    if config.auto:
        try:
            jax.distributed.initialize(initialization_timeout=config.timeout_seconds)
        except (ValueError, RuntimeError) as error:
            raise BadInput(
                f"distributed.auto: no cluster environment (Cloud TPU, GKE, Slurm) tells the processes: {error} "
                "Name them by hand with --distributed.coordinator, --distributed.processes, --distributed.process-id."
            ) from error
    elif config.processes > 1:
        _start_by_hand(config)


def _start_by_hand(config: Distributed) -> None:
    # gloo carries the collectives of CPU processes; accelerators bring their own.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    with _deadline(config):
        jax.distributed.initialize(
            config.coordinator,
            config.processes,
            config.process_id,
            initialization_timeout=config.timeout_seconds + 60,
            cluster_detection_method="deactivate",
        )


@contextlib.contextmanager
def _deadline(config: Distributed) -> Iterator[None]:
    """End the process when what is inside takes longer than the timeout; Python cannot interrupt it."""

    def give_up() -> None:
        others = "the others did not all come" if config.process_id == 0 else "it did not answer"
        print(
            f"error: process {config.process_id} of {config.processes} waited {config.timeout_seconds} s at the "
            f"coordinator {config.coordinator}: {others}. Start every process with the same --distributed.coordinator "
            "(host:port of process 0) and --distributed.processes, and its own --distributed.process-id.",
            file=sys.stderr,
            flush=True,
        )
        os._exit(EXIT_BAD_INPUT)

    timer = threading.Timer(config.timeout_seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
