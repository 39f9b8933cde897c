"""Parameter leaves: how a parameter is stored, and how its arrays become the kernel of a product.

Most parameters are one array. Others are several arrays that represent one kernel: int8 values and their scales, or a
base kernel with a low-rank adapter. A leaf describes its arrays (`parts`) before they exist. Sharding, saving,
restoring, counting and exporting iterate over parts and need not know the kinds. At run time, `project` multiplies with
`leaf.kernel(arrays)`.

To add a kind, write a class like `Int8` that wraps a leaf, a leaf with the methods of `ArrayLeaf`, and a kernel that
`project` handles.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from sft_jax.parallel.rules import Axes


class Part(NamedTuple):
    """One array of a leaf."""

    shape: tuple[int, ...]
    dtype: str
    axes: Axes
    """One logical axis per dimension."""

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


class Leaf(Protocol):
    """The interface of every kind of leaf."""

    @property
    def parts(self) -> dict[str, Part]:
        """Suffix -> array; the array with the empty suffix has the parameter's own name."""
        ...

    @property
    def array(self) -> "ArrayLeaf":
        """The kernel that the parts represent, as one array."""
        ...

    @property
    def pretrained(self) -> tuple[str, ...]:
        """Suffixes of the parts filled from pretrained weights by `store`; the others start as `initial`."""
        ...

    @property
    def needed_whole(self) -> tuple[int, ...]:
        """Dimensions of the kernel that `store` needs in full, whichever slice is wanted."""
        ...

    def kernel(self, arrays: Mapping[str, Any]) -> Any:
        """The kernel for `project`, from one array per suffix."""
        ...

    def store(self, values: Any) -> dict[str, Any]:
        """Convert a pretrained kernel (float, numpy or JAX) to the parts it fills."""
        ...

    def initial(self, suffix: str, key: jax.Array) -> jax.Array:
        """Initial value of a part that is not in the pretrained weights."""
        ...


@dataclass(frozen=True)
class ArrayLeaf:
    """A parameter that is one array."""

    shape: tuple[int, ...]
    axes: Axes
    equation: str = ""
    """The einsum of its product, such as `BTD,DNH->BTNH`, if it is a kernel. Leading dimensions that the equation does
    not name are stacked layers."""
    dtype: str = "float32"

    @property
    def parts(self) -> dict[str, Part]:
        return {"": Part(self.shape, self.dtype, self.axes)}

    @property
    def array(self) -> "ArrayLeaf":
        return self

    @property
    def pretrained(self) -> tuple[str, ...]:
        return ("",)

    @property
    def needed_whole(self) -> tuple[int, ...]:
        return ()

    def kernel(self, arrays: Mapping[str, Any]) -> Any:
        return arrays[""]

    def store(self, values: Any) -> dict[str, Any]:
        return {"": values}

    def initial(self, suffix: str, key: jax.Array) -> jax.Array:
        raise KeyError(f"an array has no part {suffix!r} to initialise")

    @property
    def stacked(self) -> int:
        """Number of leading dimensions that the equation does not name."""
        return len(self.shape) - len(kernel_letters(self.equation))

    def dims(self, letters: str) -> tuple[int, ...]:
        """Indices of the dimensions with these letters, in the array's order."""
        names = kernel_letters(self.equation)
        return tuple(self.stacked + names.index(letter) for letter in names if letter in letters)


def kernel_letters(equation: str) -> str:
    return equation.split("->")[0].split(",")[1]


def input_letters(equation: str) -> str:
    """Letters of the kernel that are contracted with the activations."""
    y = equation.split("->")[1]
    return "".join(letter for letter in kernel_letters(equation) if letter not in y)


def batch_letters(equation: str) -> str:
    """Letters that appear in activations, kernel and result: experts."""
    x, y = equation.split(",")[0], equation.split("->")[1]
    return "".join(letter for letter in kernel_letters(equation) if letter in x and letter in y)


def output_letters(equation: str) -> str:
    other = input_letters(equation) + batch_letters(equation)
    return "".join(letter for letter in kernel_letters(equation) if letter not in other)


