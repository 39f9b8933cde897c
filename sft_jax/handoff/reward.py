"""The reward model: a scalar head on the SFT weights, and its rewards.

The reward of a text is `score` [1, D] times the final hidden state of the last token, as in transformers'
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
    """Replace the decoder's vocabulary head by a scalar head; a tied embedding is kept.

    Args:
      init: zeros (the initial loss is ln 2), or normal with standard deviation 1 / sqrt(D + 1) (Stiennon et al. 2020,
        appendix B.1).
    """
    kept = {name: value for name, value in parameters.items() if name != "head"}
    width = architecture.embed
    score = jnp.zeros((1, width), jnp.float32)
    if init == "normal":
        score = jax.random.normal(jax.random.key(seed), (1, width), jnp.float32) / np.sqrt(width + 1)
    sharded = jax.jit(lambda x: layout.shard(x, None, "embed", name="score"))(score)
    return dataclasses.replace(architecture, reward=True), {**kept, "score": sharded}


def choose_pad(tokenizer: Any, stops: Sequence[int], vocab: int, named: str = "") -> str:
    """Choose a padding token that does not end answers: transformers reads the reward at the last non-padding token.

    If the padding token is also the stop token (SmolLM2), the reward would be read one token early.

    Args:
      vocab: ids below this have an embedding, which the padding token needs in transformers.
      named: the user's choice; "" means the tokenizer's own, or else its first unused special token.

    Raises:
      BadInput: the named token does not exist, has no embedding or ends answers; or no special token is unused.
    """
    ends = {*stops, tokenizer.eos_token_id}
    special = {str(token): number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    if named:
        if named not in tokenizer.get_vocab():
            raise BadInput(f"--pad-token {named!r}: no such token. {nearest(named, list(special) or ['none'])}")
        if tokenizer.convert_tokens_to_ids(named) >= vocab:
            raise BadInput(
                f"--pad-token {named!r} has id {tokenizer.convert_tokens_to_ids(named)}, but the model has {vocab:,} "
                "embeddings. Choose another"
            )
        if tokenizer.convert_tokens_to_ids(named) in ends:
            raise BadInput(f"--pad-token {named!r} ends answers: the reward would be read before it. Choose another")
        return named
    own = tokenizer.pad_token
    if own is not None and tokenizer.pad_token_id not in ends and tokenizer.pad_token_id < vocab:
        return own
    template = str(tokenizer.chat_template or "")
    reserved = {tokenizer.bos_token, tokenizer.eos_token}
    free = [word for word, number in special.items() if number < vocab and number not in ends and word not in reserved]
    free = [word for word in free if word not in template]
    if not free:
        raise BadInput(
            f"the tokenizer has no special token to use for padding (found {', '.join(special) or 'none'}): all end "
            "answers, occur in the chat template or have no embedding. Name an unused token with --pad-token"
        )
    return free[0]


@functools.lru_cache(maxsize=8)
def make_rewards(architecture: Architecture, compute: Compute):
    """Jitted: (parameters, tokens int32 [B, T], lengths int32 [B]) -> rewards float32 [B] at the last tokens."""

    def rewards(parameters: Mapping[str, jax.Array], tokens: jax.Array, lengths: jax.Array) -> jax.Array:
        # Replicated over columns so that the layout can shard the target axis; only the first is used.
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
    """Yield the reward of each document (int32 token ids)."""
    batch_size = compute.layout.round_up_batch(batch_size)
    rewards = make_rewards(architecture, compute)
    for start in range(0, len(documents), batch_size):
        batch = documents[start : start + batch_size]
        tokens, lengths = token_batch(batch, batch_size)
        yield from np.asarray(rewards(parameters, tokens, lengths))[: len(batch)].tolist()


def split_pair(example: Example) -> tuple[np.ndarray, np.ndarray]:
    """Split a pair into its two documents: (chosen, rejected)."""
    end = int(np.flatnonzero(example.weights)[0]) + 1
    return example.tokens[:end], example.tokens[end:]
