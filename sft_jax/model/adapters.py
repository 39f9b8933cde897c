"""The adapters, by name. To add one, put its settings in `config/kinds.py` and add a function here that returns the
kernels it applies to. New arithmetic needs a new kind of leaf (`model/leaves.py`)."""

from sft_jax.config import ADAPTERS, Adapter
from sft_jax.config.kinds import Lora, NoAdapter
from sft_jax.model.leaves import LowRank, Storage


def storage_of(config: Adapter) -> Storage:
    """The kernels that carry the configured adapter.

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
