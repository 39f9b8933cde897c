"""The decoder: embedding, a scan over periods of layers, final norm. The head is apart (`losses/`, `logits`).

Around the modules, parameters are a flat dict from dotted name to array, e.g. `periods.0.attention.query.kernel`
float32 [L/P, D, N, H]: `abstract_parameters` gives shapes and logical axes, `forward` runs the decoder on such a dict.
"""

import dataclasses
import functools
import math
import operator
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from sft_jax.errors import BadInput
from sft_jax.model.architecture import Architecture, LayerKind
from sft_jax.model.attention import reference as attention_lib
from sft_jax.model.attention.dispatch import attend
from sft_jax.model.attention.reference import Cache, Caches, Places, Slot
from sft_jax.model.embedding import look_up
from sft_jax.model.remat import POLICIES
from sft_jax.parallel.rules import Axes, shard

Parameters = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Compute:
    """How the forward pass is computed; changes no mathematics beyond rounding."""

    dtype: str = "float32"
    remat: str = "none"
    attention: str = "auto"
    scan_layers: bool = True
    context_attention: str = "all_gather"
    flat_kernels: bool = False
    """Each kernel is one matrix [outputs, inputs], and a row has one token: what `apart` makes."""


def _kept(x: jax.Array, *axes: str | None, name: str) -> jax.Array:
    """`shard`, under a name that remat policies know."""
    return checkpoint_name(shard(x, *axes, name=name), name)


def _normal(rngs: nnx.Rngs, shape: tuple[int, ...], axes: Axes) -> nnx.Param:
    return nnx.Param(0.02 * jax.random.normal(rngs.params(), shape, jnp.float32), axes=axes)


