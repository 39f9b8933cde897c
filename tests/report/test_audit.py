"""The audit as it is looked at, from a report made by hand."""

import io
import re

import pytest
from rich.console import Console

from sft_jax.report.audit import MOST_TOKENS, audit_page, audit_tables

TOKENS = [("<b>", 5, 0.0), ("yes\n", 6, 1.0), ("", 7, 0.5), ("🙂", 8, 0.5)]


def _split(**found) -> dict:
    none = {"count": 0, "rows": []}
    about = {"rows": 2, "used": 1, "tokens": 4, "target_tokens": 3}
    counts = {
        **about, "bad_rows": 0, "left_out": 0, "dropped_over_length": 1, "truncated": 0, "split": 0,
        "dropped_no_target": 0, "empty_turns": 0, "null_rows": 0, "lossy": 0, "first_token_targets": 0,
        "unread": {},
        "by_format": {"messages": 2}, "by_source": {"a[b].jsonl": about},
    }  # fmt: skip
    of = dict.fromkeys(("min", "p10", "median", "p90", "p99", "max", "mean"), 4.0)
    of |= {"counts": [1], "edges": [3.5, 4.5]}
    return {
        "counts": counts, "faults": [{"reason": "9 tokens, limit 8", "count": 5, "rows": ["a[b].jsonl:2"] * 5}],
        "over_length": {"count": 5, "share": 0.25, "longest": 9, "keeps_99": 9}, "lengths": of,
        "targets": of, "duplicates": none, "repeated_prompts": none, "unstopped": none, **found,
    }  # fmt: skip


@pytest.fixture
def report() -> dict:
    document = {"row": "a[b].jsonl:1", "id": "one", "tokens": TOKENS}
    names = "tokens_per_row targets_per_row rows_per_step rows_per_epoch steps_per_epoch steps tokens_per_epoch"
    names += " targets_per_epoch padding_per_epoch token_fill target_fill tokens_per_step targets_per_step"
    packing = dict.fromkeys(names.split(), 1)
    twice = {"count": 30, "rows": [{"row": "a[b].jsonl:1", "same_as": "a[b].jsonl:0"}] * 20}
    return {
        "train": _split(duplicates=twice), "packing": packing, "examples": [document], "packed_rows": [[document]],
    }  # fmt: skip


def test_the_page_shows_every_token_and_colours_those_that_train(report):
    page = audit_page(report, "<audit>")
    shown = (
        '<span title="id 5">&lt;b&gt;</span><b title="id 6">yes<i>⏎</i>\n</b><b title="id 7, weight 0.5"><i>·</i></b>'
    )
    assert page.count(f'<div class="doc">{shown}<b title="id 8, weight 0.5">🙂</b></div>') == 2
    assert "<h1>&lt;audit&gt;</h1>" in page and "http" not in page and page.count("<svg") == 2
    assert (
        "<h3>a[b].jsonl:1 (one)</h3>" in page
        and "5 x 9 tokens, limit 8 (a[b].jsonl:2, a[b].jsonl:2, a[b].jsonl:2, ...)" in page
    )
    assert "30 duplicate rows" in page and "a[b].jsonl:1, same as a[b].jsonl:0" in page and "and 10 more" in page


def test_a_document_too_long_for_a_page_is_cut_in_the_middle_and_says_so(report):
    report["examples"][0]["tokens"] = [(f"{n} ", n, 0.0) for n in range(MOST_TOKENS + 1234)]
    page = audit_page(report, "audit")
    assert "… 1,234 tokens not shown …" in page and f">{MOST_TOKENS + 1233} </span></div>" in page
    assert page.count("<span title=") == 2 * MOST_TOKENS


def test_the_terminal_has_the_same_and_nothing_of_the_data_is_taken_for_markup(report):
    out = io.StringIO()
    Console(file=out, width=150, force_terminal=True, color_system="standard", soft_wrap=True).print(
        audit_tables(report)
    )
    text = re.sub(r"\x1b\[[\d;]*m", "", out.getvalue())
    assert "left out: 5 x 9 tokens, limit 8 (a[b].jsonl:2," in text and "2 messages" in text
    assert "duplicate rows: a[b].jsonl:1 (same as a[b].jsonl:0)" in text and "packing: 1 rows" in text
    assert text.endswith("a[b].jsonl:1 (one)\n<b>yes\n🙂\n")
    assert "\x1b[30;42myes" in out.getvalue() and "\x1b[30;42m<b>" not in out.getvalue()


def test_keys_that_nobody_reads_empty_turns_and_nulls_are_told_in_tables_and_on_the_page(report):
    counts = report["train"]["counts"]
    counts |= {"unread": {"lang": 3, "<source>": 120}, "empty_turns": 5, "null_rows": 7}
    out = io.StringIO()
    Console(file=out, width=200, soft_wrap=True).print(audit_tables(report))
    for shown in (out.getvalue(), audit_page(report, "audit").replace("&lt;", "<").replace("&gt;", ">")):
        assert "keys that no form reads: <source> (120 rows), lang (3 rows)" in shown
        assert "empty assistant turns, not trained" in shown
        assert "7 rows with nulls in tool calls" in shown and "sft_jax.data.forms.nulls:without_nulls" in shown
