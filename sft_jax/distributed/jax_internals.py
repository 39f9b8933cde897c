"""What JAX says of its processes in no public function: the only file that touches `jax._src`.

`jax.distributed.initialize` finds the cluster and connects at once, with no message that names an address; and the
store through which the processes found each other has no public door. Collectives cannot take the store's place: they
need the devices, of which the processes may have different numbers by mistake. tests/test_private_names.py checks each
name, and says which bound in pyproject.toml to move.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from jax._src import distributed
from jax._src.clusters import ClusterEnv


class Store(Protocol):
    """The part of jaxlib's DistributedRuntimeClient that is used: texts under keys, which every process sees.

    All raise `jax.errors.JaxRuntimeError` where the coordinator does not answer.
    """

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None: ...

    def blocking_key_value_get(self, key: str, timeout_in_ms: int) -> str: ...

    def key_value_dir_get(self, key: str) -> Sequence[tuple[str, str]]: ...


class Membership(NamedTuple):
    """This process among those that have joined."""

    store: Store
    process: int
    processes: int


def joined() -> Membership | None:
    """Where this process is since `jax.distributed.initialize`; None in a run of one process."""
    state = distributed.global_state
    if state.client is None:
        return None
    client: Any = state.client
    return Membership(client, state.process_id, state.num_processes or 1)


def detect_cluster(timeout_seconds: int) -> tuple[str | None, int | None, int | None, Sequence[int] | None]:
    """Coordinator, number of processes, this one's, its GPUs (None: all), by the environment of a cluster.

    Raises:
      ValueError, RuntimeError, OSError, KeyError: an environment that contradicts itself.
    """
    return ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, timeout_seconds)
