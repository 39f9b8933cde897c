"""Sources in proportion: ratios, each source's own epochs, a pure function of the row."""

import numpy as np
import pytest

from sft_jax.data.pack.batches import Batches
from sft_jax.data.pack.mixture import PERIOD, Mixture, pattern, row_shares
from sft_jax.data.pack.packing import plan_packing
from sft_jax.data.pack.store import Example, sizes


def source(name: str, number: int, targets: int, seed: int = 0) -> Batches:
    """`number` documents of 16 tokens, two to a row of 32."""
    weights = np.zeros(16, np.float32)
    weights[16 - targets :] = 1
    examples = [Example(f"{name}{i}", name, i + 1, np.full(16, i, np.int32), weights) for i in range(number)]
    return Batches(examples, plan_packing(*sizes(examples), 32, 32), seed, 4, 2)


def taken(mixture: Mixture, rows: int) -> list[str]:
    return [mixture.documents_of(row)[0].source for row in range(rows)]


def test_ratios_hold_at_every_moment_of_a_run():
    parts = [source("a", 20, 4), source("b", 6, 4), source("c", 10, 4)]
    shares = np.array([0.6, 0.3, 0.1])
    mixture = Mixture(parts, shares, 4)
    names = taken(mixture, 1000)
    for rows in range(1, 1001):
        counts = np.array([names[:rows].count(name) for name in "abc"])
        assert np.abs(counts - shares * rows).max() <= 1.5, rows
    assert mixture.rows_taken(1000).tolist() == [names.count(name) for name in "abc"]


def test_every_source_goes_through_its_own_epochs():
    parts = [source("a", 20, 4), source("b", 6, 4)]
    mixture = Mixture(parts, np.array([0.5, 0.5]), 4)
    seen = [e.id for row in range(40) for e in mixture.documents_of(row) if e.source == "b"]
    assert len(seen) == 40 and all(sorted(seen[k : k + 6]) == [f"b{i}" for i in range(6)] for k in range(0, 36, 6))
    assert seen[:6] != seen[6:12], "each epoch has an order of its own"


def test_weights_count_examples_or_trained_tokens():
    parts = [source("a", 20, 2), source("b", 20, 8)]
    by_examples = row_shares(parts, (1.0, 1.0), "examples")
    by_targets = row_shares(parts, (1.0, 1.0), "target_tokens")
    np.testing.assert_allclose(by_examples, [0.5, 0.5])
    np.testing.assert_allclose(by_targets, [0.8, 0.2])
    mixture = Mixture(parts, by_targets, 4)
    targets = {"a": 0, "b": 0}
    for row in range(1000):
        for example in mixture.documents_of(row):
            targets[example.source] += example.targets
    assert targets["a"] == pytest.approx(targets["b"], rel=0.02)


def test_a_batch_is_a_pure_function_of_the_step():
    def make() -> Mixture:
        return Mixture([source("a", 20, 4), source("b", 6, 4, seed=9)], np.array([0.7, 0.3]), 4, 2, total_rows=50)

    one, other = make(), make()
    for step in (12, 0, 7):
        for a, b in zip(one.batch(step), other.batch(step), strict=True):
            np.testing.assert_array_equal(a, b)
    half = one.batch(3, slice(1, 2))
    np.testing.assert_array_equal(half.tokens, one.batch(3).tokens[:, 1:2])
    assert one.rows_of(0) == [e.where for row in range(4) for e in one.documents_of(row)]
    assert not one.batch(12).target_weights[1, :].any(), "rows beyond total_rows are padding"
    assert one.documents_of(49) and not one.documents_of(50)


def test_the_pattern_repeats_without_a_gap():
    shares = np.array([1e-6, 0.25, 0.75])
    sources, rank, counts = pattern(shares)
    assert counts.sum() == PERIOD and counts[0] == 1
    for number in range(3):
        np.testing.assert_array_equal(rank[sources == number], np.arange(counts[number]))
    parts = [source("a", 20, 4), source("b", 6, 4)]
    mixture = Mixture(parts, np.array([0.5, 0.5]), 4)
    at = [row for row in range(PERIOD - 4, PERIOD + 4) if mixture.documents_of(row)[0].source == "b"]
    expected = [parts[1].documents_of(int(mixture.rows_taken(row)[1])) for row in at]
    assert [mixture.documents_of(row) for row in at] == expected
