"""The decoder: embedding, a loop over each group of layers, final norm. The head is separate (`losses/`, `logits`).

Outside the modules, parameters are a flat dict from dotted name to array, e.g. `layers.0:30.attention.query.kernel`,
float32 [30, D, N, H], for layers 0 to 29. `abstract_parameters` returns shapes and logical axes, `leaves` describes
what the arrays represent, and `forward` runs the decoder on such a dict.
"""

import dataclasses
import functools
import operator
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from sft_jax.errors import BadInput
from sft_jax.model.architecture import Architecture, Group, split_name, stack_name
from sft_jax.model.attention.reference import MASKED, TokenPositions
from sft_jax.model.cache import Cache, Caches, Slot
from sft_jax.model.embedding import embed_tokens
from sft_jax.model.layers import Compute, Layer, RMSNorm, normal
from sft_jax.model.leaves import ArrayLeaf, Leaf, flattened, part_name, stored_as
from sft_jax.model.precision import accumulator
from sft_jax.model.remat import rematerialised
from sft_jax.model.rope import rope_angles
from sft_jax.parallel.rules import Axes

Parameters = Mapping[str, jax.Array]
"""Array name (a part of a leaf) -> array."""

Values = Mapping[str, Any]
"""Leaf name -> the value that the modules use: an array, or a kernel of another kind."""


class Decoder(nnx.Module):
    """Tokens in, final hidden states out."""

    def __init__(self, a: Architecture, compute: Compute, rngs: nnx.Rngs):
        self.embedding = normal(rngs, (a.rows, a.embed), ("vocab", "embed"))
        self.groups = nnx.List([nnx.List(_layers_of(rngs, a, group, compute)) for group in a.groups])
        self.final_norm = RMSNorm(a.embed, a.norm_eps, ())
        self.head = None if a.tied or a.reward else normal(rngs, (a.rows, a.embed), ("vocab", "embed"))
        self.score = nnx.Param(jnp.zeros((1, a.embed), jnp.float32), axes=(None, "embed")) if a.reward else None
        self.a, self.compute = a, compute

    def __call__(self, tokens_BT: jax.Array, where: TokenPositions, keep_kv: bool = False):
        """Hidden states [B, T, D] in the compute dtype, and with `keep_kv` all keys and values [L, B, T, K, H]."""
        angles = self._angles(where)

        def run(layer: Layer, x, where, angles):
            x, kv = layer(x, where, angles)
            return x, kv if keep_kv else None

        x, of_groups = self._embedded(tokens_BT), []
        for group, layers in zip(self.a.groups, self.groups, strict=True):
            looped = group.repeats > 1 and self.compute.scan_layers
            alone = looped and len(group.specs) == 1
            one = rematerialised(run, self.compute.remat, alone, self.compute.layout.platform)

            def period(x, layers, one=one):
                made = []
                for layer in layers:
                    x, kv = one(layer, x, where, angles)
                    made.append(kv)
                return x, made

            if looped:
                x, made = jax.lax.scan(period, x, list(layers))
            else:
                each = []
                for i in range(group.repeats):
                    x, new = period(x, _nth(group, layers, i))
                    each.append(new)
                made = jax.tree.map(lambda *parts: jnp.stack(parts), *each)
            of_groups.append(made)
        return self.final_norm(x), _in_order(self.a, of_groups) if keep_kv else None

    def step(self, tokens_BT: jax.Array, where: TokenPositions, caches: Caches, slots: TokenPositions, number):
        """Decode one token per row (T = 1): hidden states [B, 1, D], and the updated caches.

        Args:
          caches: from `make_caches` or the previous step.
          slots: [B, S], positions and segments of all slots, including the new tokens'.
          number: int32, the new tokens' slot.
        """
        angles = self._angles(where)

        def run(carry, layers_and_repeat):
            (x, caches), (layers, repeat) = carry, layers_and_repeat
            made = []
            for layer, cache in zip(layers, caches, strict=True):
                x, cache = layer(x, where, angles, (cache, Slot(slots, number, repeat)))
                made.append(cache)
            return (x, tuple(made)), None

        # Carry the caches instead of scanning over them: stacking them as scan outputs would copy them.
        x, first, done = self._embedded(tokens_BT), 0, []
        for group, layers in zip(self.a.groups, self.groups, strict=True):
            carry = (x, caches[first : first + len(group.specs)])
            if group.repeats > 1 and self.compute.scan_layers:
                carry, _ = jax.lax.scan(run, carry, (list(layers), jnp.arange(group.repeats, dtype=jnp.int32)))
            else:
                for i in range(group.repeats):
                    repeat = jnp.int32(i) if group.repeats > 1 else None
                    carry, _ = run(carry, (_nth(group, layers, i), repeat))
            x, made = carry
            done += made
            first += len(group.specs)
        return self.final_norm(x), tuple(done)

    def _angles(self, where: TokenPositions) -> dict:
        """cos and sin for every distinct RoPE of the layers."""
        ropes = dict.fromkeys(spec.rope for spec in self.a.layers if spec.rope is not None)
        return {rope: rope_angles(rope, self.a.head_dim, where.positions) for rope in ropes}

    def _embedded(self, tokens_BT: jax.Array) -> jax.Array:
        layout = self.compute.layout
        with jax.named_scope("embedding"):
            x = embed_tokens(layout, self.embedding[...], tokens_BT, self.compute.dtype)
        return layout.shard(x, "act_batch", "act_length", "act_embed", name="layer_input")


