"""Batches: a pure function of (seed, step), whatever the accumulation, the processes and the restarts."""

from itertools import chain
from typing import Any

import numpy as np
import pytest

from sft_jax.config import Data
from sft_jax.data.pack.batches import Batch, Batches, batches_of
from sft_jax.data.pack.packing import plan_packing
from sft_jax.data.pack.prepare import prepare
from sft_jax.data.pack.store import Example
from sft_jax.errors import BadInput


def some_examples(count: int = 37, longest: int = 20) -> list[Example]:
    rng = np.random.default_rng(0)
    examples = []
    for i in range(count):
        length = int(rng.integers(2, longest + 1))
        weights = (rng.random(length) < 0.5).astype(np.float32) * rng.choice([0.5, 1.0], length).astype(np.float32)
        weights[0], weights[-1] = 0, 1
        tokens = rng.integers(1, 1000, length).astype(np.int32)
        examples.append(Example(f"e{i}", "demos.jsonl", i + 1, tokens, weights))
    return examples


def source(examples: list[Example], batch_size: int = 4, accumulation: int = 1, **rest: Any) -> Batches:
    plan = plan_packing(
        np.asarray([len(e.tokens) for e in examples]), np.asarray([e.targets for e in examples]), 32, 20
    )
    return Batches(examples, plan, rest.pop("seed", 1), batch_size, accumulation, **rest)


def flat(batch: Batch) -> list[np.ndarray]:
    """Rows in order: [A, b, …] -> [A · b, …]."""
    return [part.reshape(-1, part.shape[-1]) for part in batch]


def documents_of(batch: Batch) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
    """(tokens, weights) of every document, read back from the arrays alone."""
    found = []
    tokens, segments, positions, index, target_tokens, target_weights = flat(batch)
    for r in range(len(tokens)):
        for segment in range(1, segments[r].max() + 1):
            places = np.flatnonzero(segments[r] == segment)
            assert (np.diff(places) == 1).all() and positions[r, places].tolist() == list(range(len(places)))
            weights = np.zeros(len(places), np.float32)
            for m in np.flatnonzero(target_weights[r]):
                if segments[r, index[r, m]] == segment:
                    p = index[r, m] + 1
                    assert segments[r, p] == segment and tokens[r, p] == target_tokens[r, m]
                    weights[p - places[0]] = target_weights[r, m]
            found.append((tuple(tokens[r, places].tolist()), tuple(weights.tolist())))
    return found


def test_shapes_types_and_padding_are_as_the_contract_says():
    batch = source(some_examples(), 4, 2).batch(0)
    assert [part.shape for part in batch] == [(2, 2, 32)] * 3 + [(2, 2, 20)] * 3
    assert [part.dtype for part in batch] == [np.int32] * 5 + [np.float32]
    padding = batch.segment_ids == 0
    assert padding.any() and not batch.tokens[padding].any() and not batch.positions[padding].any()
    unused = batch.target_weights == 0
    assert not batch.target_index[unused].any() and not batch.target_tokens[unused].any()


def test_an_epoch_holds_each_example_exactly_once_with_its_weights():
    examples = some_examples()
    batches = source(examples, batch_size=1)
    for epoch in (0, 1):
        steps = range(epoch * batches.plan.rows, (epoch + 1) * batches.plan.rows)
        found = [document for step in steps for document in documents_of(batches.batch(step))]
        expected = [(tuple(e.tokens.tolist()), tuple(e.weights.tolist())) for e in examples]
        assert sorted(found) == sorted(expected)


def test_targets_are_conserved_from_preparation_to_batches(make_tokenizer, jsonl):
    rows = [{"prompt": f"x {k}" * k, "completion": " world" * (1 + k % 5)} for k in range(1, 30)]
    prepared = prepare(Data(train=(jsonl([*rows, {"text": "hello world"}]),), sequence_length=64), make_tokenizer())
    examples = prepared.examples
    lengths, targets = (np.asarray([f(e) for e in examples]) for f in (lambda e: len(e.tokens), lambda e: e.targets))
    plan = plan_packing(lengths, targets, 64, 40)
    batches = batches_of(examples, plan, batch_size=4, accumulation=2)
    seen = sum(int((batches.batch(step).target_weights > 0).sum()) for step in range(batches.steps_for(1)))
    assert seen == plan.targets == prepared.counts.target_tokens > 0