# --- int8 values and scales -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Int8Leaf:
    """A kernel stored as int8 values and one float32 scale per output: symmetric, rounded to nearest.

    Never trained: updates smaller than half a quantisation step would be lost.
    """

    array: ArrayLeaf

    @property
    def pretrained(self) -> tuple[str, ...]:
        return ("values", "scales")

    @property
    def needed_whole(self) -> tuple[int, ...]:
        return self.array.dims(input_letters(self.array.equation))

    @property
    def _scales(self) -> Part:
        reduced = self.needed_whole
        shape = tuple(1 if i in reduced else size for i, size in enumerate(self.array.shape))
        axes = tuple(None if i in reduced else axis for i, axis in enumerate(self.array.axes))
        return Part(shape, "float32", axes)

    @property
    def parts(self) -> dict[str, Part]:
        return {"values": Part(self.array.shape, "int8", self.array.axes), "scales": self._scales}

    def kernel(self, arrays: Mapping[str, Any]) -> Any:
        return Int8Kernel(arrays["values"], arrays["scales"])

    def store(self, values: Any) -> dict[str, Any]:
        largest = abs(values).max(axis=self.needed_whole, keepdims=True).astype(np.float32)
        scales = (largest + (largest == 0)) / np.float32(127)
        return {"values": (values / scales).round().astype(np.int8), "scales": scales}

    def initial(self, suffix: str, key: jax.Array) -> jax.Array:
        raise KeyError(f"an int8 kernel has no part {suffix!r} to initialise")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Int8Kernel:
    values: jax.Array
    scales: jax.Array

    def astype(self, dtype) -> jax.Array:
        return self.values.astype(dtype) * self.scales.astype(dtype)


# --- a base and a low-rank adapter ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LowRankLeaf:
    """A base kernel W with a low-rank adapter: x W + (alpha / rank) (x A) B (Hu et al. 2021, LoRA)."""

    base: ArrayLeaf | Int8Leaf
    rank: int
    alpha: float

    @property
    def array(self) -> ArrayLeaf:
        return self.base.array

    @property
    def pretrained(self) -> tuple[str, ...]:
        return self.base.pretrained

    @property
    def needed_whole(self) -> tuple[int, ...]:
        return self.base.needed_whole

    def _part(self, letters: str, rank_last: bool) -> Part:
        """Shape [stacked layers, experts, inputs, rank], or [stacked layers, experts, rank, outputs]."""
        array = self.array
        lead = [*range(array.stacked), *array.dims(batch_letters(array.equation))]
        own = list(array.dims(letters))
        shape, axes = [array.shape[i] for i in own], [array.axes[i] for i in own]
        shape, axes = ([*shape, self.rank], [*axes, None]) if rank_last else ([self.rank, *shape], [None, *axes])
        return Part((*(array.shape[i] for i in lead), *shape), "float32", (*(array.axes[i] for i in lead), *axes))

    @property
    def parts(self) -> dict[str, Part]:
        equation = self.array.equation
        return {
            **self.base.parts,
            "lora_a": self._part(input_letters(equation), rank_last=True),
            "lora_b": self._part(output_letters(equation), rank_last=False),
        }

    def kernel(self, arrays: Mapping[str, Any]) -> Any:
        return LowRankKernel(self.base.kernel(arrays), arrays["lora_a"], arrays["lora_b"], self.alpha / self.rank)

    def store(self, values: Any) -> dict[str, Any]:
        return self.base.store(values)

    def initial(self, suffix: str, key: jax.Array) -> jax.Array:
        """A uniform in +-1 / sqrt(inputs) and B zero, as in PEFT (`LoraLayer.reset_lora_parameters`)."""
        part = self.parts[suffix]
        if suffix == "lora_b":
            return jnp.zeros(part.shape, jnp.float32)
        bound = math.prod(self.array.shape[i] for i in self.array.dims(input_letters(self.array.equation))) ** -0.5
        return jax.random.uniform(key, part.shape, jnp.float32, -bound, bound)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LowRankKernel:
    base: Any
    a: jax.Array
    b: jax.Array
    scale: float = field(metadata={"static": True})


