import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax.config import Optimizer, Sharding
from sft_jax.losses.cross_entropy import Head, cross_entropy_objective, cross_entropy_sums, token_log_probabilities
from sft_jax.model.architecture import Architecture
from sft_jax.model.attention.reference import TokenPositions
from sft_jax.model.decoder import forward, logits
from sft_jax.model.layers import Compute
from sft_jax.train.optimizers import make_optimizer, make_schedule
from sft_jax.train.step import initial_state, make_update


def _arrays(vocab=37, rows=2, capacity=11, width=8, seed=0):
    random = np.random.default_rng(seed)
    kernel = jnp.asarray(random.normal(size=(vocab, width)), jnp.float32)
    hidden = jnp.asarray(random.normal(size=(rows, capacity, width)), jnp.float32)
    targets = jnp.asarray(random.integers(0, vocab, (rows, capacity)), jnp.int32)
    weights = jnp.asarray(random.choice([0, 1, 0.5], (rows, capacity)), jnp.float32)
    return kernel, hidden, targets, weights


def _architecture(vocab=37, **kwargs) -> Architecture:
    sizes = {"embed": 8, "mlp": 16, "layers": 1, "heads": 1, "kv_heads": 1, "head_dim": 8, "max_positions": 64}
    return Architecture(vocab=vocab, tied=True, **{**sizes, **kwargs})


def _plain(a, kernel, hidden, targets, weights):
    """The textbook formula, with autodiff's own gradient."""
    log_p = jax.nn.log_softmax(logits(a, {"embedding": kernel}, hidden), axis=-1)
    nll = -jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
    entropy = -(jnp.exp(log_p) * log_p).sum(-1)
    correct = log_p.argmax(-1) == targets
    return (weights * nll).sum(), (weights * correct).sum(), (weights * entropy).sum()


@pytest.mark.parametrize("chunk", [1, 4, 11, 64])
@pytest.mark.parametrize("extra", [{}, {"logit_softcap": 2.0}, {"vocab": 30, "vocab_rows": 37}])
def test_chunked_loss_and_its_gradients_equal_the_textbook_formula(chunk, extra):
    a = _architecture(**extra)
    kernel, hidden, targets, weights = _arrays()
    targets = jnp.minimum(targets, a.vocab - 1)

    @partial(jax.jit, static_argnums=0)
    def sums_and_gradients(formula, k, h):
        def loss(k, h):
            sums = formula(k, h, targets, weights)
            return 3.0 * sums[0], sums

        (_, sums), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(k, h)
        return sums, gradients

    sums, got = sums_and_gradients(partial(cross_entropy_sums, Head(a, chunk)), kernel, hidden)
    expected, want = sums_and_gradients(partial(_plain, a), kernel, hidden)
    np.testing.assert_allclose(sums, expected, rtol=1e-5)
    for ours, reference in zip(got, want, strict=True):
        np.testing.assert_allclose(ours, reference, atol=2e-5)


def test_rows_added_for_divisibility_get_no_probability_and_no_gradient():
    a = _architecture(vocab=30, vocab_rows=37)
    kernel, hidden, targets, weights = _arrays()
    targets = jnp.minimum(targets, 29)
    gradient = jax.grad(lambda k: cross_entropy_sums(Head(a, 4), k, hidden, targets, weights).loss)(kernel)
    assert not np.asarray(gradient[30:]).any()
    assert np.asarray(gradient[:30]).any()
    assert float(jnp.exp(jax.nn.log_softmax(logits(a, {"embedding": kernel}, hidden))[..., 30:]).max()) == 0