def _layers_of(rngs: nnx.Rngs, a: Architecture, group: Group, compute: Compute) -> list[Layer]:
    stack = (group.repeats,) if group.repeats > 1 else ()
    return [Layer(rngs, a, spec, compute, stack) for spec in group.specs]


def _nth(group: Group, layers: Any, i: int) -> list[Layer]:
    """The layers of one repetition of a group."""
    return jax.tree.map(operator.itemgetter(i), list(layers)) if group.repeats > 1 else list(layers)


def make_caches(a: Architecture, keys: jax.Array, values: jax.Array, extra: int) -> Caches:
    """Caches filled with the keys and values [L, B, T, K, H] from `forward` with keep_kv, plus `extra` free slots."""
    k, v = keys.transpose(0, 1, 3, 4, 2), values.transpose(0, 1, 3, 2, 4)
    k, v = jnp.pad(k, [(0, 0)] * 4 + [(0, extra)]), jnp.pad(v, [(0, 0)] * 3 + [(0, extra), (0, 0)])
    places = (group.layers(place) for group in a.groups for place in range(len(group.specs)))
    return tuple(
        Cache(k[at], v[at])
        for at in (slice(each[0], each[-1] + 1, each.step) if len(each) > 1 else each[0] for each in places)
    )


def values_of(a: Architecture, parameters: Parameters) -> Values:
    """Combine the arrays of each leaf into the value that the modules use."""
    return {
        name: leaf.kernel({suffix: parameters[part_name(name, suffix)] for suffix in leaf.parts})
        for name, leaf in leaves(a).items()
    }


def unstacked(a: Architecture, compute: Compute, values: Values) -> tuple[Architecture, Values]:
    """The same decoder for `forward_step` on CPUs: one array per layer, kernels as [outputs, inputs].

    A loop over stacked layers copies each layer out of the stack, which takes about as long as its products with a few
    tokens, and those products are slowest with kernels [inputs, outputs]. Holds a second copy of the layers' weights.
    """
    made: dict[str, Any] = {}
    for name, leaf in leaves(a).items():
        layers, suffix = split_name(name)
        equation = leaf.array.equation
        for i, layer in enumerate(layers or ()):
            assert layers is not None
            one = jax.tree.map(operator.itemgetter(i), values[name]) if len(layers) > 1 else values[name]
            one = flattened(one, equation, compute.dtype) if equation else one
            made[f"{stack_name(range(layer, layer + 1))}.{suffix}"] = one
        if layers is None:
            made[name] = values[name]
    return dataclasses.replace(a, cuts=tuple(range(a.depth))), made


def _in_order(a: Architecture, of_groups: list):
    """Keys and values [L, B, T, K, H] in layer order, from [P, B, T, K, H] per stack of each group."""
    parts = []
    for group, made in zip(a.groups, of_groups, strict=True):
        stacked = jax.tree.map(lambda *x: jnp.stack(x, axis=1), *made)
        parts.append(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), stacked))
        del group
    return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)


# --- modules <-> names ------------------------------------------------------------------------------------------------


def _name(a: Architecture, path: tuple) -> str:
    """The name of a module's variable: `("groups", 0, 1, "mlp", ...)` belongs to the layers at place 1 of group 0."""
    if path[0] != "groups":
        return ".".join(map(str, path))
    _, group, place, *rest = path
    return ".".join((stack_name(a.groups[group].layers(place)), *map(str, rest)))


