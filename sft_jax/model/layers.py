"""One decoder layer: norms, attention and MLP."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from sft_jax.model.architecture import Architecture, LayerSpec
from sft_jax.model.attention.dispatch import attend
from sft_jax.model.attention.reference import TokenPositions
from sft_jax.model.cache import attend_with_cache
from sft_jax.model.leaves import input_letters, kernel_letters, project
from sft_jax.model.precision import at_least_f32
from sft_jax.model.rope import rotate
from sft_jax.parallel.rules import ONE_DEVICE, Axes, Layout


@dataclasses.dataclass(frozen=True)
class Compute:
    """How and where the forward pass runs; changes results only by rounding."""

    dtype: str = "float32"
    remat: str = "none"
    attention: str = "auto"
    scan_layers: bool = True
    context_attention: str = "all_gather"
    layout: Layout = ONE_DEVICE


def normal(rngs: nnx.Rngs, shape: tuple[int, ...], axes: Axes, equation: str = "") -> nnx.Param:
    """A matrix initialized with standard deviation 0.02."""
    return nnx.Param(0.02 * jax.random.normal(rngs.params(), shape, jnp.float32), axes=axes, equation=equation)


class RMSNorm(nnx.Module):
    """x / rms(x) * scale over the last dimension (Zhang & Sennrich 2019), in float32."""

    def __init__(self, size: int, eps: float, stack: tuple[int, ...]):
        self.scale = nnx.Param(jnp.ones((*stack, size), jnp.float32), axes=("layers",) * len(stack) + (None,))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        y = at_least_f32(x)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
        return (y * self.scale[...]).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def contract(equation: str, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """einsum of activations and a kernel; computes the kernel gradient directly in the kernel's dimension order.

    Autodiff would contract (cotangent, x) and transpose the result. On CPUs, XLA then transposes the whole cotangent
    together with the activation function fused into it, which takes a third of an MLP's time at D = 576, F = 1536.
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
    """einsum with a kernel of any leaf kind, plus a bias if the family has one, in the dtype of its input."""

    def __init__(self, rngs: nnx.Rngs, equation: str, shape, axes: Axes, bias: bool, stack: tuple[int, ...]):
        lead, letters = ("layers",) * len(stack), kernel_letters(equation)
        self.kernel = normal(rngs, (*stack, *shape), (*lead, *axes), equation)
        outputs = [i for i, letter in enumerate(letters) if letter not in input_letters(equation)]
        zeros = jnp.zeros((*stack, *(shape[i] for i in outputs)), jnp.float32) if bias else None
        self.bias = zeros if zeros is None else nnx.Param(zeros, axes=(*lead, *(axes[i] for i in outputs)))
        self.equation = equation

    def __call__(self, x: jax.Array) -> jax.Array:
        y = project(contract, self.equation, x, self.kernel.get_value())
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


class Attention(nnx.Module):
    """Grouped-query attention with RoPE."""

    def __init__(self, rngs: nnx.Rngs, a: Architecture, spec: LayerSpec, compute: Compute, stack: tuple[int, ...]):
        d, n, k, h = a.embed, a.heads, a.kv_heads, a.head_dim
        heads, kv_heads = ("embed", "heads", "head_dim"), ("embed", "kv_heads", "head_dim")
        projection = functools.partial(Projection, rngs, stack=stack)
        self.query = projection("BTD,DNH->BTNH", (d, n, h), heads, a.qkv_bias)
        self.key = projection("BTD,DKH->BTKH", (d, k, h), kv_heads, a.qkv_bias)
        self.value = projection("BTD,DKH->BTKH", (d, k, h), kv_heads, a.qkv_bias)
        self.output = projection("BTNH,NHD->BTD", (n, h, d), ("heads", "head_dim", "embed"), a.output_bias)
        self.query_norm = RMSNorm(h, a.norm_eps, stack) if a.qk_norm else None
        self.key_norm = RMSNorm(h, a.norm_eps, stack) if a.qk_norm else None
        self.spec, self.softcap, self.compute = spec, a.attention_softcap, compute

    def __call__(self, x_BTD, where: TokenPositions, angles, cached=None):
        """Returns the output [B, T, D], and the new keys and values [B, T, K, H] or the updated cache.

        `cached` is (Cache, Slot) in decoding, where the tokens, one per row, attend to the cache.
        """
        compute, window = self.compute, self.spec.window
        q, k, v = self.query(x_BTD), self.key(x_BTD), self.value(x_BTD)
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        if self.spec.rope is not None:
            q, k = (rotate(x, *angles[self.spec.rope]) for x in (q, k))
        q = self._shard_named(q, "heads", name="query")
        k = self._shard_named(k, "kv_heads", name="key")
        v = self._shard_named(v, "kv_heads", name="value")
        if cached is None:
            out, kv = (
                attend(
                    compute.attention,
                    compute.context_attention,
                    compute.layout,
                    q,
                    k,
                    v,
                    where,
                    where,
                    window,
                    self.softcap,
                ),
                (k, v),
            )
        else:
            cache, slot = cached
            out, kv = attend_with_cache(cache, slot, q, k, v, where, window, self.softcap)
        out = compute.layout.shard(out, "act_batch", "act_length", "heads", None, name="attention_out")
        return self.output(out), kv

    def _shard_named(self, x: jax.Array, heads: str, name: str) -> jax.Array:
        """Apply the sharding constraint, and the checkpoint name that remat policies refer to."""
        return checkpoint_name(self.compute.layout.shard(x, "act_batch", "act_length", heads, None, name=name), name)


class Mlp(nnx.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)) (Shazeer 2020)."""

    def __init__(self, rngs: nnx.Rngs, a: Architecture, compute: Compute, stack: tuple[int, ...]):
        projection = functools.partial(Projection, rngs, bias=a.mlp_bias, stack=stack)
        self.gate = projection("BTD,DF->BTF", (a.embed, a.mlp), ("embed", "mlp"))
        self.up = projection("BTD,DF->BTF", (a.embed, a.mlp), ("embed", "mlp"))
        self.down = projection("BTF,FD->BTD", (a.mlp, a.embed), ("mlp", "embed"))
        self.layout = compute.layout

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        inner = jax.nn.silu(self.gate(x_BTD)) * self.up(x_BTD)
        return self.down(self.layout.shard(inner, "act_batch", "act_length", "mlp", name="mlp_inner"))


class Layer(nnx.Module):
    """Pre-norm attention and MLP, each added to the residual stream."""

    def __init__(self, rngs: nnx.Rngs, a: Architecture, spec: LayerSpec, compute: Compute, stack: tuple[int, ...]):
        self.attention_norm = RMSNorm(a.embed, a.norm_eps, stack)
        self.attention = Attention(rngs, a, spec, compute, stack)
        self.mlp_norm = RMSNorm(a.embed, a.norm_eps, stack)
        self.mlp = Mlp(rngs, a, compute, stack)
        self.layout = compute.layout

    def __call__(self, x_BTD, where: TokenPositions, angles, cached=None):
        x_BTD = checkpoint_name(x_BTD, "layer_input")
        with jax.named_scope("attention"):
            out, kv = self.attention(self.attention_norm(x_BTD), where, angles, cached)
            x_BTD = self.layout.shard(x_BTD + out, "act_batch", "act_length", "act_embed", name="mlp_input")
        with jax.named_scope("mlp"):
            x_BTD = x_BTD + self.mlp(self.mlp_norm(x_BTD))
            return self.layout.shard(x_BTD, "act_batch", "act_length", "act_embed", name="layer_output"), kv
