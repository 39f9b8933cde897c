"""What the audit finds, on rows where it is known."""

from pathlib import Path

import numpy as np
import pytest

from sft_jax.config import Data
from sft_jax.data.audit import (
    audit_split,
    distribution,
    faults_of,
    over_length_of,
    overlap,
    packing_of,
    pieces,
    refusals,
    shown_examples,
    shown_rows,
)
from sft_jax.data.pack.batches import Batches
from sft_jax.data.pack.dataset import account, open_entry, prepare_entry
from sft_jax.data.pack.packing import plan_packing
from sft_jax.data.pack.prepare import Counts, Dropped
from sft_jax.data.pack.store import Example, Joined
from sft_jax.storage.location import Location

TALK = [{"role": "user", "content": "the capital of France"}, {"role": "assistant", "content": "Paris"}]
ROWS = [
    {"messages": TALK},
    {"messages": TALK},
    {"messages": [TALK[0], {"role": "assistant", "content": "Rome"}]},
    {"prompt": "hello", "completion": " world"},
    {"prompt": "x " * 40, "completion": "y"},
]


@pytest.fixture
def store(make_tokenizer, jsonl, tmp_path: Path):
    def make(rows, name="demos.jsonl", **settings):
        path, place = jsonl(rows, name), Location(tmp_path / "c")
        data, tokenizer = Data(train=(path,), sequence_length=32, **settings), make_tokenizer()
        return open_entry(data, tokenizer, path, place, prepare_entry(data, tokenizer, path, place))

    return make


def test_duplicates_repeated_prompts_and_dropped_rows_are_named(store, make_tokenizer):
    report, _ = audit_split([store(ROWS)], {make_tokenizer().eos_token_id}, 32)
    assert report["counts"]["rows"] == 5 and report["counts"]["used"] == 4
    (same,) = report["duplicates"]["rows"]
    assert same["row"].endswith(":2") and same["same_as"].endswith(":1")
    (prompt,) = report["repeated_prompts"]["rows"]
    assert prompt["row"].endswith(":3") and prompt["same_as"].endswith(":1")
    (dropped,) = report["dropped"]
    assert dropped["row"].endswith(":5") and "limit 32" in dropped["reason"]
    assert sum(report["lengths"]["counts"]) == 4 and report["unstopped"]["count"] == 0
    (about,) = report["counts"]["by_source"].values()
    assert about["rows"] == 5 and about["used"] == 4


def test_faults_that_differ_in_their_values_alone_are_one_kind():
    rows = [
        Dropped("a:1", "9 tokens, limit 8"),
        Dropped("a:2", "bad row: unknown role 'x'"),
        *(Dropped(f"b:{line}", f"bad row: unknown role 'y{line}'") for line in range(1, 7)),
    ]
    counts = Counts(bad_rows=7, dropped_over_length=1)
    worst, other = faults_of(rows, counts)
    assert worst == {"reason": "bad row: unknown role 'x'", "count": 7, "rows": ["a:2", "b:1", "b:2", "b:3", "b:4"]}
    assert other["count"] == 1
    assert faults_of(rows[:1], counts)[-1] == {"reason": "more rows dropped, reasons not kept", "count": 7, "rows": []}


@pytest.mark.parametrize(
    ("over", "documents", "keeps_99"),
    [
        ({"100": 3}, 100, 100),  # one of a hundred may be too long, not three
        ({"100": 1, "90": 1, "80": 1}, 100, 90),
        ({"100": 3}, 300, 64),  # 1 % of 300 are 3: nothing need change
        ({"70": 2, "500": 1}, 200, 70),
    ],
)
def test_the_length_that_keeps_99_percent_is_named(over, documents, keeps_99):
    found = over_length_of(Counts(documents=documents, over_length=over), limit=64)
    assert found["keeps_99"] == keeps_99 and found["count"] == sum(over.values())
    assert found["share"] == found["count"] / documents and found["longest"] == max(map(int, over))
    assert over_length_of(Counts(documents=documents), 64) is None


