import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sft_jax.config import Optimizer
from sft_jax.data.pack.batches import Batch
from sft_jax.losses.cross_entropy import cross_entropy_objective
from sft_jax.model.layers import Compute
from sft_jax.train.optimizers import make_optimizer, make_schedule
from sft_jax.train.step import initial_state, make_evaluation, make_update


@pytest.fixture
def run(tiny, tiny_parameters):
    """(batch, optimizer settings) -> (state before, state after, metrics) of one update."""

    def run(batch: Batch, compute=None, parameters=None, clip=1.0, objective=None, **settings):
        config = Optimizer(**{"learning_rate": 1e-3, "schedule": "constant", **settings})
        optimizer = make_optimizer(config)
        objective = objective or cross_entropy_objective(tiny, compute or Compute(), 16)
        update = jax.jit(make_update(objective, optimizer, make_schedule(config, 10), clip))
        state = initial_state(dict(parameters or tiny_parameters), optimizer)
        after, metrics = update(state, {}, batch)
        return state, after, metrics

    return run


@pytest.fixture
def batch(make_batches) -> Batch:
    return make_batches(accumulation=2).batch(0, slice(0, 4))


LEAVES = {"x": np.array([3, 0, -1], np.float32), "y": np.array([[2], [-0.5]], np.float32)}


def _squares(trainable, frozen, micro, rng):
    """Its gradient, divided by the weights, is LEAVES themselves: for what does not depend on the model."""
    weight = micro.target_weights.sum()
    return weight * sum((leaf**2).sum() for leaf in trainable.values()) / 2, weight, {}


def _equal(one, other) -> bool:
    return all((np.asarray(a) == np.asarray(b)).all() for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True))


def test_an_update_moves_every_parameter_and_counts_the_step(run, batch):
    before, after, metrics = run(batch)
    assert int(after.step) == 1 and int(after.skipped) == 0 and bool(metrics["finite"])
    for name in before.trainable:
        assert (before.trainable[name] != after.trainable[name]).any(), name


def test_a_batch_without_targets_changes_nothing_and_is_counted(run, batch):
    before, after, metrics = run(batch._replace(target_weights=np.zeros_like(batch.target_weights)))
    assert _equal(before.trainable, after.trainable) and _equal(before.opt_state, after.opt_state)
    assert int(after.step) == 1 and int(after.skipped) == 1
    assert bool(metrics["finite"]) and float(metrics["weight_sum"]) == 0


def test_a_micro_batch_without_targets_adds_nothing(run, batch):
    weights = batch.target_weights.copy()
    weights[1] = 0
    _, with_it, _ = run(batch._replace(target_weights=weights))
    alone = Batch(*(x[:1] for x in batch._replace(target_weights=weights)))
    _, without_it, _ = run(alone)
    for name, value in with_it.trainable.items():
        np.testing.assert_allclose(value, without_it.trainable[name], atol=2e-6)


def test_a_non_finite_loss_changes_nothing_and_is_told(run, batch, tiny_parameters):
    infinite = tiny_parameters["embedding"].at[int(batch.tokens[0, 0, 0]), 0].set(np.inf)
    broken = {**tiny_parameters, "embedding": infinite}
    before, after, metrics = run(batch, parameters=broken)
    assert not bool(metrics["finite"])
    assert _equal(before.trainable, after.trainable) and _equal(before.opt_state, after.opt_state)


def test_a_non_finite_gradient_under_a_finite_loss_changes_nothing_and_is_told(batch):
    def objective(trainable, frozen, micro, rng):
        return jnp.sqrt(0.0 * trainable["x"]).sum(), jnp.float32(1), {}  # its slope is 0 * infinity

    config = Optimizer(schedule="constant")
    optimizer = make_optimizer(config)
    state = initial_state({"x": jnp.ones(3)}, optimizer)
    after, metrics = jax.jit(make_update(objective, optimizer, make_schedule(config, 10), 1.0))(state, {}, batch)
    assert float(metrics["loss_sum"]) == 0 and not bool(metrics["finite"])
    assert _equal(state.trainable, after.trainable) and _equal(state.opt_state, after.opt_state)


