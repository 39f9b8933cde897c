"""Streamed data: every row once an epoch, the same targets as prepared data, exact resume, any number of processes."""

import gc
import json
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sft_jax.config import Data
from sft_jax.data.pack.batches import Batch
from sft_jax.data.pack.prepare import prepare
from sft_jax.data.pack.streaming import AHEAD, Streamed
from sft_jax.errors import BadInput

ROWS = [{"prompt": f"question {i} " * (1 + i % 3), "completion": f" answer {i}", "id": f"{i}"} for i in range(40)]


def documents(batch: Batch) -> list[tuple[list[int], list[tuple[int, int, float]]]]:
    """Every document of a batch: its tokens, and (place in the document, token, weight) of every target."""
    found = []
    for row in np.ndindex(batch.tokens.shape[:2]):
        tokens, segments, positions = batch.tokens[row], batch.segment_ids[row], batch.positions[row]
        for segment in range(1, segments.max(initial=0) + 1):
            places = np.flatnonzero(segments == segment)
            assert np.array_equal(positions[places], np.arange(len(places)))
            inside = np.isin(batch.target_index[row], places) & (batch.target_weights[row] > 0)
            index = (batch.target_index[row][inside] - places[0] + 1).tolist()
            values = zip(index, batch.target_tokens[row][inside], batch.target_weights[row][inside], strict=True)
            found.append((tokens[places].tolist(), [(i, int(t), float(w)) for i, t, w in values]))
    return found


@pytest.fixture
def streamed(make_tokenizer, jsonl):
    path = jsonl(ROWS)

    def make(batch_size: int = 4, accumulation: int = 1, **settings: Any) -> Streamed:
        data = replace(Data(train=(path,), sequence_length=64, streaming=True), **settings)
        return Streamed(data, make_tokenizer(), 10_000, 0, batch_size, accumulation)

    return make


def test_every_document_comes_once_an_epoch_with_the_targets_of_prepared_data(streamed, make_tokenizer, jsonl):
    source = streamed(shuffle=False)  # the window of a shuffle holds many epochs of so few rows
    wanted = {}
    for e in prepare(Data(train=(jsonl(ROWS),), sequence_length=64), make_tokenizer()).examples:
        targets = [(int(i), int(e.tokens[i]), float(e.weights[i])) for i in np.flatnonzero(e.weights)]
        wanted[tuple(e.tokens.tolist())] = targets
    seen: Counter[tuple[int, ...]] = Counter()
    for step in range(30):
        for tokens, targets in documents(source.batch(step)):
            assert wanted[tuple(tokens)] == targets
            seen[tuple(tokens)] += 1
    assert len(seen) == 40 and max(seen.values()) - min(seen.values()) <= 2, "an epoch ends before the next begins"


@pytest.mark.parametrize("shuffle", [True, False])
def test_going_on_after_a_saved_state_gives_the_very_same_batches(streamed, shuffle: bool):
    whole = streamed(batch_size=8, accumulation=2, streams=2, shuffle=shuffle)
    expected = [whole.batch(step) for step in range(12)]
    for stop in (1, 5, 9):
        first = streamed(batch_size=8, accumulation=2, streams=2, shuffle=shuffle)
        for step in range(stop + 1):  # one batch is made ahead of the step that is saved
            first.batch(step)
        state = json.loads(json.dumps(first.state(stop)))
        second = streamed(batch_size=8, accumulation=2, streams=2, shuffle=shuffle)
        second.restore(state, stop)
        for step in range(stop, 12):
            for a, b in zip(second.batch(step), expected[step], strict=True):
                np.testing.assert_array_equal(a, b)


def test_processes_that_hold_whole_streams_read_what_one_process_reads(streamed):
    whole, left, right = (streamed(batch_size=8, accumulation=2, streams=2) for _ in range(3))
    for step in range(5):
        batch = whole.batch(step)
        for source, share in ((left, slice(0, 2)), (right, slice(2, 4))):
            for a, b in zip(source.batch(step, share), batch, strict=True):
                np.testing.assert_array_equal(a, b[:, share])
    assert sorted({**left.state(5), **right.state(5)}) == ["0", "1"]
    assert {**left.state(5), **right.state(5)} == whole.state(5)
    with pytest.raises(BadInput, match=r"set data\.streams to a multiple of the number of processes"):
        streamed(batch_size=8, accumulation=2, streams=2).batch(0, slice(0, 1))


def test_the_order_is_shuffled_within_a_window_unless_told_not_to(streamed):
    def order(source: Streamed) -> list[int]:
        found = []
        for step in range(6):
            source.batch(step)
            found += [int(where.rsplit(":", 1)[1]) for where in source.rows_of(step)]
        return found[:20]

    assert order(streamed(shuffle=False)) != order(streamed()) and order(streamed()) == order(streamed())


def test_bad_rows_stop_it_and_more_streams_than_rows_are_refused(streamed, jsonl):
    jsonl([*ROWS[:5], {"messages": [{"role": "robot", "content": "x"}]}])
    with pytest.raises(BadInput, match="robot"):
        source = streamed()
        for step in range(9):
            source.batch(step)
    jsonl(ROWS[:1])
    with pytest.raises(BadInput, match=r"no rows for stream 1 of 2\. Lower data\.streams"):
        streamed(streams=2).batch(0)
    with pytest.raises(BadInput, match=r"data\.streams 3 does not divide the 4 rows"):
        streamed(streams=3)


def test_documents_are_encoded_ahead_of_the_batches_in_threads_that_end_when_it_is_closed(streamed):
    gc.collect()  # sources of other tests end theirs
    source = streamed(streams=2)
    source.batch(0)
    end = time.monotonic() + 20
    while sum(encode.counts.used for encode in source._encoders) < 2 * AHEAD and time.monotonic() < end:
        time.sleep(0.05)
    assert sum(encode.counts.used for encode in source._encoders) >= 2 * AHEAD
    assert len(prefetching()) == 2
    source.close()
    assert not prefetching()


def prefetching() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("grain-thread-prefetch")]


def test_documents_beyond_the_target_capacity_are_refused(streamed):
    with pytest.raises(BadInput, match=r"trained tokens, a row holds 2 \(data\.target_capacity\)"):
        streamed(target_capacity=2).batch(0)


def test_steps_come_in_order_and_other_streams_are_another_state(streamed):
    source = streamed()
    source.batch(0)
    with pytest.raises(RuntimeError, match="expected step 1, got 3"):
        source.batch(3)
    with pytest.raises(BadInput, match=r"the checkpoint has the streams \['0'\], but data\.streams is 2"):
        streamed(streams=2).restore(source.state(1), 1)


def test_several_files_are_read_one_after_the_other_and_skipped_whole_on_resume(make_tokenizer, jsonl, tmp_path: Path):
    for k in range(4):
        jsonl(ROWS[k * 10 : (k + 1) * 10], f"part{k}.jsonl")
    data = Data(train=(str(tmp_path / "part*.jsonl"),), sequence_length=64, shuffle=False, streaming=True)

    def make() -> Streamed:
        return Streamed(data, make_tokenizer(), 10_000, 0, 4)

    whole = make()
    expected = [whole.batch(step) for step in range(8)]
    second = make()
    second.restore(whole.state(6), 6)
    np.testing.assert_array_equal(second.batch(6).tokens, expected[6].tokens)
