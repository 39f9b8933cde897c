"""Preparation in memory: first tokens, over-length rows, rows without a target and bad rows are counted."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sft_jax.config import Data
from sft_jax.data.chat import render_process
from sft_jax.data.pack import prepare as module
from sft_jax.data.pack.prepare import Prepared, add, check_vocabulary, describe_counts, prepare
from sft_jax.errors import BadInput

ENDLESS = "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}"


def describe(prepared: Prepared, shown: int = 5) -> list[str]:
    return describe_counts(prepared.counts, prepared.dropped, shown)


ROWS = [
    {"prompt": "hello", "completion": " world", "id": "named"},
    {"text": "the capital of France"},
    {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Paris"}]},
]


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


BAD = [ROWS[0], {"prompt": "hello", "completion": ""}, {"query": "?"}, ROWS[1]]


def test_bad_rows_stop_the_preparation_or_are_left_out_and_counted_with_their_reasons(make_tokenizer, jsonl):
    path = jsonl(BAD)
    Path(path).write_text(Path(path).read_text() + "{\n")
    with pytest.raises(BadInput, match=r"demos.jsonl:2: completion is empty"):
        prepare(Data(train=(path,)), make_tokenizer())
    prepared = prepare(Data(train=(path,), bad_rows="skip"), make_tokenizer())
    assert (prepared.counts.rows, prepared.counts.used, prepared.counts.bad_rows) == (5, 2, 3)
    assert [row.where for row in prepared.dropped] == [f"{path}:{k}" for k in (2, 3, 5)]
    assert ["completion is empty" in row.reason for row in prepared.dropped] == [True, False, False]
    assert "keys found: query" in prepared.dropped[1].reason and "not valid JSON" in prepared.dropped[2].reason
    assert '3 bad rows skipped (data.bad_rows="skip")' in describe(prepared)


def test_what_is_wrong_with_the_whole_file_is_never_skipped(make_tokenizer, tmp_path: Path):
    (tmp_path / "a.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(BadInput, match="damaged or truncated"):
        prepare(Data(train=(str(tmp_path / "a.jsonl.gz"),), bad_rows="skip"), make_tokenizer())


def test_what_is_wrong_with_the_tokenizer_is_no_bad_row(make_tokenizer, jsonl):
    with pytest.raises(BadInput, match="no chat template"):
        prepare(Data(train=(jsonl(ROWS),), bad_rows="skip"), make_tokenizer(None))


def test_the_instances_of_a_seed_task_are_examples_of_one_line(make_tokenizer, jsonl):
    task = {"id": "s", "instruction": "a", "instances": [{"input": "", "output": "b"}, {"input": "", "output": "c"}]}
    prepared = prepare(Data(train=(jsonl([task]),)), make_tokenizer())
    assert [(e.id, e.line) for e in prepared.examples] == [("s", 1), ("s#2", 1)]


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
    with pytest.raises(
        BadInput, match=r"only.jsonl:1: no trained token .*the first of 2 rows, none of which has a trained token"
    ):
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


def test_a_long_text_is_split_without_losing_a_target(make_tokenizer, jsonl):
    text = "hello world " * 30
    path = jsonl([{"text": text}, {"prompt": "x " * 40, "completion": "y"}, {"text": "hello"}])
    whole = prepare(Data(train=(path,), sequence_length=512), make_tokenizer())
    prepared = prepare(Data(train=(path,), sequence_length=16, over_length="split"), make_tokenizer())
    counts = prepared.counts
    assert (counts.split, counts.dropped_over_length, counts.documents) == (1, 1, 3)
    pieces = [e for e in prepared.examples if e.line == 1]
    assert [e.id for e in pieces] == [f"{path}:1/{k}" for k in range(1, len(pieces) + 1)]
    assert all(len(e.tokens) <= 16 and e.weights[0] == 0 for e in pieces)
    joined = np.concatenate([pieces[0].tokens, *(e.tokens[1:] for e in pieces[1:])])
    np.testing.assert_array_equal(joined, whole.examples[0].tokens)
    assert sum(e.targets for e in pieces) == whole.examples[0].targets == len(joined) - 1
    for one, following in pairwise(pieces):
        assert one.tokens[-1] == following.tokens[0], "the context of the first target of a piece"


def test_a_conversation_that_the_template_refuses_is_a_bad_row(make_tokenizer, templates, jsonl):
    path = jsonl([{"messages": [{"role": "assistant", "content": "first"}]}, ROWS[0]])
    data = Data(train=(path,), bad_rows="skip")
    prepared = prepare(data, make_tokenizer(templates.NO_PROMPT))
    assert prepared.counts.bad_rows == 1 and "roles must alternate" in prepared.dropped[0].reason


def test_the_first_bad_row_is_the_one_that_is_named_whatever_is_wrong_with_the_next(
    make_tokenizer, templates, tmp_path, monkeypatch
):
    monkeypatch.setattr(module, "BLOCK_ROWS", 2)
    tokenizer = make_tokenizer("{% if messages[0].content == 'loop' %}" + ENDLESS + "{% endif %}" + templates.NO_PROMPT)
    good = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
    refused = '{"messages": [{"role": "assistant", "content": "first"}]}\n'
    endless, broken = good.replace('"a"', '"loop"'), "{\n"
    monkeypatch.setattr(render_process, "SECONDS", 0.5)
    for rows, said in (
        ([good, refused, broken, endless], ":2: the chat template fails on this"),
        ([good, good, refused, endless], ":3: the chat template fails on this"),
        ([good, endless, refused, broken], ":2: the chat template .* does not finish"),
        ([good, broken, endless, refused], ":2:2: not valid JSON"),
    ):
        (tmp_path / "a.jsonl").write_text("".join(rows))
        with pytest.raises(BadInput, match=said):
            prepare(Data(train=(str(tmp_path / "a.jsonl"),)), tokenizer)


def test_examples_do_not_depend_on_how_the_rows_are_cut_into_blocks(make_tokenizer, jsonl, monkeypatch):
    rows = [{"messages": [{"role": "user", "content": f"say {k}"}, {"role": "assistant", "content": "x" * k}]} for k in
            range(1, 20)]  # fmt: skip
    data = Data(train=(jsonl([row for pair in zip(rows, ROWS * 9, strict=False) for row in pair]),))
    whole = prepare(data, make_tokenizer())
    for size in (1, 4, 5):
        monkeypatch.setattr(module, "BLOCK_ROWS", size)
        again = prepare(data, make_tokenizer())
        assert again.counts == whole.counts
        for one, other in zip(again.examples, whole.examples, strict=True):
            assert one.where == other.where
            np.testing.assert_array_equal(one.tokens, other.tokens)
            np.testing.assert_array_equal(one.weights, other.weights)


def test_rows_that_a_function_leaves_out_are_counted(make_tokenizer, jsonl, tmp_path):
    (tmp_path / "mine.py").write_text("def f(record):\n    return record if 'prompt' in record else None\n")
    data = Data(train=(jsonl(ROWS),), function=f"{tmp_path / 'mine.py'}:f")
    prepared = prepare(data, make_tokenizer())
    assert (prepared.counts.rows, prepared.counts.used, prepared.counts.left_out) == (3, 1, 2)
    assert "2 rows left out by data.function" in describe(prepared)


def test_the_account_is_kept_by_source_and_adds_up(make_tokenizer, jsonl):
    paths = jsonl(ROWS, "a.jsonl"), jsonl([*LONG, ROWS[0]], "b.jsonl")
    whole = prepare(Data(train=paths, sequence_length=16), make_tokenizer())
    parts = [prepare(Data(train=(path,), sequence_length=16), make_tokenizer()).counts for path in paths]
    assert add(parts) == whole.counts
    assert [whole.counts.by_source[path]["rows"] for path in paths] == [3, 4]
    assert sum(about["tokens"] for about in whole.counts.by_source.values()) == whole.counts.tokens


USER, REPLY = ({"role": role, "content": role} for role in ("user", "assistant"))
SILENT = {"role": "assistant", "content": ""}


def test_empty_turns_are_counted_and_a_row_of_nothing_else_is_dropped(make_tokenizer, jsonl):
    tokenizer = make_tokenizer()
    path = jsonl([{"messages": [USER, SILENT, USER, REPLY]}, {"messages": [USER, SILENT]}, {"messages": [USER, REPLY]}])
    prepared = prepare(Data(train=(path,)), tokenizer)
    assert (prepared.counts.used, prepared.counts.empty_turns, prepared.counts.dropped_no_target) == (2, 2, 1)
    first = prepared.examples[0]
    talk = [USER, {**SILENT, "weight": 0}, USER, REPLY]
    assert first.tokens.tolist() == tokenizer.apply_chat_template(talk, return_dict=False)
    assert tokenizer.decode(first.tokens[first.weights > 0]) == "assistant<|im_end|>", "not the empty turn's stop token"
    [dropped] = prepared.dropped
    assert dropped.where == f"{path}:2" and dropped.reason == "no trained token (an empty assistant turn)"
    assert "2 empty assistant turns, not trained" in describe(prepared)


def test_keys_that_no_form_reads_are_counted(make_tokenizer, jsonl):
    rows = [{"messages": [USER, REPLY], "source": "web", "lang": "en"}, {"text": "a", "source": "book", "lang": None}]
    prepared = prepare(Data(train=(jsonl(rows),)), make_tokenizer())
    assert prepared.counts.unread == {"source": 2, "lang": 1}
    assert "keys that no form reads: source (2 rows), lang (1 rows)" in describe(prepared)
    assert add([prepared.counts, prepared.counts]).unread == {"source": 4, "lang": 2}


def test_columns_that_are_not_read_are_counted_as_keys(make_tokenizer, tmp_path: Path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a", "b"], "image": [b"\xff", b"\xfe"]}), path)
    prepared = prepare(Data(train=(str(path),)), make_tokenizer())
    assert prepared.counts.used == 2 and prepared.counts.unread == {"image": 2}
    (tmp_path / "mine.py").write_text("def f(row): return {'text': row['text'] + row['image'].hex(), 'more': 1}")
    prepared = prepare(Data(train=(str(path),), function=f"{tmp_path}/mine.py:f"), make_tokenizer())
    assert prepared.counts.used == 2 and prepared.counts.unread == {"more": 2}


THINKS = """{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.role == 'assistant' %}<think></think>{% endif %}{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{{ '<think></think>' if enable_thinking is defined and not enable_thinking else '' }}{% endif %}"""


def test_a_rows_values_for_the_template_decide_what_trains_and_unknown_ones_are_counted(make_tokenizer, jsonl):
    tokenizer = make_tokenizer(THINKS)
    given = ({}, {"enable_thinking": False}, {"enable_thinking": True, "enable_thinkng": False})
    rows = [{"messages": [USER, REPLY], "chat_template_kwargs": kwargs} for kwargs in given]
    for run, expected in (((), [1, 0, 1]), (("enable_thinking=false",), [0, 0, 1])):
        prepared = prepare(Data(train=(jsonl(rows),), template_kwargs=run), tokenizer)
        trained = [tokenizer.decode(e.tokens[e.weights > 0]) for e in prepared.examples]
        assert trained == [f"{'<think></think>' * thinks}assistant<|im_end|>" for thinks in expected]
        assert prepared.counts.unread == {"chat_template_kwargs.enable_thinkng": 1}


def test_nulls_in_tool_calls_are_counted_with_the_cure(make_tokenizer, jsonl):
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1, "y": None}}}
    calls = [USER, {"role": "assistant", "content": "", "tool_calls": [call]}]
    path = jsonl([{"messages": calls}, {"messages": [USER, REPLY]}])
    prepared = prepare(Data(train=(path,)), make_tokenizer())
    assert prepared.counts.null_rows == 1
    assert any(
        line.startswith("1 rows with nulls in tool calls") and "without_nulls" in line for line in describe(prepared)
    )
    cured = prepare(Data(train=(path,), function="sft_jax.data.forms.nulls:without_nulls"), make_tokenizer())
    assert cured.counts.null_rows == 0 and "null" not in make_tokenizer().decode(cured.examples[0].tokens)


def test_a_list_of_bad_rows_and_a_refused_file_say_the_path_once_and_fit_three_lines(make_tokenizer, tmp_path: Path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"query": 1}\n{"question": "a", "answer": 42}\n{"text": }\n')
    with pytest.raises(BadInput) as caught:
        prepare(Data(train=(str(path),), bad_rows="skip"), make_tokenizer())
    message = str(caught.value)
    assert message.count(str(path)) == 1 and message.startswith(f"{path}:1: bad row: keys found")
    assert len(message) - len(str(path)) <= 300, message
    path.write_text(path.read_text() + json.dumps({"text": "a"}) + "\n")
    lines = describe(prepare(Data(train=(str(path),), bad_rows="skip"), make_tokenizer()))
    listed = [line for line in lines if str(path) in line]
    assert len(listed) == 3 and all(line.count(str(path)) == 1 for line in listed)
    assert "bad row: column 10: not valid JSON" in listed[2]
    other = tmp_path / "other.jsonl"
    other.write_text('{"text": ""}\n')
    with pytest.raises(
        BadInput, match=rf"^{other}:1: bad row: text is empty.*first of 4 rows of 2 files, none of which"
    ):
        path.write_text('{"query": 1}\n' * 3)
        prepare(Data(train=(str(other), str(path)), bad_rows="skip"), make_tokenizer())