def test_the_loss_divides_once_over_ragged_micro_batches(run, batch, tiny, tiny_parameters):
    """Not the mean of the micro-batches' means: they hold different numbers of targets."""
    weights = batch.target_weights.copy()
    weights[1, :, 2:] = 0
    batch = batch._replace(target_weights=weights)
    _, _, metrics = run(batch)
    objective = cross_entropy_objective(tiny, Compute(), 16)
    parts = [objective(tiny_parameters, {}, jax.tree.map(lambda x, i=i: x[i], batch))[:2] for i in range(2)]
    losses, counts = zip(*((float(loss), float(weight)) for loss, weight in parts), strict=True)
    assert counts[0] > 2 * counts[1]
    mean = float(metrics["loss_sum"]) / float(metrics["weight_sum"])
    np.testing.assert_allclose(mean, sum(losses) / sum(counts), rtol=1e-6)
    assert abs(mean - (losses[0] / counts[0] + losses[1] / counts[1]) / 2) > 1e-4


def test_gradients_are_clipped_to_the_global_norm(run, batch):
    """SGD with rate 1 moves the parameters by the clipped gradient itself."""
    norm = float(optax.tree.norm(LEAVES))
    for clip in (0.01, 0.0):
        settings = {"clip": clip, "name": "sgd", "learning_rate": 1.0}
        before, after, metrics = run(batch, parameters=LEAVES, objective=_squares, **settings)
        moved = optax.tree.norm(jax.tree.map(jnp.subtract, before.trainable, after.trainable))
        np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-6)
        np.testing.assert_allclose(moved, clip or norm, rtol=1e-3)


def test_master_weights_and_moments_stay_float32_and_keep_tiny_updates_under_bfloat16(run, batch):
    before, after, _ = run(batch, compute=Compute(dtype="bfloat16"), learning_rate=1e-7)
    assert {x.dtype for x in jax.tree.leaves((after.trainable, after.opt_state)) if x.ndim} == {jnp.dtype("float32")}
    name = "layers.0:3.mlp.up.kernel"
    old, new = np.asarray(before.trainable[name]), np.asarray(after.trainable[name])
    assert (old != new).mean() > 0.5
    # The same update is lost when the weights themselves are bfloat16.
    assert (jnp.asarray(old, jnp.bfloat16) == jnp.asarray(new, jnp.bfloat16)).mean() > 0.99


def test_the_learning_rate_follows_batches_consumed_not_updates_made(batch):
    config = Optimizer(learning_rate=1.0, schedule="linear")
    optimizer = make_optimizer(config)
    update = jax.jit(make_update(_squares, optimizer, make_schedule(config, 4), 1.0))
    state = initial_state(LEAVES, optimizer)
    empty = batch._replace(target_weights=np.zeros_like(batch.target_weights))
    rates = []
    for _ in range(4):
        state, metrics = update(state, {}, empty)
        rates.append(float(metrics["learning_rate"]))
    assert rates == [1.0, 0.75, 0.5, 0.25]


def test_frozen_parameters_get_no_moments_and_do_not_change(tiny, tiny_parameters, batch):
    optimizer = make_optimizer(Optimizer())
    frozen = {"embedding": tiny_parameters["embedding"]}
    trainable = {k: v for k, v in tiny_parameters.items() if k not in frozen}
    state = initial_state(trainable, optimizer)
    update = make_update(cross_entropy_objective(tiny, Compute(), 16), optimizer, make_schedule(Optimizer(), 4), 1.0)
    after, _ = jax.jit(update)(state, frozen, batch)
    assert after.trainable.keys() == trainable.keys()
    assert not any("embedding" in str(path) for path, _ in jax.tree_util.tree_leaves_with_path(after.opt_state))


def test_evaluation_has_the_sums_of_the_update(run, batch, tiny, tiny_parameters):
    _, _, metrics = run(batch)
    sums = jax.jit(make_evaluation(cross_entropy_objective(tiny, Compute(), 16)))(tiny_parameters, {}, batch)
    for name, value in sums.items():
        np.testing.assert_allclose(value, metrics[name], rtol=1e-6)
