"""Start-up: simulated devices, and finding the other processes before the first device is touched."""

import jax

from sft_jax.config import Distributed
from sft_jax.errors import BadInput


def start(config: Distributed) -> None:
    """Configure the backend and join the other processes; call it once, before any `jax.devices()`.

    Raises:
      BadInput: the coordinator did not answer within the timeout; address and seconds are named.
    """
    if config.cpu_devices:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", config.cpu_devices)
    if config.auto:
        jax.distributed.initialize(initialization_timeout=config.timeout_seconds)
    elif config.processes > 1:
        _start_by_hand(config)


def _start_by_hand(config: Distributed) -> None:
    # gloo carries the collectives of CPU processes; accelerators bring their own.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            config.coordinator,
            config.processes,
            config.process_id,
            initialization_timeout=config.timeout_seconds,
            cluster_detection_method="deactivate",
        )
    except RuntimeError as error:
        raise BadInput(
            f"process {config.process_id} of {config.processes} could not join the coordinator {config.coordinator} "
            f"within {config.timeout_seconds} s: {error}"
        ) from error
