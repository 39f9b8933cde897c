"""The decoder: embedding, a scan over periods of layers, final norm. The head is apart (`train/loss.py`, `logits`).

Around the modules, parameters are a flat dict from dotted name to array, e.g. `periods.0.attention.query.kernel`
float32 [L/P, D, N, H]: `abstract_parameters` gives shapes and logical axes, `forward` runs the decoder on such a dict.
"""

import functools
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from sft_jax.errors import BadInput
from sft_jax.model import attention as attention_lib
from sft_jax.model.architecture import Architecture, LayerKind
from sft_jax.model.attention import Places, Slot
from sft_jax.model.decoder_attention import attend
from sft_jax.model.embedding import look_up
from sft_jax.model.remat import POLICIES
from sft_jax.parallel.rules import Axes, shard

Parameters = Mapping[str, jax.Array]


@dataclass(frozen=True)
class Compute:
    """How the forward pass is computed; changes no mathematics beyond rounding."""

    dtype: str = "float32"
    remat: str = "none"
    attention: str = "auto"
    scan_layers: bool = True
    context_attention: str = "all_gather"


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

    def __init__(self, rngs, equation: str, shape, axes: Axes, bias_from: int | None, stack: tuple[int, ...]):
        """`bias_from` is the first output dimension of `shape` (the bias has shape[bias_from:]); None for no bias."""
        lead = ("layers",) * len(stack)
        self.kernel = _normal(rngs, (*stack, *shape), (*lead, *axes))
        self.bias = (
            None
            if bias_from is None
            else nnx.Param(jnp.zeros((*stack, *shape[bias_from:]), jnp.float32), axes=(*lead, *axes[bias_from:]))
        )
        self.equation = equation

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.kernel[...].astype(x.dtype)
        if x.shape[1] == 1 and kernel.ndim == 3 and x.ndim == 4:
            # One token: with two dimensions to sum over, XLA on CPUs moves the whole kernel before each product.
            y = jnp.einsum("BTE,ED->BTD", x.reshape(*x.shape[:2], -1), kernel.reshape(-1, kernel.shape[-1]))
        else:
            y: jax.Array = contract(self.equation, x, kernel)  # type: ignore[assignment]
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


class Attention(nnx.Module):
    """Grouped-query attention with RoPE."""

    def __init__(self, rngs: nnx.Rngs, a: Architecture, kind: LayerKind, compute: Compute, stack: tuple[int, ...]):
        d, n, k, h = a.embed, a.heads, a.kv_heads, a.head_dim
        bias = 1 if a.qkv_bias else None
        heads, kv_heads = ("embed", "heads", "head_dim"), ("embed", "kv_heads", "head_dim")
        self.query = Projection(rngs, "BTD,DNH->BTNH", (d, n, h), heads, bias, stack)
        self.key = Projection(rngs, "BTD,DKH->BTKH", (d, k, h), kv_heads, bias, stack)
        self.value = Projection(rngs, "BTD,DKH->BTKH", (d, k, h), kv_heads, bias, stack)
        output_bias = 2 if a.output_bias else None
        self.output = Projection(rngs, "BTNH,NHD->BTD", (n, h, d), ("heads", "head_dim", "embed"), output_bias, stack)
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

    def __init__(self, rngs: nnx.Rngs, a: Architecture, stack: tuple[int, ...]):
        bias = 1 if a.mlp_bias else None
        self.gate = Projection(rngs, "BTD,DF->BTF", (a.embed, a.mlp), ("embed", "mlp"), bias, stack)
        self.up = Projection(rngs, "BTD,DF->BTF", (a.embed, a.mlp), ("embed", "mlp"), bias, stack)
        self.down = Projection(rngs, "BTF,FD->BTD", (a.mlp, a.embed), ("mlp", "embed"), bias, stack)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        inner = jax.nn.silu(self.gate(x_BTD)) * self.up(x_BTD)
        return self.down(shard(inner, "act_batch", "act_length", "mlp", name="mlp_inner"))


class Layer(nnx.Module):
    """Pre-norm attention and MLP, each added to the residual stream."""

    def __init__(self, rngs: nnx.Rngs, a: Architecture, kind: LayerKind, compute: Compute, stack: tuple[int, ...]):
        self.attention_norm = RMSNorm(a.embed, a.norm_eps, stack)
        self.attention = Attention(rngs, a, kind, compute, stack)
        self.mlp_norm = RMSNorm(a.embed, a.norm_eps, stack)
        self.mlp = Mlp(rngs, a, stack)

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

    def step(self, tokens_BT: jax.Array, places: Places, cache: Any, slots: Places, number: jax.Array):
        """One more token a row (T = 1): hidden states [B, 1, D], and the cache with it in it.

        Args:
          cache: a `Cache`: `attention.empty_slots` of what `__call__` returned with keep_kv, or what this returned.
          slots: [B, S], the places of all slots, the new tokens' among them.
          number: their slot.
        """
        angles = attention_lib.rope_angles(self.a.rope, self.a.head_dim, places.positions)

        def run(carry, layers_and_first):
            (x, cache), (layers, first) = carry, layers_and_first
            for i, layer in enumerate(layers):
                x, cache = layer(x, places, angles, (cache, Slot(slots, number, first + i)))
            return (x, cache), None

        # The cache is carried, not scanned over: a loop that returned it layer by layer would copy it whole.
        carry, layers = (self._embedded(tokens_BT), cache), list(self.periods)
        firsts = jnp.arange(self.a.periods, dtype=jnp.int32) * len(layers)
        if self.compute.scan_layers:
            carry, _ = jax.lax.scan(run, carry, (layers, firsts))
        else:
            for i in range(self.a.periods):
                carry, _ = run(carry, (jax.tree.map(operator.itemgetter(i), layers), firsts[i]))
        (x, cache), _ = run(carry, (list(self.remainder), jnp.int32(self.a.periods * len(layers))))
        return self.final_norm(x), cache

    def _embedded(self, tokens_BT: jax.Array) -> jax.Array:
        with jax.named_scope("embedding"):
            x = look_up(self.embedding[...], tokens_BT, self.compute.dtype)
        return shard(x, "act_batch", "act_length", "act_embed", name="layer_input")


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
