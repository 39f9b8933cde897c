"""An update's work and memory in closed form: milliseconds per layout instead of a minute of compilation.

It prunes the search, plans for GPUs, and plans where the TPU compiler does not run. Products are exact; a layer's other
memory traffic and XLA's peak memory are modelled as passes over activations, calibrated on compiled programs. A
compiled plan is more accurate; tests check that the two agree.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh

from sft_jax.config import Model, RunConfig, Train
from sft_jax.data.pack.batches import Batch
from sft_jax.model.architecture import Architecture
from sft_jax.model.decoder import abstract_parameters, leaves
from sft_jax.model.trainable import split_parameters, trainable_names
from sft_jax.parallel.rules import axis_parts, mesh_axes
from sft_jax.plan.chips import Topology
from sft_jax.plan.work import Product, Region, Transfer, Work, causal_imbalance
from sft_jax.train.optimizers import make_optimizer
from sft_jax.weights.pretrained import as_trained

BF16, F32 = 2, 4

FORWARD_PASSES = (14.0, 3.0)
"""Reads or writes of [tokens, D] and of [tokens, F] in a layer's forward pass, excluding products: norms, RoPE,
residuals, activation function. Read off compiled programs (v6e, Llama 3.1 8B)."""
BACKWARD_PASSES = (22.0, 6.0)
"""The same for the backward pass."""
LOGIT_PASSES = 6.0
"""Reads or writes of a chunk's float32 logits, excluding those of products."""
WINDOWED = 16
"""If at most this many devices shard a kernel, without replicas and without several micro-batches of sharded rows, XLA
turns its product into a loop (windowed einsum) that overlaps with permuting the shards. Otherwise TPUs without
collective cores wait."""
PARTIAL_SUMS = 0.35
"""Passes over the result that such a loop adds per device if the sharded dimension is contracted."""
BLOCK = 512
"""Block size of an attention kernel; blocks on the diagonal are computed in full."""


class Sizes(NamedTuple):
    """Per-device sizes of an update."""

    dtype: int
    """Bytes per activation element."""
    micro: int
    """Number of micro-batches."""
    tokens: float
    """Per micro-batch."""
    rows: float
    length: float
    """Of a whole row."""
    targets: float
    """Per micro-batch."""
    heads: float
    """heads x head_dim."""
    kv_heads: float
    mlp: float
    vocab: float
    shards: int
    """Number of shards along the embed dimension of parameters."""


def sizes_of(config: RunConfig, a: Architecture, shapes: Batch, mesh: AbstractMesh) -> Sizes:
    """The sizes on one device of this mesh."""

    def part(size: float, axis: str) -> float:
        return size / axis_parts(axis, config.sharding, mesh)

    micro, rows, length = shapes.tokens
    rows_here = part(rows, "act_batch")
    return Sizes(
        dtype=F32 if config.model.dtype == "float32" else BF16,
        micro=micro,
        tokens=rows_here * part(length, "act_length"),
        rows=rows_here,
        length=length,
        targets=rows_here * part(shapes.target_index[2], "act_targets"),
        heads=part(a.heads * a.head_dim, "heads"),
        kv_heads=part(a.kv_heads * a.head_dim, "kv_heads"),
        mlp=part(a.mlp, "mlp"),
        vocab=part(a.vocab, "vocab"),
        shards=axis_parts("embed", config.sharding, mesh),
    )


def layer_parameters(a: Architecture, s: Sizes) -> float:
    """Parameters of one layer on a device, after the all-gather."""
    return a.embed * (2 * s.heads + 2 * s.kv_heads + 3 * s.mlp)


