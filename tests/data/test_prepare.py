"""Preparation: first tokens, over-length rows and rows without a target are counted; the cache between processes."""

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sft_jax.config import Data
from sft_jax.data import prepare as module
from sft_jax.data.prepare import Prepared, check_vocabulary, describe, fingerprint, prepare, prepare_cached
from sft_jax.errors import BadInput

ROWS = [
    {"prompt": "hello", "completion": " world", "id": "named"},
    {"text": "the capital of France"},
    {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Paris"}]},
]


def same(a: Prepared, b: Prepared) -> bool:
    return (
        a.counts == b.counts
        and a.dropped == b.dropped
        and [(e.id, e.source, e.line) for e in a.examples] == [(e.id, e.source, e.line) for e in b.examples]
        and fingerprint(a.examples) == fingerprint(b.examples)
    )


def test_rows_of_every_format_are_counted_and_keep_their_provenance(make_tokenizer, jsonl):
    path = jsonl(ROWS)
    prepared = prepare(Data(train=(path,)), make_tokenizer())
    counts = prepared.counts
    assert (counts.rows, counts.used) == (3, 3)
    assert counts.by_format == {"prompt_completion": 1, "text": 1, "messages": 1}
    assert [e.id for e in prepared.examples] == ["named", f"{path}:2", f"{path}:3"]
    assert [e.where for e in prepared.examples] == [f"{path}:{k}" for k in (1, 2, 3)]
    assert counts.tokens == sum(len(e.tokens) for e in prepared.examples)
    assert counts.target_tokens == sum(e.targets for e in prepared.examples)
    assert all(e.tokens.dtype == np.int32 and e.weights.dtype == np.float32 for e in prepared.examples)


def test_the_first_token_of_a_document_is_never_a_target_and_is_counted(make_tokenizer, jsonl):
    prepared = prepare(Data(train=(jsonl([*ROWS, {"prompt": "", "completion": "hello world"}]),)), make_tokenizer())
    assert all(e.weights[0] == 0 for e in prepared.examples)
    assert prepared.counts.first_token_targets == 2, "the text row and the row with an empty prompt"
    assert prepared.examples[1].targets == len(prepared.examples[1].tokens) - 1
    assert any("first token would train" in line for line in describe(prepared))


LONG = [{"prompt": "hello", "completion": " world" * 30}, {"prompt": "x " * 40, "completion": "y"}, ROWS[0]]


def test_over_length_rows_are_dropped_and_named(make_tokenizer, jsonl):
    path = jsonl(LONG)
    prepared = prepare(Data(train=(path,), sequence_length=16), make_tokenizer())
    counts = prepared.counts
    assert (counts.rows, counts.used, counts.dropped_over_length, counts.truncated) == (3, 1, 2, 0)
    assert [(row.where, row.reason) for row in prepared.dropped] == [
        (f"{path}:1", "32 tokens, limit 16"),
        (f"{path}:2", f"{len(make_tokenizer()('x ' * 40 + 'y').input_ids) + 1} tokens, limit 16"),
    ]


def test_over_length_rows_are_truncated_and_those_left_without_a_target_dropped(make_tokenizer, jsonl):
    path = jsonl(LONG)
    prepared = prepare(Data(train=(path,), sequence_length=16, over_length="truncate"), make_tokenizer())
    counts = prepared.counts
    assert (counts.rows, counts.used, counts.dropped_over_length) == (3, 2, 0)
    assert (counts.truncated, counts.dropped_no_target) == (1, 1)
    assert len(prepared.examples[0].tokens) == 16 and prepared.examples[0].weights[1:].all()
    (row,) = prepared.dropped
    assert row.where == f"{path}:2" and "none of its 2 trained tokens is among the first 16" in row.reason


def test_an_over_length_row_is_an_error_where_the_policy_says_so(make_tokenizer, jsonl):
    path = jsonl([ROWS[0], {"prompt": "hello", "completion": " world" * 2000}])
    with pytest.raises(BadInput) as caught:
        prepare(Data(train=(path,), over_length="error"), make_tokenizer())
    assert str(caught.value) == (
        f'row 2 of {path}: 2,002 tokens, limit 1,024. Set data.over_length="truncate" or raise data.sequence_length.'
    )


def test_a_row_without_a_target_is_dropped_and_a_data_set_of_them_refused(make_tokenizer, jsonl):
    silent = {"messages": [{"role": "user", "content": "hi"}]}
    path = jsonl([silent, ROWS[0], silent])
    prepared = prepare(Data(train=(path,)), make_tokenizer())
    assert (prepared.counts.used, prepared.counts.dropped_no_target) == (1, 2)
    assert prepared.dropped[0].where == f"{path}:1" and "no trained token" in prepared.dropped[0].reason
    with pytest.raises(BadInput, match=r"no trained token in any of its 2 rows. .*only.jsonl:1: no trained token"):
        prepare(Data(train=(jsonl([silent, silent], "only.jsonl"),)), make_tokenizer())


def test_the_account_adds_up_and_is_told(make_tokenizer, jsonl):
    silent = {"messages": [{"role": "user", "content": "hi"}]}
    prepared = prepare(Data(train=(jsonl([*LONG, silent] * 3),), sequence_length=16), make_tokenizer())
    counts = prepared.counts
    assert counts.rows == counts.used + counts.dropped_over_length + counts.dropped_no_target == 12
    lines = describe(prepared, shown=2)
    assert lines[0].startswith("12 rows (3 messages, 9 prompt_completion): 3 used")
    assert "6 rows dropped: longer than data.sequence_length" in lines
    assert lines[-1] == "  and 7 more" and ":1: 32 tokens, limit 16" in lines[-3]


def test_the_fingerprint_sees_tokens_weights_and_order(make_tokenizer, jsonl):
    examples = list(prepare(Data(train=(jsonl(ROWS),)), make_tokenizer()).examples)
    changed = replace(examples[0], weights=examples[0].weights * 2)
    prints = {fingerprint(examples), fingerprint(examples[::-1]), fingerprint(examples[:2]), fingerprint([changed])}
    assert len(prints) == 4
    assert fingerprint(examples) == fingerprint([replace(e, id="other") for e in examples])


def test_the_first_process_prepares_and_the_others_read_the_same(make_tokenizer, jsonl, tmp_path: Path, monkeypatch):
    data = Data(train=(jsonl([*ROWS, *LONG]),), sequence_length=16)
    got: dict[bool, Prepared] = {}

    def start(first: bool) -> threading.Thread:
        def work() -> None:
            got[first] = prepare_cached(data, make_tokenizer(), tmp_path / "cache", first, 20)

        thread = threading.Thread(target=work)
        thread.start()
        return thread

    waiting = start(False)
    time.sleep(0.2)
    assert not got
    start(True).join()
    waiting.join()
    assert same(got[True], got[False]) and same(got[True], prepare(data, make_tokenizer()))
    assert [p.suffix for p in (tmp_path / "cache").iterdir()] == [".npz"], "nothing half-written stays behind"
    monkeypatch.setattr(module, "prepare", lambda *_: pytest.fail("prepared again"))
    assert same(prepare_cached(data, make_tokenizer(), tmp_path / "cache", True, 1), got[True])


def test_the_cache_is_another_for_other_data_settings_or_tokenizer(make_tokenizer, jsonl, templates, tmp_path: Path):
    path = jsonl(ROWS)

    def files(data: Data, tokenizer: Any) -> int:
        prepare_cached(data, tokenizer, tmp_path / "cache", True, 1)
        return len(list((tmp_path / "cache").iterdir()))

    data = Data(train=(path,))
    assert files(data, make_tokenizer()) == 1
    assert files(replace(data, packing="none", shuffle=False), make_tokenizer()) == 1
    assert files(replace(data, train_on="all"), make_tokenizer()) == 2
    assert files(replace(data, sequence_length=64), make_tokenizer()) == 3
    assert files(data, make_tokenizer(templates.DROPS_CALLS)) == 4
    jsonl(ROWS[:2])
    assert files(data, make_tokenizer()) == 5


def test_waiting_ends_at_the_deadline_and_names_the_file(make_tokenizer, jsonl, tmp_path: Path):
    with pytest.raises(RuntimeError, match=r"cache/[0-9a-f]{32}\.npz: .* within 0.3 s"):
        prepare_cached(Data(train=(jsonl(ROWS),)), make_tokenizer(), tmp_path / "cache", False, 0.3)


def test_the_first_process_tells_the_others_why_it_refused(make_tokenizer, jsonl, tmp_path: Path):
    path = jsonl([{"messages": [{"role": "robot", "content": "x"}]}])
    data = Data(train=(path,))
    for first in (True, False):
        with pytest.raises(BadInput, match="robot"):
            prepare_cached(data, make_tokenizer(), tmp_path / "cache", first, 0.3)
    # The refusal belongs to this content: mended data is another key.
    jsonl(ROWS)
    assert prepare_cached(data, make_tokenizer(), tmp_path / "cache", True, 1).examples


def test_ids_that_the_model_has_no_embedding_for_are_refused(make_tokenizer, jsonl):
    tokenizer = make_tokenizer()
    path = jsonl(ROWS)
    examples = prepare(Data(train=(path,)), tokenizer).examples
    highest = max(int(example.tokens.max()) for example in examples)
    check_vocabulary(examples, highest + 1, "m")
    with pytest.raises(BadInput, match=rf"demos\.jsonl:\d: the tokenizer gives id {highest}, but m has {highest} emb"):
        check_vocabulary(examples, highest, "m")


def test_rows_without_a_target_are_kept_where_they_are_wanted(make_tokenizer, jsonl):
    rows = [*ROWS, {"messages": [{"role": "user", "content": "hello"}]}]
    prepared = prepare(Data(train=(jsonl(rows),)), make_tokenizer(), keep_untrained=True)
    assert len(prepared.examples) == 4 and not prepared.examples[3].weights.any()
