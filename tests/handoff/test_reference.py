from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax.config import Sharding
from sft_jax.data.pack.store import Example
from sft_jax.handoff.reference import Policy, divergences, mean, token_divergences
from sft_jax.model.attention.reference import TokenPositions
from sft_jax.model.decoder import abstract_parameters, forward, logits
from sft_jax.model.layers import Compute
from sft_jax.parallel.rules import Layout, axis_parts, shardings


@pytest.fixture(scope="module")
def other_parameters(tiny_parameters):
    return {name: value * (4 if value.ndim > 2 else 1) for name, value in tiny_parameters.items()}


@pytest.fixture(scope="module")
def documents(examples):
    return examples[:5]


@partial(jax.jit, static_argnums=0)
def _log_p(architecture, parameters, tokens):
    places = TokenPositions(jnp.arange(tokens.shape[1])[None], jnp.ones(tokens.shape, jnp.int32))
    hidden, _ = forward(architecture, Compute(), parameters, tokens, places)
    return jax.nn.log_softmax(logits(architecture, parameters, hidden)[0], axis=-1)


def _whole_log_p(architecture, parameters, example: Example):
    padded = np.zeros((1, 40), np.int32)  # no token sees those after it
    padded[0, : len(example.tokens)] = example.tokens
    return np.asarray(_log_p(architecture, parameters, padded), np.float64)[: len(example.tokens)]


def test_every_divergence_is_its_formula_at_every_trained_token(tiny, tiny_parameters, other_parameters, documents):
    policy, reference = Policy(tiny, tiny_parameters), Policy(tiny, other_parameters)
    for found, example in zip(divergences(policy, reference, Compute(), documents, 2), documents, strict=True):
        trained = np.flatnonzero(example.weights)
        p, q = (_whole_log_p(tiny, parameters, example) for parameters in (tiny_parameters, other_parameters))
        log_p, log_q = (x[trained - 1, example.tokens[trained]] for x in (p, q))
        np.testing.assert_allclose(found.log_p, log_p, atol=1e-4)
        np.testing.assert_allclose(found.log_q, log_q, atol=1e-4)
        exact = (np.exp(p) * (p - q)).sum(axis=1)[trained - 1]
        assert exact.max() > 0.001
        np.testing.assert_allclose(found.kl, exact, atol=1e-5)
        ratio = log_q - log_p
        np.testing.assert_allclose(found.k1, -ratio, atol=1e-5)
        np.testing.assert_allclose(found.k2, ratio**2 / 2, atol=1e-5)
        np.testing.assert_allclose(found.k3, np.exp(ratio) - 1 - ratio, atol=1e-5)
        np.testing.assert_array_equal(found.weights, example.weights[trained])


def test_a_policy_does_not_differ_from_itself_by_one_bit(tiny, tiny_parameters, documents):
    policy = Policy(tiny, tiny_parameters)
    copy = Policy(tiny, {name: jnp.array(value) for name, value in tiny_parameters.items()})
    for found in divergences(policy, copy, Compute(), documents, 2):
        assert not found.kl.any() and not found.k1.any() and not found.k2.any() and not found.k3.any()
    assert mean(list(divergences(policy, copy, Compute(), documents)))["kl"] == 0


@pytest.mark.parametrize("sizes", [{"fsdp": 4, "context": 2}, {"data": 2, "tensor": 2}])
def test_both_lie_on_the_mesh_whatever_its_layout(tiny, tiny_parameters, other_parameters, documents, mesh_of, sizes):
    rules, mesh = Sharding(), mesh_of(**sizes)
    wanted = tiny.padded_to(axis_parts("vocab", rules, mesh))
    shapes, axes = abstract_parameters(wanted)
    where = shardings({name: shape.shape for name, shape in shapes.items()}, axes, mesh, rules)
    alone = mean(
        list(divergences(Policy(tiny, tiny_parameters), Policy(tiny, other_parameters), Compute(), documents, 2))
    )
    placed = [
        Policy(wanted, {name: jax.device_put(value, where[name]) for name, value in parameters.items()})
        for parameters in (tiny_parameters, other_parameters)
    ]
    found = mean(list(divergences(*placed, Compute(layout=Layout(mesh, rules)), documents, 2)))
    assert found == pytest.approx(alone, rel=1e-4)


def test_the_means_are_weighted_as_the_tokens_train(tiny, tiny_parameters, other_parameters, documents):
    found = list(divergences(Policy(tiny, tiny_parameters), Policy(tiny, other_parameters), Compute(), documents))
    whole = mean(found)
    weights = np.concatenate([one.weights for one in found])
    assert whole["kl"] == pytest.approx(np.average(np.concatenate([one.kl for one in found]), weights=weights))
    assert whole["tokens"] == sum(example.targets for example in documents)
    assert len(set(weights.tolist())) > 1


def test_k3_has_the_exact_kl_as_its_mean_over_the_policys_own_tokens():
    p, q = (jax.nn.log_softmax(jnp.asarray(x, jnp.float32)) for x in ([1.0, 0.0, -1.0], [0.0, 0.5, 0.2]))
    every = jnp.arange(3)[None]
    kl, k1, _, k3, _, _ = token_divergences(jnp.tile(p, (1, 3, 1)), jnp.tile(q, (1, 3, 1)), every)
    for estimator in (k1, k3):
        assert float((jnp.exp(p) * estimator[0]).sum()) == pytest.approx(float(kl[0, 0]), rel=1e-5)


def test_nothing_to_compare_is_refused(tiny, tiny_parameters, documents):
    small = Policy(tiny.__class__(**{**vars(tiny), "vocab": 100}), tiny_parameters)
    with pytest.raises(ValueError, match="vocabularies of 260 and 100"):
        next(divergences(Policy(tiny, tiny_parameters), small, Compute(), documents))
    with pytest.raises(ValueError, match="no token has a weight"):
        mean([])
