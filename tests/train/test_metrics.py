import json

import pytest

from sft_jax.train.metrics import evaluation_row, training_row, truncate_after

SUMS = {
    "loss_sum": 6.0,
    "weight_sum": 4.0,
    "correct": 3.0,
    "entropy": 2.0,
    "tokens": 100.0,
    "target_tokens": 5.0,
    "pairs": 1000.0,
    "grad_norm": 0.5,
    "learning_rate": 1e-4,
}


def test_a_training_row_has_every_field_of_the_design(tiny):
    row = training_row(SUMS, step=3, step_seconds=2.0, data_wait_seconds=0.1, architecture=tiny, peak_flops=1e9)
    names = (
        "step, loss, accuracy, entropy, grad_norm, learning_rate, tokens, target_tokens, step_seconds, "
        "tokens_per_second, target_tokens_per_second, mfu, data_wait_seconds"
    )
    assert list(row) == names.split(", ")
    assert (row["loss"], row["accuracy"], row["entropy"]) == (1.5, 0.75, 0.5)
    assert (row["tokens_per_second"], row["target_tokens_per_second"]) == (50.0, 2.5)


def test_mfu_is_model_flops_over_peak(tiny):
    """6 x (layer parameters x tokens + head x targets + 2NH x pairs), by hand for the tiny model."""
    row = training_row(SUMS, step=1, step_seconds=2.0, data_wait_seconds=0, architecture=tiny, peak_flops=1e9)
    layer = 32 * 8 * (2 * 4 + 2 * 2) + 3 * 32 * 64
    flops = 6 * (3 * layer * 100 + 2 * 4 * 8 * 1000 + 260 * 32 * 5)
    assert row["mfu"] == pytest.approx(flops / 2.0 / 1e9)


def test_a_step_without_targets_has_no_loss(tiny):
    row = training_row(
        {**SUMS, "weight_sum": 0.0}, step=1, step_seconds=1.0, data_wait_seconds=0, architecture=tiny, peak_flops=None
    )
    assert row["loss"] is None and row["mfu"] is None


def test_evaluation_adds_before_it_divides():
    row = evaluation_row([SUMS, {**SUMS, "loss_sum": 0.0, "weight_sum": 1.0}], 7)
    assert row["eval/loss"] == pytest.approx(6 / 5)
    assert row["step"] == 7 and row["eval/target_tokens"] == 10


def test_rows_beyond_the_restored_step_and_a_torn_line_are_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": i}) + "\n" for i in range(1, 6)) + '{"step": 6, "lo')
    truncate_after(path, 3)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]
