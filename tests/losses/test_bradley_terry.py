import math
from functools import partial

import jax
import numpy as np
import pytest

from sft_jax.config import Sharding
from sft_jax.data.pack.batches import batches_of
from sft_jax.data.pack.packing import plan_packing
from sft_jax.data.pack.store import Example, sizes
from sft_jax.handoff.reward import reward_documents, split_pair, with_reward_head
from sft_jax.losses.bradley_terry import reward_objective
from sft_jax.model.decoder import abstract_parameters
from sft_jax.model.layers import Compute
from sft_jax.parallel.rules import ONE_DEVICE, Layout, shardings
from sft_jax.train.feed import put_batch
from sft_jax.train.sharding import batch_shapes_of, batch_shardings
from sft_jax.train.step import accumulate


@pytest.fixture(scope="module")
def reward(tiny, tiny_parameters):
    return with_reward_head(tiny, ONE_DEVICE, tiny_parameters, "normal", 0)


@pytest.fixture(scope="module")
def pairs() -> list[Example]:
    """Ragged pairs, some with a margin."""
    random = np.random.default_rng(0)
    made = []
    for number in range(14):
        lengths = random.integers(3, 20, 2)
        weights = np.zeros(lengths.sum(), np.float32)
        weights[lengths[0] - 1], weights[-1] = 1.0, 1.0 + 0.5 * (number % 3)
        tokens = random.integers(0, 250, len(weights)).astype(np.int32)
        made.append(Example(str(number), "pairs", number, tokens, weights))
    return made


def _batches(pairs, packing="best_fit", batch_size=8, accumulation=1, slots=32):
    lengths, targets = sizes(pairs)
    plan = plan_packing(lengths, targets, 64, slots, packing)
    return batches_of(pairs, plan, batch_size, accumulation, pairs=True)


def _sums(reward, batches, mesh):
    architecture, parameters = reward
    rules = Sharding()
    shapes, axes = abstract_parameters(architecture)
    where = shardings({name: shape.shape for name, shape in shapes.items()}, axes, mesh, rules)
    total = None
    placed = {name: jax.device_put(value, where[name]) for name, value in parameters.items()}
    run = jax.jit(partial(accumulate, reward_objective(architecture, Compute(layout=Layout(mesh, rules)))))
    for step in range(batches.steps_for(1)):
        batch = put_batch(batches, step, batch_shapes_of(batches), batch_shardings(mesh, rules))
        found = jax.tree.map(np.asarray, run(placed, {}, batch))
        total = found if total is None else jax.tree.map(np.add, total, found)
    return total


def test_the_loss_is_bradley_terry_on_rewards_read_at_the_last_tokens(reward, pairs, mesh_of):
    (loss, weight, metrics), _ = _sums(reward, _batches(pairs), mesh_of())
    rewards = list(reward_documents(*_args(reward), [one for pair in pairs for one in split_pair(pair)]))
    both = list(zip(rewards[::2], rewards[1::2], strict=True))
    margins = [pair.weights[-1] - 1 for pair in pairs]
    above = [chosen - rejected - margin for (chosen, rejected), margin in zip(both, margins, strict=True)]
    assert loss == pytest.approx(sum(math.log1p(math.exp(-x)) for x in above), rel=1e-5)
    assert weight == len(pairs) and any(margins)
    assert metrics["correct"] == sum(chosen > rejected for chosen, rejected in both)
    assert metrics["reward_margin"] == pytest.approx(sum(a - b for a, b in both), rel=1e-4)
    assert metrics["target_tokens"] == 2 * len(pairs) and metrics["tokens"] == sum(len(pair.tokens) for pair in pairs)
    entropies = [_entropy(x) for x in above]
    assert metrics["entropy"] == pytest.approx(sum(entropies), rel=1e-4)


def _args(reward):
    return reward[0], Compute(), reward[1]


def _entropy(x: float) -> float:
    p = 1 / (1 + math.exp(-x))
    return -(p * math.log(p) + (1 - p) * math.log(1 - p))


def test_a_zero_head_begins_at_the_logarithm_of_two_without_margins(reward, pairs, mesh_of):
    architecture, parameters = reward
    zero = architecture, {**parameters, "score": parameters["score"] * 0}
    plain = [pair._replace(weights=np.minimum(pair.weights, 1)) for pair in pairs]
    (loss, weight, metrics), gradients = _sums(zero, _batches(plain), mesh_of())
    assert loss / weight == pytest.approx(math.log(2), abs=1e-6) and metrics["correct"] == 0
    assert np.abs(gradients["score"]).max() > 0


@pytest.mark.slow
def test_packed_pairs_are_the_pairs_alone_and_every_layout_says_the_same(reward, pairs, mesh_of, assert_same):
    packed, alone = _batches(pairs), _batches(pairs, "none", batch_size=4, accumulation=2)
    assert packed.rows_per_epoch < alone.rows_per_epoch == len(pairs)
    expected = _sums(reward, alone, mesh_of())
    for sizes_of_mesh in ({}, {"fsdp": 4}, {"fsdp": 2, "context": 2}, {"data": 2, "tensor": 2}):
        assert_same(_sums(reward, packed, mesh_of(**sizes_of_mesh)), expected)


def test_a_slot_too_few_for_a_pair_stays_empty(reward, pairs, mesh_of, assert_same):
    odd, even = (_batches(pairs, "none", slots=slots) for slots in (3, 32))
    assert_same(_sums(reward, odd, mesh_of()), _sums(reward, even, mesh_of()))


def test_a_pairs_documents_never_see_each_other(reward, pairs, mesh_of):
    changed = [pair._replace(tokens=pair.tokens.copy()) for pair in pairs]
    for pair in changed:
        pair.tokens[0] = (pair.tokens[0] + 1) % 250  # in the chosen document alone
    before, after = (_rejected_rewards(reward, batch, mesh_of()) for batch in (_batches(pairs), _batches(changed)))
    np.testing.assert_array_equal(before, after)


def _rejected_rewards(reward, batches, mesh):
    from sft_jax.losses.bradley_terry import rewards_at
    from sft_jax.model.attention.reference import TokenPositions
    from sft_jax.model.decoder import forward

    architecture, parameters = reward
    batch = jax.tree.map(lambda x: x[0], batches.batch(0))
    where = TokenPositions(batch.positions, batch.segment_ids)
    hidden, _ = forward(architecture, Compute(layout=Layout(mesh)), parameters, batch.tokens, where)
    every = rewards_at(parameters, np.take_along_axis(np.asarray(hidden), batch.target_index[..., None], axis=1))
    return np.asarray(every)[:, 1::2][batch.target_weights[:, 1::2] > 0]