def test_accumulation_changes_how_rows_are_cut_not_which_they_are():
    examples = some_examples()
    for step in (0, 3, 11):
        whole = flat(source(examples, 8, 1).batch(step))
        for accumulation in (2, 4, 8):
            for a, b in zip(whole, flat(source(examples, 8, accumulation).batch(step)), strict=True):
                np.testing.assert_array_equal(a, b)


def test_row_slices_put_together_are_the_whole_batch():
    batches = source(some_examples(), 8, 2)
    for step in (0, 5):
        whole = batches.batch(step)
        parts = [batches.batch(step, part) for part in (slice(0, 1), slice(1, 3), slice(3, 4))]
        for field in Batch._fields:
            together = np.concatenate([getattr(part, field) for part in parts], axis=1)
            np.testing.assert_array_equal(together, getattr(whole, field))


def test_a_batch_depends_on_seed_and_step_alone():
    examples = some_examples()
    one = source(examples)
    steps = [one.batch(step) for step in range(20)]
    for step in (17, 2, 9, 0, 19):  # another order, another object, as after a restart
        for a, b in zip(source(examples).batch(step), steps[step], strict=True):
            np.testing.assert_array_equal(a, b)
        for a, b in zip(one.batch(step), steps[step], strict=True):
            np.testing.assert_array_equal(a, b)
    assert not np.array_equal(source(examples, seed=2).batch(0).tokens, steps[0].tokens)
    assert one.state(3) == {}


def test_batches_straddle_epochs_and_epochs_differ_in_order():
    batches = source(some_examples(), batch_size=1)
    rows = batches.plan.rows
    epochs = [[batches.rows_of(step) for step in range(e * rows, (e + 1) * rows)] for e in (0, 1, 2)]
    assert epochs[0] != epochs[1] != epochs[2] and len({str(sorted(chain(*e))) for e in epochs}) == 1
    wide = source(some_examples(), batch_size=rows + 3)
    assert wide.rows_of(0) == list(chain(*epochs[0], *epochs[1][:3]))
    still = source(some_examples(), batch_size=rows, shuffle=False)
    assert still.rows_of(0) == still.rows_of(1)


def test_the_last_batch_of_a_run_is_padded_with_rows_of_weight_zero():
    examples = some_examples()
    rows = source(examples).plan.rows
    batches = source(examples, batch_size=rows - 1, total_rows=2 * rows)
    assert batches.steps_for(2) == 3 and batches.steps_for(1) == 2
    last = batches.batch(2)
    tokens, segments, *_, weights = flat(last)
    assert segments[:2].any(axis=1).all() and weights[:2].any(axis=1).all()
    assert not segments[2:].any() and not weights[2:].any() and not tokens[2:].any()
    seen = [where for step in range(3) for where in batches.rows_of(step)]
    assert sorted(seen) == sorted([e.where for e in examples] * 2)
    assert batches.rows_of(3) == []


def test_fewer_rows_than_one_batch_are_fine():
    examples = some_examples(2)
    batches = source(examples, batch_size=6)
    assert len(batches.rows_of(0)) >= 6 and batches.batch(0).tokens.shape == (1, 6, 32)


def test_rows_of_names_the_examples_of_a_step_in_order():
    examples = some_examples()
    batches = source(examples, 4, 2)
    named = [examples[int(where.split(":")[1]) - 1] for where in batches.rows_of(3)]
    assert [d[0] for d in documents_of(batches.batch(3))] == [tuple(e.tokens.tolist()) for e in named]


def test_evaluation_visits_every_example_once_in_plan_order():
    examples = some_examples()
    plan = source(examples).plan
    batches = batches_of(examples, plan, batch_size=4)
    seen = [where for step in range(batches.steps_for(1)) for where in batches.rows_of(step)]
    assert sorted(seen) == sorted(e.where for e in examples)
    assert batches.rows_of(batches.steps_for(1)) == []


def test_a_plan_of_other_data_and_an_indivisible_batch_are_refused():
    examples = some_examples()
    plan = source(examples).plan
    with pytest.raises(BadInput, match=r"plan is for 37 documents, .* 36"):
        Batches(examples[:36], plan, 0, 4)
    with pytest.raises(BadInput, match=r"batch_size 4 is not divisible by train\.accumulation 3"):
        Batches(examples, plan, 0, 4, 3)
