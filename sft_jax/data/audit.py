"""Audits a dataset: its contents and what trains, as JSON for scripts and the report page."""

import dataclasses
import hashlib
import re
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from sft_jax.config import Data
from sft_jax.data.pack.batches import Batches
from sft_jax.data.pack.dataset import account
from sft_jax.data.pack.mixture import Mixture
from sft_jax.data.pack.prepare import Counts, Dropped
from sft_jax.data.pack.store import Example, Joined, Store

LISTED = 20
"""Maximum number of rows listed per kind; the counts are always complete."""
BINS = 24


def audit_split(
    stores: Sequence[Store], stop_ids: Collection[int], limit: int
) -> tuple[dict[str, Any], dict[str, set[bytes]]]:
    """The audit of one split, and the digests for `overlap`.

    Args:
      stop_ids: token ids that end generation.
      limit: data.sequence_length.

    Returns:
      JSON: `counts` (`prepare.Counts`), `dropped` (row, reason), `faults` (see `faults_of`), `over_length` (see
      `over_length_of`), `lengths` and `targets` (quantiles, histogram), `duplicates` (same tokens and weights),
      `repeated_prompts` (same tokens up to the first trained one, different continuation) and `unstopped` (a run of
      trained tokens that does not end with a stop token).
    """
    examples = Joined(stores)
    counts, dropped = account(stores)
    whole: dict[bytes, str] = {}
    prompts: dict[bytes, str] = {}
    duplicates, repeated, unstopped = [], [], []
    for example in examples:
        digest, prompt = _digest(example.tokens, example.weights), _digest(prompt_of(example))
        if digest in whole:
            duplicates.append({"row": example.where, "same_as": whole[digest]})
        elif len(prompt_of(example)) and prompt in prompts:
            repeated.append({"row": example.where, "same_as": prompts[prompt]})
        whole.setdefault(digest, example.where)
        prompts.setdefault(prompt, example.where)
        ends = run_ends(example)
        if not all(int(token) in stop_ids for token in example.tokens[ends]):
            unstopped.append(example.where)
    report = {
        "counts": dataclasses.asdict(counts),
        "dropped": [{"row": row.where, "reason": row.reason} for row in dropped[:LISTED]],
        "faults": faults_of(dropped, counts),
        "over_length": over_length_of(counts, limit),
        "lengths": distribution(examples.lengths),
        "targets": distribution(examples.targets),
        "duplicates": {"count": len(duplicates), "rows": duplicates[:LISTED]},
        "repeated_prompts": {"count": len(repeated), "rows": repeated[:LISTED]},
        "unstopped": {"count": len(unstopped), "rows": unstopped[:LISTED]},
    }
    return report, {"examples": set(whole), "prompts": set(prompts)}


def faults_of(dropped: Sequence[Dropped], counts: Counts) -> list[dict[str, Any]]:
    """Why rows were dropped, most frequent first: `reason` of the first such row, `count`, `rows`.

    Reasons that differ only in numbers and quoted values are grouped. Datasets remember a limited number of dropped
    rows; the last entry counts the others.
    """
    kinds: dict[str, list[Dropped]] = {}
    for row in dropped:
        kinds.setdefault(_VALUES.sub("", row.reason), []).append(row)
    found = sorted(kinds.values(), key=len, reverse=True)
    faults: list[dict[str, Any]] = [
        {"reason": rows[0].reason, "count": len(rows), "rows": [row.where for row in rows[:5]]} for rows in found
    ]
    others = counts.bad_rows + counts.dropped_over_length + counts.dropped_no_target - len(dropped)
    return faults + ([{"reason": "more rows dropped, reasons not kept", "count": others, "rows": []}] if others else [])


_VALUES = re.compile(r"'[^']*'|\"[^\"]*\"|\d[\d,.]*")


def over_length_of(counts: Counts, limit: int) -> dict[str, Any] | None:
    """Documents longer than data.sequence_length; None if there are none.

    Returns:
      `count`, `share` of all documents with a target, `longest`, and `keeps_99`: the sequence length that at most 1% of
      the documents exceed.
    """
    lengths = sorted((int(length) for length, n in counts.over_length.items() for _ in range(n)), reverse=True)
    if not lengths:
        return None
    within = max(0, counts.documents - counts.dropped_no_target - len(lengths))
    allowed = (within + len(lengths)) // 100
    return {
        "count": len(lengths),
        "share": len(lengths) / (within + len(lengths)),
        "longest": lengths[0],
        "keeps_99": lengths[allowed] if allowed < len(lengths) else limit,
    }