def test_log_probabilities_of_tokens_equal_log_softmax():
    a = _architecture()
    kernel, hidden, targets, _ = _arrays()
    want = jnp.take_along_axis(jax.nn.log_softmax(hidden @ kernel.T), targets[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(token_log_probabilities(Head(a, 4), kernel, hidden, targets), want, atol=2e-5)


def test_a_vocabulary_that_does_not_divide_is_padded_without_changing_the_loss(
    tiny, tiny_parameters, make_batches, mesh_of, sums_and_gradients, assert_same
):
    one = sums_and_gradients(tiny, tiny_parameters, make_batches(), mesh_of())
    rules = Sharding(heads="none", kv_heads="none", embed="none", mlp="none")
    other = sums_and_gradients(tiny, tiny_parameters, make_batches(), mesh_of(tensor=8), rules=rules)
    assert other[1]["embedding"].shape[0] == 264
    assert not other[1]["embedding"][260:].any()
    assert_same(other, one)


def test_scan_and_loop_and_every_remat_policy_agree(
    tiny, tiny_parameters, make_batches, mesh_of, sums_and_gradients, assert_same
):
    one = sums_and_gradients(tiny, tiny_parameters, make_batches(), mesh_of())
    for compute in (
        Compute(scan_layers=False),
        Compute(remat="dots"),
        Compute(remat="minimal"),
        Compute(remat="full"),
        Compute(remat="attention"),
        Compute(remat="offload"),
        Compute(remat="full", scan_layers=False),
        Compute(attention="reference"),
    ):
        assert_same(sums_and_gradients(tiny, tiny_parameters, make_batches(), mesh_of(), compute), one)


def test_packed_documents_give_the_loss_and_gradients_of_documents_alone(
    tiny, tiny_parameters, make_batches, mesh_of, sums_and_gradients, assert_same
):
    packed, alone = make_batches(batch_size=24), make_batches(batch_size=60, packing="none")
    assert packed.plan.rows <= 24 and alone.plan.rows == 60
    packed = make_batches(batch_size=packed.plan.rows)
    assert_same(
        sums_and_gradients(tiny, tiny_parameters, packed, mesh_of()),
        sums_and_gradients(tiny, tiny_parameters, alone, mesh_of()),
    )


@pytest.mark.parametrize("attention", ["reference", "blockwise"])
def test_a_changed_document_leaves_its_neighbours_hidden_states_bit_equal(
    tiny, tiny_parameters, make_batches, attention
):
    batch = make_batches().batch(0, slice(0, 8))
    tokens, segments, positions = (x[0] for x in (batch.tokens, batch.segment_ids, batch.positions))
    changed = np.where(segments == 1, (tokens + 7) % 258, tokens)
    run = jax.jit(
        lambda t: forward(tiny, Compute(attention=attention), tiny_parameters, t, TokenPositions(positions, segments))[
            0
        ]
    )
    before, after = np.asarray(run(tokens)), np.asarray(run(changed))
    assert (segments > 1).any()
    assert (before[segments > 1] == after[segments > 1]).all()
    assert not (before[segments == 1] == after[segments == 1]).all()


def test_no_buffer_with_a_vocabulary_axis_exceeds_chunk_times_vocabulary(tiny_parameters, tiny, make_batches):
    """In the whole compiled update, at M = T; only the parameter itself, its gradient and moments are [V, D]."""
    chunk, rows = 2, 8
    source = make_batches()
    assert source.plan.targets_per_row == source.plan.tokens_per_row == 64
    batch = source.batch(0)
    optimizer = make_optimizer(Optimizer())
    update = make_update(cross_entropy_objective(tiny, Compute(), chunk), optimizer, make_schedule(Optimizer(), 2), 1.0)
    text = jax.jit(update).lower(initial_state(tiny_parameters, optimizer), {}, batch).compile().as_text()
    shapes = {tuple(map(int, dims.split(","))) for dims in re.findall(r"\w+\[([\d,]+)\]", text)}
    with_vocabulary = {shape for shape in shapes if tiny.vocab in shape} - {(tiny.vocab, tiny.embed)}
    assert chunk * rows < tiny.embed and with_vocabulary
    assert max(int(np.prod(shape)) for shape in with_vocabulary) <= chunk * rows * tiny.vocab, with_vocabulary


def test_every_target_of_the_plan_is_counted_by_the_loss_in_an_epoch(
    tiny, tiny_parameters, make_batches, mesh_of, sums_and_gradients, examples
):
    """Targets are conserved: in the examples, in the packing plan, in what the objective counts."""
    batches = make_batches(total_rows=make_batches().plan.rows)
    counted, weighed = 0.0, 0.0
    for step in range(batches.steps_for(1)):
        (_, weight, metrics), _ = sums_and_gradients(tiny, tiny_parameters, batches, mesh_of(), step=step)
        counted, weighed = counted + metrics["target_tokens"], weighed + weight
    assert counted == batches.plan.targets == sum(example.targets for example in examples)
    assert weighed == sum(float(example.weights.sum()) for example in examples)


def test_the_models_own_surplus_rows_stay_in_the_softmax(tiny, tiny_parameters):
    """As in transformers: an id that no token has takes probability from the others, in the loss and in scores."""
    kernel, hidden, targets, weights = _arrays()
    head = Head(_architecture(), 4)
    full = cross_entropy_sums(head, kernel, hidden, targets % 30, weights).loss
    cut = cross_entropy_sums(Head(_architecture(vocab=30), 4), kernel[:30], hidden, targets % 30, weights).loss
    assert float(full) > float(cut) + 0.1
    log_p = token_log_probabilities(head, kernel, hidden, targets % 30)
    np.testing.assert_allclose(-(weights * log_p).sum(), full, rtol=1e-5)
