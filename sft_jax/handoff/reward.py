"""The reward model: a scalar head on the SFT weights, and the rewards it gives.

The reward of a text is the product of `score` [1, D] and the last token's final hidden state, as in transformers'
`AutoModelForSequenceClassification` with one label.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from sft_jax.data.pack.store import Example
from sft_jax.errors import BadInput, nearest
from sft_jax.losses.bradley_terry import rewards_at
from sft_jax.model.architecture import Architecture
from sft_jax.model.layers import Compute
from sft_jax.parallel.rules import Layout
from sft_jax.sample.score import TARGET_BUCKET, target_states, token_batch

Init = Literal["zeros", "normal"]


def with_reward_head(
    architecture: Architecture, layout: Layout, parameters: Mapping[str, jax.Array], init: Init, seed: int
) -> tuple[Architecture, dict[str, jax.Array]]:
    """The decoder with a scalar head in place of the vocabulary's; a tied embedding stays.

    Args:
      init: zeros (the first loss is ln 2, whatever the weights), or normal with deviation 1 / sqrt(D + 1) (Stiennon et
        al. 2020, appendix B.1).
    """
    kept = {name: value for name, value in parameters.items() if name != "head"}
    width = architecture.embed
    score = jnp.zeros((1, width), jnp.float32)
    if init == "normal":
        score = jax.random.normal(jax.random.key(seed), (1, width), jnp.float32) / np.sqrt(width + 1)
    sharded = jax.jit(lambda x: layout.shard(x, None, "embed", name="score"))(score)
    return dataclasses.replace(architecture, reward=True), {**kept, "score": sharded}


def choose_pad(tokenizer: Any, stops: Sequence[int], vocab: int, named: str = "") -> str:
    """A padding token that ends no answer: transformers reads the reward at the last token that is not padding.

    Where padding is the stop token too (SmolLM2), the reward would be read one token early.

    Args:
      vocab: ids below this have an embedding; transformers builds none for padding beyond.
      named: the user's choice; "" takes the tokenizer's own, or else its first special token that is free.

    Raises:
      BadInput: the named token does not exist, has no embedding or ends answers, or none is free.
    """
    ends = {*stops, tokenizer.eos_token_id}
    special = {str(token): number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    if named:
        if named not in tokenizer.get_vocab():
            raise BadInput(f"--pad-token {named!r}: no such token. {nearest(named, list(special) or ['none'])}")
        if tokenizer.convert_tokens_to_ids(named) >= vocab:
            raise BadInput(
                f"--pad-token {named!r} has id {tokenizer.convert_tokens_to_ids(named)}, but the model has {vocab:,} "
                "embeddings. Name another"
            )
        if tokenizer.convert_tokens_to_ids(named) in ends:
            raise BadInput(f"--pad-token {named!r} ends answers: the reward would be read before it. Name another")
        return named
    own = tokenizer.pad_token
    if own is not None and tokenizer.pad_token_id not in ends and tokenizer.pad_token_id < vocab:
        return own
    template = str(tokenizer.chat_template or "")
    taken = {tokenizer.bos_token, tokenizer.eos_token}
    free = [word for word, number in special.items() if number < vocab and number not in ends and word not in taken]
    free = [word for word in free if word not in template]
    if not free:
        raise BadInput(
            f"the tokenizer has no special token that is free for padding (of {', '.join(special) or 'none'}): all end "
            "answers, stand in the chat template or have no embedding. Name an unused token with --pad-token"
        )
    return free[0]


@functools.lru_cache(maxsize=8)
def make_rewards(architecture: Architecture, compute: Compute):
    """The jitted (parameters, tokens int32 [B, T], lengths int32 [B]) -> rewards float32 [B] at the last tokens."""

    def rewards(parameters: Mapping[str, jax.Array], tokens: jax.Array, lengths: jax.Array) -> jax.Array:
        # As many columns as the layout divides targets into; the first is the one wanted.
        last = jnp.broadcast_to(
            lengths[:, None] - 1, (tokens.shape[0], TARGET_BUCKET * compute.layout.parts("act_targets"))
        )
        states = target_states(architecture, compute, parameters, tokens, lengths, last)
        return compute.layout.shard(rewards_at(parameters, states)[:, 0], None)  # whole on every process

    return jax.jit(rewards)


def reward_documents(
    architecture: Architecture,
    compute: Compute,
    parameters: Mapping[str, jax.Array],
    documents: Sequence[np.ndarray],
    batch_size: int = 8,
) -> Iterator[float]:
    """The reward of each document (int32 token ids) in order."""
    batch_size = compute.layout.round_up_batch(batch_size)
    rewards = make_rewards(architecture, compute)
    for start in range(0, len(documents), batch_size):
        batch = documents[start : start + batch_size]
        tokens, lengths = token_batch(batch, batch_size)
        yield from np.asarray(rewards(parameters, tokens, lengths))[: len(batch)].tolist()


def ends_of(example: Example) -> tuple[np.ndarray, np.ndarray]:
    """The two documents of a pair: chosen, rejected."""
    end = int(np.flatnonzero(example.weights)[0]) + 1
    return example.tokens[:end], example.tokens[end:]
