"""The kinds that ship, with their settings and defaults; what they make stands in the rooms that use them."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from sft_jax.config.registry import Registry

OPTIMIZERS = Registry("optimizer.name")
LOSSES = Registry("loss.kind")
ADAPTERS = Registry("adapter.kind")
SINKS = Registry("train.sinks")

MomentDtype = Literal["float32", "bfloat16"]


@OPTIMIZERS.kind("adamw")
@dataclass(frozen=True)
class AdamW:
    """Loshchilov & Hutter 2019."""

    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    first_moment_dtype: MomentDtype = "float32"


@OPTIMIZERS.kind("sgd")
@dataclass(frozen=True)
class Sgd:
    """Gradient descent, with momentum if asked for."""

    momentum: float = 0.0


@OPTIMIZERS.kind("lion")
@dataclass(frozen=True)
class Lion:
    """Chen et al. 2023: the sign of an interpolated momentum. Takes a third to a tenth of AdamW's learning rate."""

    b1: float = 0.9
    b2: float = 0.99
    first_moment_dtype: MomentDtype = "float32"


@OPTIMIZERS.kind("adafactor")
@dataclass(frozen=True)
class Adafactor:
    """Shazeer & Stern 2018: second moments of matrices as one row and one column."""

    decay_rate: float = 0.8
    factored_from: int = 128
    clip_rms: float = 1.0


@OPTIMIZERS.kind("muon")
@dataclass(frozen=True)
class Muon:
    """Jordan et al. 2024: orthogonalised momentum for the kernels of layers; AdamW for everything else."""

    momentum: float = 0.95
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8


@LOSSES.kind("cross_entropy")
@dataclass(frozen=True)
class CrossEntropy:
    """-log p of the demonstrated tokens: imitation."""

    reads_pairs: ClassVar[bool] = False
    scalar_head: ClassVar[bool] = False


@LOSSES.kind("reward")
@dataclass(frozen=True)
class Reward:
    """Bradley-Terry on `chosen` and `rejected`: a reward model."""

    reads_pairs: ClassVar[bool] = True
    scalar_head: ClassVar[bool] = True


@ADAPTERS.kind("none")
@dataclass(frozen=True)
class NoAdapter:
    """The whole model trains, or what train.trainable names."""


@ADAPTERS.kind("lora")
@dataclass(frozen=True)
class Lora:
    """Hu et al. 2021: x W + (alpha / rank) (x A) B, of which A and B train."""

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = ("*.kernel",)


@SINKS.kind("tensorboard")
@dataclass(frozen=True)
class TensorBoard:
    """Event files in workdir/tensorboard."""
