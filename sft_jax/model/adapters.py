"""The adapters, by name. To add one: its settings in `config/kinds.py`, and a function here that says which kernels are
stored with it; a new kind of arithmetic is a new kind of leaf (`model/leaves.py`)."""

from sft_jax.config import ADAPTERS, Adapter
from sft_jax.config.kinds import Lora, NoAdapter
from sft_jax.model.leaves import LowRank, Storage


def storage_of(config: Adapter) -> Storage:
    """Which kernels are stored with the adapter that the config names.

    Raises:
      BadInput: an unknown adapter.
    """
    return ADAPTERS.make(config.kind, config)


@ADAPTERS.maker("none")
def none(own: NoAdapter) -> Storage:
    return ()


@ADAPTERS.maker("lora")
def lora(own: Lora) -> Storage:
    return tuple((target, LowRank(own.rank, own.alpha)) for target in own.targets)
