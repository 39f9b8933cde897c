import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax.config import Optimizer
from sft_jax.train.optimizers import make_optimizer, make_schedule


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        ("constant", {0: 0.0, 1: 0.5, 2: 1.0, 6: 1.0, 10: 1.0}),
        ("linear", {0: 0.0, 1: 0.5, 2: 1.0, 6: 0.5, 10: 0.0}),
        ("cosine", {0: 0.0, 1: 0.5, 2: 1.0, 6: 0.5, 10: 0.0}),
    ],
)
def test_the_rate_rises_over_the_warm_up_and_falls_to_zero_at_the_last_step(schedule, values):
    rate = make_schedule(Optimizer(learning_rate=1.0, schedule=schedule, warmup_steps=2), 10)
    for step, value in values.items():
        np.testing.assert_allclose(rate(jnp.asarray(step)), value, atol=1e-6)


def test_a_share_of_the_steps_warms_up_rounded_up_as_in_transformers():
    rate = make_schedule(Optimizer(learning_rate=1.0, schedule="constant", warmup_ratio=0.15), 10)
    np.testing.assert_allclose([rate(step) for step in (0, 1, 2, 9)], [0.0, 0.5, 1.0, 1.0], atol=1e-6)


def test_without_warm_up_the_first_step_has_the_full_rate():
    assert float(make_schedule(Optimizer(learning_rate=1.0), 10)(jnp.asarray(0))) == 1.0


def test_weight_decay_leaves_norms_and_biases_alone():
    optimizer = make_optimizer(Optimizer(weight_decay=0.1))
    parameters = {"a.kernel": jnp.ones(3), "a.bias": jnp.ones(3), "norm.scale": jnp.ones(3), "embedding": jnp.ones(3)}
    zeros = jax.tree.map(jnp.zeros_like, parameters)
    directions, _ = optimizer.update(zeros, optimizer.init(parameters), parameters)
    np.testing.assert_allclose(directions["a.kernel"], 0.1, rtol=1e-6)
    np.testing.assert_allclose(directions["embedding"], 0.1, rtol=1e-6)
    assert not directions["a.bias"].any() and not directions["norm.scale"].any()


def test_the_first_moment_may_be_bfloat16_and_the_second_stays_float32():
    gradients = {"x": jnp.linspace(-1, 1, 64, dtype=jnp.float32)}
    directions = {}
    for dtype in ("float32", "bfloat16"):
        optimizer = make_optimizer(Optimizer(first_moment_dtype=dtype))
        state = optimizer.init(gradients)
        for _ in range(3):
            directions[dtype], state = optimizer.update(gradients, state, gradients)
        [adam, *_] = [part for part in state if hasattr(part, "mu")]
        assert adam.mu["x"].dtype == dtype and adam.nu["x"].dtype == "float32"
    np.testing.assert_allclose(directions["bfloat16"]["x"], directions["float32"]["x"], atol=0.01)
    assert (directions["bfloat16"]["x"] != directions["float32"]["x"]).any()


def test_a_bfloat16_second_moment_would_stand_still():
    """Why there is no such setting: what b2 = 0.999 takes from it is less than half a step of bfloat16."""
    nu = jnp.asarray(0.7, jnp.bfloat16)
    assert (nu * 0.999).astype(jnp.bfloat16) == nu