def update_work(config: RunConfig, a: Architecture, shapes: Batch, mesh: AbstractMesh, topology: Topology) -> Region:
    """The work of one device in one update."""
    s = sizes_of(config, a, shapes, mesh)
    net = _Network(config, mesh, topology)
    remat = config.model.remat
    again = 1.0 if remat == "full" else 0.0
    kept = saved_bytes(config, a, s) if remat == "offload" else 0.0
    weights = layer_parameters(a, s) * s.dtype
    forward = (
        *_layer_products(a, s, 1.0),
        *_attention(a, s, net, 2.0),
        *_passes(a, s, FORWARD_PASSES),
        *net.partial_sums(s.tokens * (s.heads + 2 * s.kv_heads + 2 * s.mlp) * s.dtype),
        *net.gathers("weights", weights, "embed"),
        *net.reductions("activations", 2 * s.tokens * a.embed * s.dtype, "heads"),
        Work("kept on the host", host=kept, waits=False),
    )
    recomputed = _recomputed_names(config, a)
    backward = (
        *_layer_products(a, s, 2.0),
        *_recomputed(a, s, recomputed),
        *_attention(a, s, net, 7.0 + 2.0 * again),
        *_passes(a, s, BACKWARD_PASSES),
        *net.partial_sums(s.tokens * s.mlp * s.dtype),
        *(_passes(a, s, FORWARD_PASSES) if remat != "none" else ()),
        *net.gathers("weights", weights * (2 if recomputed else 1), "embed"),
        *net.scatters("gradients", weights, "embed"),
        *net.reductions("gradients", weights / s.shards, "act_batch", without="embed"),
        *net.reductions("activations", 2 * s.tokens * a.embed * s.dtype, "heads"),
        Work("kept on the host", host=kept, waits=False),
    )
    chunks = max(1.0, s.targets / min(config.model.head_chunk, s.targets))
    micro = Region(
        "micro-batch",
        s.micro,
        (
            *_embedding(a, s, net),
            Region("layers", a.depth, forward),
            Region("head", chunks, tuple(_head_chunk(a, s, net, chunks))),
            Region("layers, backward", a.depth, backward),
        ),
    )
    return Region("update", 1, (micro, _optimizer(config, a, s)))


def _products(a: Architecture, s: Sizes) -> tuple[tuple[str, float, float], ...]:
    """(name, inputs, outputs) of a layer's kernels."""
    return (
        ("query", a.embed, s.heads),
        ("key", a.embed, s.kv_heads),
        ("value", a.embed, s.kv_heads),
        ("output", s.heads, a.embed),
        ("gate", a.embed, s.mlp),
        ("up", a.embed, s.mlp),
        ("down", s.mlp, a.embed),
    )


def _layer_products(a: Architecture, s: Sizes, times: float):
    """A layer's products with its weights; `times` is 2 for the two gradients."""
    for name, k, n in _products(a, s):
        yield _product(name, s, s.tokens, k, n, times)


def _recomputed(a: Architecture, s: Sizes, names: tuple[str, ...]):
    """The products that the backward pass recomputes."""
    for name, k, n in _products(a, s):
        if name in names:
            yield _product(f"{name} again", s, s.tokens, k, n, 1.0)


def _recomputed_names(config: RunConfig, a: Architecture) -> tuple[str, ...]:
    mlp = ("output", "gate", "up")
    if config.model.remat == "full":
        return ("query", "key", "value", *mlp)
    if config.model.remat in ("attention", "offload"):
        # A norm's backward pass needs its input, but only its result is saved.
        return (*(("query", "key") if a.qk_norm else ()), *mlp)
    return ()


def _product(name: str, s: Sizes, m: float, k: float, n: float, times: float) -> Work:
    return Work(name, products=(Product(m, k, n, times),), hbm=times * s.dtype * (m * k + k * n + m * n))


def _attention(a: Architecture, s: Sizes, net: "_Network", products: float):
    """The attention kernels; `products` counts matrix products per visible block, two in the forward pass."""
    parts = net.parts("act_length")
    block = min(BLOCK, s.length)
    seen = sum(
        1.0 if spec.window is None else min(1.0, 2 * spec.window / s.length) for spec in a.layers
    ) / a.depth  # fmt: skip
    flops = products * 2.0 * s.tokens * s.heads * (s.length + block) / 2 * seen
    passes = products * s.tokens * (s.heads + s.kv_heads) * s.dtype
    yield Work("attention", (), flops, a.head_dim, causal_imbalance(parts), hbm=passes)
    if parts > 1:
        yield from net.gathers("keys and values", s.rows * s.length * 2 * s.kv_heads * s.dtype, "act_length")


def _passes(a: Architecture, s: Sizes, passes: tuple[float, float]):
    yield Work("besides products", hbm=s.tokens * s.dtype * (passes[0] * a.embed + passes[1] * s.mlp))


def _embedding(a: Architecture, s: Sizes, net: "_Network"):
    yield Work("embedding", hbm=4 * s.tokens * a.embed * s.dtype)
    yield from net.gathers("embedding", s.vocab * a.embed * s.dtype, "embed")
    yield from net.scatters("embedding's gradient", s.vocab * a.embed * s.dtype, "embed")