@functools.lru_cache(maxsize=64)
def _structure(a: Architecture, compute: Compute):
    """(module graph, leaf name -> path, leaf name -> variable); allocates no array."""
    module = nnx.eval_shape(lambda: Decoder(a, compute, nnx.Rngs(params=0)))
    graph, state = nnx.split(module)
    variables = {_name(a, path): (path, variable) for path, variable in nnx.to_flat_state(state)}
    return graph, {name: path for name, (path, _) in variables.items()}, {n: v for n, (_, v) in variables.items()}


@functools.lru_cache(maxsize=64)
def leaves(a: Architecture) -> Mapping[str, Leaf]:
    """Name -> leaf for every parameter."""
    found = {}
    for name, variable in _structure(a, Compute())[2].items():
        equation = variable.get_metadata().get("equation", "")
        array = ArrayLeaf(variable.shape, variable.get_metadata("axes"), equation, str(variable.dtype))
        found[name] = stored_as(name, array, a.storage)
    return found


def abstract_parameters(a: Architecture) -> tuple[dict[str, jax.ShapeDtypeStruct], dict[str, Axes]]:
    """Name -> shape and dtype, and name -> logical axes, of every array; allocates none."""
    shapes, axes = {}, {}
    for name, leaf in leaves(a).items():
        for suffix, part in leaf.parts.items():
            shapes[part_name(name, suffix)] = jax.ShapeDtypeStruct(part.shape, part.dtype)
            axes[part_name(name, suffix)] = part.axes
    return shapes, axes


def initialise(a: Architecture, seed: int) -> dict[str, jax.Array]:
    """Random parameters, float32: normal(0.02) matrices, unit norms, zero biases. Call under `jax.jit`."""
    state = nnx.split(Decoder(a, Compute(), nnx.Rngs(params=seed)))[1]
    drawn = {_name(a, path): variable[...] for path, variable in nnx.to_flat_state(state)}
    made = {}
    for number, (name, leaf) in enumerate(leaves(a).items()):
        filled = leaf.store(drawn[name])
        key = jax.random.fold_in(jax.random.key(seed), number)
        for suffix in leaf.parts:
            made[part_name(name, suffix)] = filled[suffix] if suffix in filled else leaf.initial(suffix, key)
    return made


def forward(a: Architecture, compute: Compute, parameters: Parameters, tokens_BT, where: TokenPositions, keep_kv=False):
    """Run the decoder on a flat parameter dict; returns as `Decoder.__call__`."""
    return _decoder(a, compute, values_of(a, parameters))(tokens_BT, where, keep_kv)


def forward_step(a: Architecture, compute: Compute, values: Values, *arguments):
    """`Decoder.step` on the result of `values_of` or `unstacked`."""
    return _decoder(a, compute, values).step(*arguments)


def _decoder(a: Architecture, compute: Compute, values: Values) -> Decoder:
    graph, paths, _ = _structure(a, compute)
    tree: dict = {}
    for name, (*path, last) in paths.items():
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = values[name]
    return nnx.merge(graph, tree)


def head_kernel(a: Architecture, parameters: Parameters) -> jax.Array:
    """The [V, D] kernel that turns hidden states into logits: the embedding itself when tied.

    Raises:
      BadInput: a reward model, which predicts no tokens.
    """
    if a.reward:
        raise BadInput("this is a reward model: it has a scalar head and predicts no tokens. Use a language model.")
    return parameters["embedding" if a.tied else "head"]


def logits(a: Architecture, parameters: Parameters, hidden: jax.Array) -> jax.Array:
    """float32 logits [..., V] of hidden states [..., D]; rows beyond the model's vocabulary are masked."""
    kernel = head_kernel(a, parameters).astype(hidden.dtype)
    raw = jnp.einsum("...D,VD->...V", hidden, kernel, preferred_element_type=accumulator(hidden))
    return cap_and_mask(a, raw)


def cap_and_mask(a: Architecture, raw: jax.Array) -> jax.Array:
    """Soft-cap logits and mask the rows added for divisibility, so that they get no probability mass."""
    if a.logit_softcap is not None:
        raw = a.logit_softcap * jnp.tanh(raw / a.logit_softcap)
    if a.rows > a.vocab:
        raw = jnp.where(jnp.arange(a.rows) < a.vocab, raw, MASKED)
    return raw