# --- a kernel laid out for one token per row --------------------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FlatKernel:
    """A kernel as one matrix [outputs, inputs], the fastest layout on CPUs for a few tokens (T = 1)."""

    matrix: jax.Array
    outputs: tuple[int, ...] = field(metadata={"static": True})
    """Sizes of the output dimensions."""

    def times(self, x: jax.Array) -> jax.Array:
        y_FB = jnp.einsum("FE,BE->FB", self.matrix.astype(x.dtype), x.reshape(len(x), -1))
        # Without the barrier XLA turns this into a product of x and the kernel, a seventh slower on CPUs.
        return jax.lax.optimization_barrier(y_FB).T.reshape(len(x), 1, *self.outputs)


def flattened(kernel: Any, equation: str, dtype: str) -> Any:
    """The kernel (of one layer) as a `FlatKernel`; kinds that have no such form are returned unchanged."""
    if isinstance(kernel, LowRankKernel):
        return replace(kernel, base=flattened(kernel.base, equation, dtype))
    if not isinstance(kernel, jax.Array) or batch_letters(equation):
        return kernel
    letters, inputs = kernel_letters(equation), input_letters(equation)
    last = [*(letters.index(x) for x in letters if x not in inputs), *(letters.index(x) for x in inputs)]
    outputs = tuple(kernel.shape[letters.index(x)] for x in letters if x not in inputs)
    matrix = kernel.transpose(last).reshape(math.prod(outputs), -1)
    return FlatKernel(matrix.astype(dtype), outputs)


# --- products ---------------------------------------------------------------------------------------------------------


def project(product: Any, equation: str, x: jax.Array, kernel: Any) -> jax.Array:
    """Multiply activations with a kernel of any kind, in the dtype of `x`.

    An adapter is applied to the activations; its product A B is never materialised.

    Args:
      product: (equation, x, array) -> array, the einsum for plain arrays.
    """
    if isinstance(kernel, FlatKernel):
        return kernel.times(x)
    if not isinstance(kernel, LowRankKernel):
        return product(equation, x, kernel.astype(x.dtype))
    x_dims, y_dims = equation.split(",")[0], equation.split("->")[1]
    batch, inputs, outputs = batch_letters(equation), input_letters(equation), output_letters(equation)
    inner = "".join(letter for letter in x_dims if letter not in inputs) + "R"
    down = jnp.einsum(f"{x_dims},{batch}{inputs}R->{inner}", x, kernel.a.astype(x.dtype))
    up = jnp.einsum(f"{inner},{batch}R{outputs}->{y_dims}", down, kernel.b.astype(x.dtype))
    return project(product, equation, x, kernel.base) + kernel.scale * up


def effective_kernel(kernel: Any, equation: str) -> jax.Array:
    """The kernel with adapters merged, as one float32 array [..., dimensions of the equation], for export."""
    if not isinstance(kernel, LowRankKernel):
        return kernel.astype(jnp.float32)
    batch, inputs, outputs = batch_letters(equation), input_letters(equation), output_letters(equation)
    both = jnp.einsum(f"...{batch}{inputs}R,...{batch}R{outputs}->...{kernel_letters(equation)}", kernel.a, kernel.b)
    return effective_kernel(kernel.base, equation) + kernel.scale * both


# --- kinds ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Int8:
    """Store kernels as int8 values and scales."""

    def leaf(self, leaf: Any) -> Any:
        return Int8Leaf(leaf)


@dataclass(frozen=True)
class LowRank:
    """Add a low-rank adapter to kernels."""

    rank: int
    alpha: float

    def leaf(self, leaf: Any) -> Any:
        return LowRankLeaf(leaf, self.rank, self.alpha)


Storage = tuple[tuple[str, Int8 | LowRank], ...]
"""(name pattern, kind) pairs, applied in order; they affect kernels only."""


def stored_as(name: str, leaf: ArrayLeaf, storage: Storage) -> Leaf:
    """The leaf of the parameter `name` under `storage`; parameters that are not kernels stay arrays."""
    found: Leaf = leaf
    for pattern, kind in storage:
        if leaf.equation and fnmatchcase(name, pattern):
            found = kind.leaf(found)
    return found


def part_name(name: str, suffix: str) -> str:
    """The model-wide array name of a part."""
    return f"{name}.{suffix}" if suffix else name