def _head_chunk(a: Architecture, s: Sizes, net: "_Network", chunks: float):
    targets = s.targets / chunks
    yield _product("logits", s, targets, a.embed, s.vocab, 1.0)
    yield _product("gradients of the head", s, targets, a.embed, s.vocab, 2.0)
    yield Work("softmax", hbm=LOGIT_PASSES * F32 * targets * s.vocab)
    # XLA reduces each chunk's gradient over the devices immediately; the sum is a float32 shard.
    yield Work("sum of the kernel's gradients", hbm=3 * F32 * s.vocab * a.embed / s.shards)
    size = s.vocab * a.embed * s.dtype
    yield from net.scatters("the kernel's gradient", size, "embed", waits=True)
    yield from net.reductions("the kernel's gradient", size / s.shards, "act_batch", without="embed")


def _optimizer(config: RunConfig, a: Architecture, s: Sizes) -> Work:
    held = held_bytes(config, a)
    read_and_written = 2 * (held.parameters * held.trained / held.numbers + held.optimizer)
    gradients = held.trained * (2 * F32 + BF16)
    return Work("optimizer", hbm=_parameters(a, s) * (read_and_written + gradients) / held.numbers)


class Held(NamedTuple):
    """Parameters and state of a run, over all devices."""

    numbers: float
    """Number of model parameters."""
    trained: float
    """Number of trainable parameters, including adapters."""
    parameters: float
    """Bytes of all parameters as stored."""
    optimizer: float
    """Bytes of the optimizer's state."""

    @property
    def state(self) -> float:
        """Bytes of parameters and optimizer state, per parameter of the model."""
        return (self.parameters + self.optimizer) / self.numbers

    @property
    def checkpoint(self) -> float:
        """Bytes of a checkpoint: trainable parameters and optimizer state."""
        return F32 * self.trained + self.optimizer


def held_bytes(config: RunConfig, a: Architecture) -> Held:
    """Sizes of parameters and optimizer state, from their shapes."""
    sections = (config.optimizer, config.adapter, config.train.trainable, config.model.quantization)
    return _held_bytes(*sections, a.plain)


@functools.lru_cache(maxsize=32)
def _held_bytes(optimizer, adapter, trainable, quantization, a: Architecture) -> Held:
    config = RunConfig(
        model=Model(quantization=quantization), optimizer=optimizer, adapter=adapter, train=Train(trainable=trainable)
    )
    arranged = as_trained(a, config)
    abstract, _ = abstract_parameters(arranged)
    trained, _ = split_parameters(abstract, trainable_names(trainable, arranged))
    state = jax.eval_shape(make_optimizer(optimizer, leaves(arranged)).init, trained)
    numbers = sum(math.prod(leaf.shape) for leaf in abstract_parameters(a)[0].values())
    of_trained = sum(math.prod(leaf.shape) for leaf in trained.values())
    return Held(float(numbers), float(of_trained), _bytes_of(abstract), _bytes_of(state))


def _bytes_of(tree: Any) -> float:
    return float(sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)))


def _parameters(a: Architecture, s: Sizes) -> float:
    """Number of parameters that a device holds."""
    tables = 1 if a.tied or a.reward else 2
    return (a.depth * layer_parameters(a, s) + tables * s.vocab * a.embed) / s.shards


