"""What JAX exposes about its processes only in private names: the one file that touches `jax._src`.

`jax.distributed.initialize` detects the cluster and connects in one call, without naming the address in its errors,
and the coordination service's key-value store has no public API. Collectives cannot replace the store: they need the
devices, and a misconfigured process may have the wrong number of them. tests/test_private_names.py checks each name
and says which bound in pyproject.toml to move.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from jax._src import distributed
from jax._src.clusters import ClusterEnv


class Store(Protocol):
    """The methods of jaxlib's DistributedRuntimeClient that we use: a key-value store shared by all processes.

    All raise `jax.errors.JaxRuntimeError` if the coordinator does not answer.
    """

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None: ...

    def blocking_key_value_get(self, key: str, timeout_in_ms: int) -> str: ...

    def key_value_dir_get(self, key: str) -> Sequence[tuple[str, str]]: ...


class Membership(NamedTuple):
    """This process's rank in the run, and the shared store."""

    store: Store
    process: int
    processes: int


def joined() -> Membership | None:
    """This process's membership after `jax.distributed.initialize`; None in a single-process run."""
    state = distributed.global_state
    if state.client is None:
        return None
    client: Any = state.client
    return Membership(client, state.process_id, state.num_processes or 1)


def detect_cluster(timeout_seconds: int) -> tuple[str | None, int | None, int | None, Sequence[int] | None]:
    """(coordinator, number of processes, process id, local GPUs or None for all) from the cluster's environment.

    Raises:
      ValueError, RuntimeError, OSError, KeyError: the environment is inconsistent.
    """
    return ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, timeout_seconds)