class RMSNorm(nnx.Module):
    """x / rms(x) * scale over the last dimension (Zhang & Sennrich 2019), in float32."""

    def __init__(self, size: int, eps: float, stack: tuple[int, ...]):
        self.scale = nnx.Param(jnp.ones((*stack, size), jnp.float32), axes=("layers",) * len(stack) + (None,))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        y = attention_lib.wide(x)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
        return (y * self.scale[...]).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def contract(equation: str, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """einsum of activations and a kernel whose kernel gradient keeps the kernel's own order of dimensions.

    Autodiff would contract (cotangent, x) and transpose the result. On CPUs XLA then transposes the whole cotangent
    together with the activation function it fuses into it: a third of an MLP's time at D = 576, F = 1536.
    """
    return jnp.einsum(equation, x, kernel)


def _contract_forward(equation, x, kernel):
    return jnp.einsum(equation, x, kernel), (x, kernel)


def _contract_backward(equation, saved, d_y):
    x, kernel = saved
    inputs, y_dims = equation.split("->")
    x_dims, kernel_dims = inputs.split(",")
    d_x = jnp.einsum(f"{y_dims},{kernel_dims}->{x_dims}", d_y, kernel)
    return d_x, jnp.einsum(f"{x_dims},{y_dims}->{kernel_dims}", x, d_y)


contract.defvjp(_contract_forward, _contract_backward)


class Projection(nnx.Module):
    """einsum with a kernel, and a bias when the family has one; computes in the dtype of its input."""

    def __init__(
        self, rngs, equation: str, shape, axes: Axes, bias_from: int | None, stack: tuple[int, ...], flat: bool
    ):
        """`bias_from` is the first output dimension of `shape` (the bias has shape[bias_from:]); None for no bias."""
        lead = ("layers",) * len(stack)
        self.kernel = _normal(rngs, (*stack, *shape), (*lead, *axes))
        self.bias = (
            None
            if bias_from is None
            else nnx.Param(jnp.zeros((*stack, *shape[bias_from:]), jnp.float32), axes=(*lead, *axes[bias_from:]))
        )
        self.equation, self.flat = equation, flat
        self.outputs = tuple(shape[equation.index(",") - 2 :])  # x has B and T, and the kernel's inputs

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.kernel[...].astype(x.dtype)
        if self.flat:
            y_FB = jnp.einsum("FE,BE->FB", kernel, x.reshape(len(x), -1))
            # XLA would turn this into a product of x and the kernel, at which CPUs take a seventh longer.
            y = jax.lax.optimization_barrier(y_FB).T.reshape(len(x), 1, *self.outputs)
        else:
            y: jax.Array = contract(self.equation, x, kernel)  # type: ignore[assignment]
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


class Attention(nnx.Module):
    """Grouped-query attention with RoPE."""

    def __init__(self, rngs: nnx.Rngs, a: Architecture, kind: LayerKind, compute: Compute, stack: tuple[int, ...]):
        d, n, k, h = a.embed, a.heads, a.kv_heads, a.head_dim
        bias = 1 if a.qkv_bias else None
        heads, kv_heads = ("embed", "heads", "head_dim"), ("embed", "kv_heads", "head_dim")
        projection = functools.partial(Projection, rngs, stack=stack, flat=compute.flat_kernels)
        self.query = projection("BTD,DNH->BTNH", (d, n, h), heads, bias)
        self.key = projection("BTD,DKH->BTKH", (d, k, h), kv_heads, bias)
        self.value = projection("BTD,DKH->BTKH", (d, k, h), kv_heads, bias)
        output_bias = 2 if a.output_bias else None
        self.output = projection("BTNH,NHD->BTD", (n, h, d), ("heads", "head_dim", "embed"), output_bias)
        self.query_norm = RMSNorm(h, a.norm_eps, stack) if a.qk_norm else None
        self.key_norm = RMSNorm(h, a.norm_eps, stack) if a.qk_norm else None
        self.kind, self.softcap = kind, a.attention_softcap
        self.attend = functools.partial(attend, compute.attention, compute.context_attention)

    def __call__(self, x_BTD, places: Places, angles, cached=None):
        """Returns the output [B, T, D], and this call's keys and values [B, T, K, H] or the cache with them in it.

        `cached` is (Cache, Slot) where the tokens, one a row, also see those in a cache.
        """
        q, k, v = self.query(x_BTD), self.key(x_BTD), self.value(x_BTD)
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        if self.kind.rope:
            q, k = attention_lib.rotate(q, *angles), attention_lib.rotate(k, *angles)
        q = _kept(q, "act_batch", "act_length", "heads", None, name="query")
        k = _kept(k, "act_batch", "act_length", "kv_heads", None, name="key")
        v = _kept(v, "act_batch", "act_length", "kv_heads", None, name="value")
        if cached is None:
            out, kv = self.attend(q, k, v, places, places, self.kind.window, self.softcap), (k, v)
        else:
            cache, slot = cached
            out, kv = attention_lib.over_cache(cache, slot, q, k, v, places, self.kind.window, self.softcap)
        return self.output(shard(out, "act_batch", "act_length", "heads", None, name="attention_out")), kv


class Mlp(nnx.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)) (Shazeer 2020)."""

    def __init__(self, rngs: nnx.Rngs, a: Architecture, compute: Compute, stack: tuple[int, ...]):
        bias = 1 if a.mlp_bias else None
        projection = functools.partial(Projection, rngs, stack=stack, flat=compute.flat_kernels)
        self.gate = projection("BTD,DF->BTF", (a.embed, a.mlp), ("embed", "mlp"), bias)
        self.up = projection("BTD,DF->BTF", (a.embed, a.mlp), ("embed", "mlp"), bias)
        self.down = projection("BTF,FD->BTD", (a.mlp, a.embed), ("mlp", "embed"), bias)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        inner = jax.nn.silu(self.gate(x_BTD)) * self.up(x_BTD)
        return self.down(shard(inner, "act_batch", "act_length", "mlp", name="mlp_inner"))


class Layer(nnx.Module):
    """Pre-norm attention and MLP, each added to the residual stream."""

    def __init__(self, rngs: nnx.Rngs, a: Architecture, kind: LayerKind, compute: Compute, stack: tuple[int, ...]):
        self.attention_norm = RMSNorm(a.embed, a.norm_eps, stack)
        self.attention = Attention(rngs, a, kind, compute, stack)
        self.mlp_norm = RMSNorm(a.embed, a.norm_eps, stack)
        self.mlp = Mlp(rngs, a, compute, stack)

    def __call__(self, x_BTD, places: Places, angles, cached=None):
        x_BTD = checkpoint_name(x_BTD, "layer_input")
        with jax.named_scope("attention"):
            out, kv = self.attention(self.attention_norm(x_BTD), places, angles, cached)
            x_BTD = shard(x_BTD + out, "act_batch", "act_length", "act_embed", name="mlp_input")
        with jax.named_scope("mlp"):
            x_BTD = x_BTD + self.mlp(self.mlp_norm(x_BTD))
            return shard(x_BTD, "act_batch", "act_length", "act_embed", name="layer_output"), kv


class Decoder(nnx.Module):
    """Tokens in, final hidden states out."""

    def __init__(self, a: Architecture, compute: Compute, rngs: nnx.Rngs):
        self.embedding = _normal(rngs, (a.rows, a.embed), ("vocab", "embed"))
        self.periods = nnx.List([Layer(rngs, a, kind, compute, (a.periods,)) for kind in a.period])
        self.remainder = nnx.List([Layer(rngs, a, kind, compute, ()) for kind in a.remainder])
        self.final_norm = RMSNorm(a.embed, a.norm_eps, ())
        self.head = None if a.tied or a.reward else _normal(rngs, (a.rows, a.embed), ("vocab", "embed"))
        self.score = nnx.Param(jnp.zeros((1, a.embed), jnp.float32), axes=(None, "embed")) if a.reward else None
        self.a, self.compute = a, compute

    def __call__(self, tokens_BT: jax.Array, places: Places, keep_kv: bool = False):
        """Hidden states [B, T, D] in the compute dtype; if `keep_kv`, keys and values [L, B, T, K, H] of all layers."""
        angles = attention_lib.rope_angles(self.a.rope, self.a.head_dim, places.positions)

        def run_period(x, layers):
            made = []
            for layer in layers:
                x, new = layer(x, places, angles)
                made.append(new)
            return x, made if keep_kv else None

        if self.compute.remat != "none":
            run_period = jax.checkpoint(run_period, policy=POLICIES[self.compute.remat], prevent_cse=False)

        x = self._embedded(tokens_BT)
        layers = list(self.periods)
        if self.compute.scan_layers:
            x, made = jax.lax.scan(run_period, x, layers)
        else:
            each = []
            for i in range(self.a.periods):
                x, new = run_period(x, jax.tree.map(operator.itemgetter(i), layers))
                each.append(new)
            made = jax.tree.map(lambda *parts: jnp.stack(parts), *each) if keep_kv and each else []
        x, rest = run_period(x, list(self.remainder))
        return self.final_norm(x), _in_order(made or [], rest or []) if keep_kv else None

    def step(self, tokens_BT: jax.Array, places: Places, caches: Caches, slots: Places, number: jax.Array):
        """One more token a row (T = 1): hidden states [B, 1, D], and the caches with it in them.

        Args:
          caches: of `empty_slots`, or what this returned.
          slots: [B, S], the places of all slots, the new tokens' among them.
          number: their slot.
        """
        angles = attention_lib.rope_angles(self.a.rope, self.a.head_dim, places.positions)

        def run(carry, layers_and_period):
            (x, caches), (layers, period) = carry, layers_and_period
            made = []
            for layer, cache in zip(layers, caches, strict=True):
                x, cache = layer(x, places, angles, (cache, Slot(slots, number, period)))
                made.append(cache)
            return (x, tuple(made)), None

        # The caches are carried, not scanned over: a loop that returned them period by period would copy them whole.
        layers, periods, repeated = list(self.periods), self.a.periods, len(self.a.period)
        carry = (self._embedded(tokens_BT), caches[:repeated])
        if periods == 1:
            carry, _ = run(carry, (jax.tree.map(operator.itemgetter(0), layers), None))
        elif self.compute.scan_layers:
            carry, _ = jax.lax.scan(run, carry, (layers, jnp.arange(periods, dtype=jnp.int32)))
        else:
            for i in range(periods):
                carry, _ = run(carry, (jax.tree.map(operator.itemgetter(i), layers), jnp.int32(i)))
        x, made = carry
        (x, rest), _ = run((x, caches[repeated:]), (list(self.remainder), None))
        return self.final_norm(x), (*made, *rest)

    def _embedded(self, tokens_BT: jax.Array) -> jax.Array:
        with jax.named_scope("embedding"):
            x = look_up(self.embedding[...], tokens_BT, self.compute.dtype)
        return shard(x, "act_batch", "act_length", "act_embed", name="layer_input")


def empty_slots(a: Architecture, keys: jax.Array, values: jax.Array, extra: int) -> Caches:
    """Caches of keys and values [L, B, T, K, H], which `forward` returns with keep_kv, with `extra` free slots."""
    k, v = keys.transpose(0, 1, 3, 4, 2), values.transpose(0, 1, 3, 2, 4)
    k, v = jnp.pad(k, [(0, 0)] * 4 + [(0, extra)]), jnp.pad(v, [(0, 0)] * 3 + [(0, extra), (0, 0)])
    repeated = len(a.period)
    whole = a.periods * repeated
    alone = range(whole if a.periods > 1 else 0, a.layers)
    of_periods = [slice(place, whole, repeated) for place in range(repeated)] if a.periods > 1 else []
    return tuple(Cache(k[part], v[part]) for part in (*of_periods, *alone))


def apart(a: Architecture, compute: Compute, parameters: Parameters) -> tuple[Architecture, Compute, Parameters]:
    """The same decoder for `forward_step` on CPUs: one period of all layers, each with arrays of its own.

    A loop over a stack of layers copies each layer out of it, which takes about as long as its products with a few
    tokens; and those products take longest with kernels [inputs, outputs]. Holds the layers' weights a second time.
    """
    kinds = tuple(a.period[layer % len(a.period)] for layer in range(a.layers))
    made = {}
    for name, value in parameters.items():
        group, *rest = name.split(".", 2)
        if group not in ("periods", "remainder"):
            made[name] = value
            continue
        place, kind = int(rest[0]), rest[1]
        first, count = (place, a.periods) if group == "periods" else (a.periods * len(a.period) + place, 1)
        for i in range(count):
            one = value[i] if group == "periods" else value
            if kind.endswith(".kernel"):
                inputs = 2 if kind == "attention.output.kernel" else 1
                one = one.reshape(math.prod(one.shape[:inputs]), -1).T.astype(compute.dtype)
            made[f"periods.{first + i * len(a.period)}.{kind}"] = one[None]
    return dataclasses.replace(a, period=kinds), dataclasses.replace(compute, flat_kernels=True), made


def _in_order(of_periods: list, of_remainder: list):
    """Keys and values [L, B, T, K, H] in the order of layers, from [P, B, T, K, H] for each place in the period and
    [B, T, K, H] for each layer of the remainder."""
    parts = []
    if of_periods:
        stacked = jax.tree.map(lambda *x: jnp.stack(x, axis=1), *of_periods)
        parts.append(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), stacked))
    parts += [jax.tree.map(lambda x: x[None], each) for each in of_remainder]
    return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)


def _nested(flat: Mapping[str, Any]) -> dict:
    """`{"periods.0.x": v}` -> `{"periods": {0: {"x": v}}}`, the pure form that `nnx.merge` takes."""
    tree: dict = {}
    for name, value in flat.items():
        *path, last = (int(part) if part.isdigit() else part for part in name.split("."))
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    return tree


@functools.lru_cache(maxsize=32)
def _structure(a: Architecture, compute: Compute):
    module = nnx.eval_shape(lambda: Decoder(a, compute, nnx.Rngs(params=0)))
    return nnx.split(module)


def abstract_parameters(a: Architecture) -> tuple[dict[str, jax.ShapeDtypeStruct], dict[str, Axes]]:
    """Name -> shape and dtype, and name -> logical axes, of every parameter; makes no array."""
    shapes, axes = {}, {}
    for path, variable in nnx.to_flat_state(_structure(a, Compute())[1]):
        name = ".".join(str(part) for part in path)
        shapes[name] = jax.ShapeDtypeStruct(variable.shape, variable.dtype)
        axes[name] = variable.get_metadata("axes")
    return shapes, axes


def initialise(a: Architecture, seed: int) -> dict[str, jax.Array]:
    """Random parameters, float32: normal(0.02) matrices, unit norms, zero biases. Call under `jax.jit`."""
    state = nnx.split(Decoder(a, Compute(), nnx.Rngs(params=seed)))[1]
    return {".".join(map(str, path)): variable[...] for path, variable in nnx.to_flat_state(state)}


def forward(a: Architecture, compute: Compute, parameters: Parameters, tokens_BT, places: Places, keep_kv=False):
    """Run the decoder on a flat parameter dict; returns what `Decoder.__call__` returns."""
    return _decoder(a, compute, parameters)(tokens_BT, places, keep_kv)


def forward_step(a: Architecture, compute: Compute, parameters: Parameters, *arguments):
    """`Decoder.step` on a flat parameter dict."""
    return _decoder(a, compute, parameters).step(*arguments)


def _decoder(a: Architecture, compute: Compute, parameters: Parameters) -> Decoder:
    return nnx.merge(_structure(a, compute)[0], _nested(parameters))


def head_kernel(a: Architecture, parameters: Parameters) -> jax.Array:
    """The [V, D] kernel that turns hidden states into logits: the embedding itself when tied.

    Raises:
      BadInput: a reward model, which predicts no token.
    """
    if a.reward:
        raise BadInput("this is a reward model: it has a scalar head and predicts no token. Give a language model.")
    return parameters["embedding" if a.tied else "head"]


def logits(a: Architecture, parameters: Parameters, hidden: jax.Array) -> jax.Array:
    """float32 logits [..., V] of hidden states [..., D]; rows beyond the model's vocabulary are masked."""
    kernel = head_kernel(a, parameters).astype(hidden.dtype)
    wide = jnp.promote_types(hidden.dtype, jnp.float32)
    return cap_and_mask(a, jnp.einsum("...D,VD->...V", hidden, kernel, preferred_element_type=wide))


def cap_and_mask(a: Architecture, raw: jax.Array) -> jax.Array:
    """Soft-cap logits and give the rows added for divisibility no probability mass."""
    if a.logit_softcap is not None:
        raw = a.logit_softcap * jnp.tanh(raw / a.logit_softcap)
    if a.rows > a.vocab:
        raw = jnp.where(jnp.arange(a.rows) < a.vocab, raw, attention_lib.MASKED)
    return raw