@pytest.mark.parametrize("policy", ["drop", "truncate", "split"])
def test_lengths_beyond_the_limit_are_remembered_under_every_policy(store, policy):
    counts, _ = account([store([*ROWS, {"text": "x " * 60}], over_length=policy)])
    assert counts.over_length == {"82": 1, "121": 1}


def test_what_a_run_would_refuse_is_said(store):
    bad = [{"messages": [{"role": "nobody", "content": "x"}]}, *ROWS]
    report, _ = audit_split([store(bad, bad_rows="skip")], set(), 32)
    assert [fault["count"] for fault in report["faults"]] == [1, 1]
    strict, lenient = Data(over_length="error"), Data(bad_rows="skip")
    assert len(refusals(strict, [report])) == 2 and refusals(lenient, [report]) == []
    assert "1 rows cannot be used" in refusals(Data(), [report])[0]


def test_a_trained_turn_that_no_stop_token_ends_is_found(store, make_tokenizer):
    eos = make_tokenizer().eos_token_id
    cut = store(ROWS[4:] + ROWS[:1], over_length="truncate", train_on="all")
    report, _ = audit_split([cut], {eos}, 32)
    assert report["unstopped"]["count"] == 2, "the truncated row, and the newline after the last stop token"
    report, _ = audit_split([store(ROWS[:1])], {eos + 1}, 32)
    assert report["unstopped"]["count"] == 1, "the template's stop token does not end generation"


def test_held_out_rows_that_were_trained_on_are_found(store, make_tokenizer):
    _, digests = audit_split([store(ROWS[:1])], set(), 32)
    held_out = [ROWS[0], ROWS[2], {"prompt": "hello", "completion": " world"}]
    found = overlap(digests, [store(held_out, "held_out.jsonl")])
    assert [row.rsplit("/", 1)[1] for row in found["examples"]["rows"]] == ["held_out.jsonl:1"]
    assert [row.rsplit("/", 1)[1] for row in found["prompts"]["rows"]] == ["held_out.jsonl:2"]


def test_tokens_are_shown_with_id_weight_and_whole_characters(store, make_tokenizer):
    tokenizer = make_tokenizer()
    one = store([{"prompt": "世", "completion": "🙂 ok"}])[0]
    shown = pieces(one, tokenizer)
    assert "".join(text for text, _, _ in shown) == "世🙂 ok<|im_end|>"
    assert [token for _, token, _ in shown] == one.tokens.tolist()
    assert [weight for _, _, weight in shown] == one.weights.tolist()


def test_examples_are_spread_over_the_data_and_rows_are_those_of_the_run(store, make_tokenizer):
    data = store([{"prompt": f"question {i}", "completion": " a"} for i in range(9)])
    assert [e["row"].rsplit(":", 1)[1] for e in shown_examples([data], make_tokenizer(), 3)] == ["1", "5", "9"]
    assert len(shown_examples([data], make_tokenizer(), 50)) == 9
    source = Batches(Joined([data]), plan_packing(data.lengths, data.targets, 32, 32), 0, 2)
    rows = shown_rows(source, make_tokenizer(), 2)
    assert [[d["row"] for d in row] for row in rows] == [[e.where for e in source.documents_of(k)] for k in range(2)]
    packing = packing_of(source, 7)
    assert packing["tokens_per_epoch"] == data.lengths.sum()
    assert packing["tokens_per_epoch"] + packing["padding_per_epoch"] == source.plan.rows * 32
    assert packing["steps"] == 7 and packing["steps_per_epoch"] == -(-source.plan.rows // 2)


def test_a_distribution_counts_every_value():
    found = distribution(np.array([3, 3, 4, 10]))
    assert sum(found["counts"]) == 4 and (found["min"], found["median"], found["max"]) == (3, 3.5, 10)
    assert distribution(np.array([5, 5]))["counts"] == [2]


def test_runs_end_where_the_next_token_does_not_train():
    from sft_jax.data.audit import run_ends

    weights = np.array([0, 1, 1, 0, 0.5, 1], np.float32)
    assert run_ends(Example("x", "y", 1, np.arange(6, dtype=np.int32), weights)).tolist() == [2, 5]