def refusals(data: Data, splits: Sequence[dict[str, Any]]) -> list[str]:
    """Why training with `data` would reject these splits; empty if it would not."""
    bad = sum(split["counts"]["bad_rows"] for split in splits)
    over = sum(split["over_length"]["count"] for split in splits if split["over_length"])
    found = []
    if bad and data.bad_rows == "error":
        found.append(
            f"{bad:,} rows cannot be used, and training stops at the first: fix them, or set --data.bad-rows skip"
        )
    if over and data.over_length == "error":
        found.append(f"{over:,} documents are too long, and training stops at the first: see data.over_length")
    return found


def overlap(train: dict[str, set[bytes]], held_out: Sequence[Store]) -> dict[str, Any]:
    """Held-out rows that are also in the training data, or whose prompt is."""
    same, prompts = [], []
    for example in Joined(held_out):
        if _digest(example.tokens, example.weights) in train["examples"]:
            same.append(example.where)
        elif len(prompt_of(example)) and _digest(prompt_of(example)) in train["prompts"]:
            prompts.append(example.where)
    return {
        "examples": {"count": len(same), "rows": same[:LISTED]},
        "prompts": {"count": len(prompts), "rows": prompts[:LISTED]},
    }


def packing_of(source: Batches | Mixture, steps: int) -> dict[str, Any]:
    """Rows, slots and padding of an epoch and of a step, and the steps of the run."""
    parts = source.sources if isinstance(source, Mixture) else (source,)
    rows = sum(part.plan.rows for part in parts)
    tokens, targets = sum(part.plan.tokens for part in parts), sum(part.plan.targets for part in parts)
    slots = rows * source.tokens_per_row
    return {
        "tokens_per_row": source.tokens_per_row,
        "targets_per_row": source.targets_per_row,
        "rows_per_step": source.batch_size,
        "rows_per_epoch": rows,
        "steps_per_epoch": source.steps_for(1),
        "steps": steps,
        "tokens_per_epoch": tokens,
        "targets_per_epoch": targets,
        "padding_per_epoch": slots - tokens,
        "token_fill": tokens / slots,
        "target_fill": targets / (rows * source.targets_per_row),
        "tokens_per_step": tokens / rows * source.batch_size,
        "targets_per_step": targets / rows * source.batch_size,
    }


def shown_examples(stores: Sequence[Store], tokenizer: Any, number: int) -> list[dict[str, Any]]:
    """`number` examples spread evenly over the data: row, id, and its tokens as `pieces` shows them."""
    examples = Joined(stores)
    chosen = np.unique(np.linspace(0, len(examples) - 1, min(number, len(examples))).astype(int))
    return [
        {"row": one.where, "id": one.id, "tokens": pieces(one, tokenizer)} for one in (examples[int(i)] for i in chosen)
    ]


def shown_rows(source: Batches | Mixture, tokenizer: Any, number: int) -> list[list[dict[str, Any]]]:
    """The first rows of the run as lists of documents, each as in `shown_examples`."""
    return [
        [{"row": one.where, "id": one.id, "tokens": pieces(one, tokenizer)} for one in source.documents_of(row)]
        for row in range(number)
    ]


def pieces(example: Example, tokenizer: Any) -> list[tuple[str, int, float]]:
    """(text, id, weight) of every token; for a character that spans several tokens, the last one has the text."""
    shown, waiting = [], []
    for token, weight in zip(example.tokens.tolist(), example.weights.tolist(), strict=True):
        waiting.append(token)
        text = tokenizer.decode(waiting)
        if text.endswith("\ufffd") and len(waiting) < 4:
            shown.append(("", token, weight))
            continue
        shown.append((text, token, weight))
        waiting = []
    return shown


def prompt_of(example: Example) -> np.ndarray:
    """The tokens before the first trained one, int32 [n]."""
    return example.tokens[: int(np.argmax(example.weights > 0))]


def run_ends(example: Example) -> np.ndarray:
    """Position of the last token of each run of trained tokens, int64 [runs]."""
    trained = np.append(example.weights > 0, False)
    return np.flatnonzero(trained[:-1] & ~trained[1:])


def distribution(values: np.ndarray) -> dict[str, Any]:
    """Quantiles and a histogram with equal bins; `edges` has one more entry than `counts`."""
    counts, edges = np.histogram(values, bins=min(BINS, max(1, int(np.ptp(values)) + 1)))
    quantiles = np.quantile(values, [0, 0.1, 0.5, 0.9, 0.99, 1])
    names = ("min", "p10", "median", "p90", "p99", "max")
    return {
        **{name: round(float(value), 1) for name, value in zip(names, quantiles, strict=True)},
        "mean": round(float(np.mean(values)), 1),
        "counts": counts.tolist(),
        "edges": [round(float(edge), 1) for edge in edges],
    }


def _digest(*arrays: np.ndarray) -> bytes:
    return hashlib.blake2b(b"".join(array.tobytes() for array in arrays), digest_size=16).digest()
