import jax
import numpy as np
import pytest

from sft_jax.data.pack.store import Example
from sft_jax.evaluate.held_out import document_losses, loss_interval, summarise_losses
from sft_jax.model.layers import Compute
from sft_jax.sample.score import score_examples


@pytest.fixture(scope="module")
def documents():
    random = np.random.default_rng(0)
    made = []
    for number, weights in enumerate(([0, 0, 1, 1, 0, 0, 0.5, 1], [0, 1, 1], [0, 0, 0, 0, 1])):
        tokens = random.integers(0, 250, len(weights)).astype(np.int32)
        made.append(Example(str(number), f"file{number % 2}", 1, tokens, np.array(weights, np.float32)))
    return made


def test_the_loss_of_a_document_is_that_of_its_trained_tokens_turn_by_turn(tiny, tiny_parameters, documents):
    found = document_losses(tiny, Compute(), tiny_parameters, documents, batch_size=2)
    for one, example, log_p in zip(
        found, documents, score_examples(tiny, Compute(), tiny_parameters, documents, 2), strict=True
    ):
        nll = -np.append(0.0, log_p) * example.weights
        assert one.id == example.id and one.nll == pytest.approx(nll.sum(), rel=1e-5)
        assert one.weight == example.weights.sum()
    assert [weight for _, weight in found[0].turns] == [2.0, 1.5]  # two turns, the second with a half weight
    log_p = next(iter(score_examples(tiny, Compute(), tiny_parameters, documents[:1], 2)))
    assert found[0].turns[0][0] == pytest.approx(-log_p[1:3].sum(), rel=1e-5)


def test_losses_are_summed_before_they_are_divided(tiny, tiny_parameters, documents):
    found = document_losses(tiny, Compute(), tiny_parameters, documents)
    about = summarise_losses(found)
    total = sum(one.nll for one in found) / sum(one.weight for one in found)
    assert about["loss"].value == loss_interval(found).value == pytest.approx(total)
    assert about["perplexity"].value == pytest.approx(np.exp(total))
    second = found[0].turns[1]
    assert about["by_turn"]["2"] == pytest.approx(second[0] / second[1])
    assert about["by_source"]["file1"] == pytest.approx(found[1].nll / found[1].weight)
    assert about["documents"] == 3 and about["target_tokens"] == 6.5
    assert jax.tree.all(jax.tree.map(np.isfinite, about["by_source"]))