class _Network(NamedTuple):
    config: RunConfig
    mesh: AbstractMesh
    topology: Topology

    def parts(self, axis: str, without: str = "") -> int:
        return math.prod(self.mesh.shape[name] for name in self._axes(axis, without))

    def _axes(self, axis: str, without: str = "") -> tuple[str, ...]:
        left_out = mesh_axes(without, self.config.sharding) if without else ()
        named = mesh_axes(axis, self.config.sharding)
        return tuple(name for name in named if name not in left_out and self.mesh.shape[name] > 1)

    def gathers(self, name: str, whole: float, axis: str):
        """All-gather an array that is sharded over `axis`."""
        if self._is_windowed(axis):
            yield from self._exchange(name, "collective-permute", whole, axis, 1.0, waits=False)
        elif self.topology.chip.sides == 3:
            # There XLA implements it as an all-reduce of zero-padded shards: twice the bytes, and it writes the zeros.
            yield from self._exchange(name, "all-reduce", whole, axis, 2.0, self._waits(axis), passes=3)
        else:
            yield from self._exchange(name, "all-gather", whole, axis, 1.0, self._waits(axis), passes=1)

    def scatters(self, name: str, whole: float, axis: str, waits: bool = False):
        """Reduce-scatter the array's gradient."""
        passes = 0 if self._is_windowed(axis) else 2
        yield from self._exchange(name, "reduce-scatter", whole, axis, 1.0, waits or self._waits(axis), passes=passes)

    def partial_sums(self, size: float):
        """Additional memory traffic of windowed products."""
        if self._is_windowed("embed"):
            yield Work("partial sums", hbm=PARTIAL_SUMS * self.parts("embed") * size)

    def _is_windowed(self, axis: str) -> bool:
        alone = self.parts("act_batch", without="embed") == 1
        alone = alone and 1 in (self.config.train.accumulation, self.parts("act_length"))
        return alone and 1 < self.parts(axis) <= WINDOWED

    def _waits(self, axis: str) -> bool:
        return not self._is_windowed(axis) and not self.topology.chip.overlaps_collectives

    def reductions(self, name: str, whole: float, axis: str, without: str = ""):
        """A blocking all-reduce."""
        yield from self._exchange(name, "all-reduce", whole, axis, 2.0, waits=True, without=without)

    def _exchange(
        self, name: str, kind: str, whole: float, axis: str, times: float, waits: bool, without: str = "", passes=0
    ):
        """A collective of `times` the bytes of an all-gather, with `passes` over the whole array in HBM."""
        axes, devices = self._axes(axis, without), self.parts(axis, without)
        if devices > 1:
            size = times * whole * (devices - 1) / devices
            sent = Transfer(kind, axes, size, devices, self._islands(axes), waits)
            yield Work(name, hbm=passes * whole, sent=(sent,), waits=waits)

    def _islands(self, axes: tuple[str, ...]) -> int:
        """Number of slices (or GPU nodes) that a group along these axes spans; the last axes are closest together."""
        a_slice = self.mesh.size // self.topology.slices
        if self.topology.is_gpu:
            a_slice = min(self.topology.chip.host_chips, self.mesh.size)
        stride, inside = 1, 1
        for name in reversed(self.mesh.axis_names):
            size = self.mesh.shape[name]
            if name in axes:
                inside *= max(1, min(size, a_slice // stride))
            stride *= size
        return max(1, math.prod(self.mesh.shape[name] for name in axes) // inside)


def saved_bytes(config: RunConfig, a: Architecture, s: Sizes) -> float:
    """Bytes per micro-batch that a layer saves for its backward pass, on the device or on the host."""
    of_attention = 2 * s.heads + 2 * s.kv_heads
    products = of_attention + 2 * s.mlp + a.embed
    numbers = {
        "full": 0.0,
        "attention": of_attention,
        "offload": of_attention,
        "minimal": products,
        "dots": products,
        "none": products + 3 * s.mlp + 12 * a.embed,
    }[config.model.remat]
    statistics = F32 * s.heads / a.head_dim if config.model.remat != "full" else 0.0
    return s.tokens * (s.dtype * (a.embed + numbers) + statistics)


class AnalyticMemory(NamedTuple):
    """Bytes per device."""

    arguments: float
    """State and batch."""
    peak: float
    host: float
    """Host memory, per device."""


def update_memory(config: RunConfig, a: Architecture, shapes: Batch, mesh: AbstractMesh) -> AnalyticMemory:
    """Memory of an update on each device."""
    s = sizes_of(config, a, shapes, mesh)
    parameters = _parameters(a, s)
    held = held_bytes(config, a)
    state = parameters * held.state
    batch = 6 * F32 * s.micro * s.tokens
    kept = a.depth * saved_bytes(config, a, s)
    offloaded = config.model.remat == "offload"
    layer = s.tokens * s.dtype * (4 * s.mlp + 8 * a.embed) + 2 * a.embed * 3 * s.mlp * s.dtype / 2
    gradients = parameters * held.trained / held.numbers * (F32 + s.dtype if s.micro > 1 else s.dtype)
    logits = (F32 + s.dtype) * min(config.model.head_chunk, s.targets) * s.vocab
    head = s.vocab * a.embed * s.dtype
    on_device = 2 * kept / a.depth if offloaded else kept
    return AnalyticMemory(
        arguments=state + batch,
        peak=state + batch + on_device + layer + gradients + logits + head,
        host=kept if offloaded else 0.0,
    )
