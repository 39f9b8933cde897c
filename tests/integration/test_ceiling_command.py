"""`sft-jax ceiling` on a short run of the tiny model, and the three ways to be limited, from scratch."""

import json

import pytest

from sft_jax.cli.main import run_command

SHORT = ("--check", "exact", "--samples", "2", "--prompts", "3", "--max-new-tokens", "3", "--train.steps", "4")


def test_options_that_cannot_work_are_refused_before_anything_is_trained(config_file, tmp_path, capsys):
    for arguments, message in (
        (("--parts", "4", "1"), "at least three decreasing numbers ending with 1"),
        (("--parts", "1", "2", "4"), "at least three decreasing numbers ending with 1"),
        (("--seeds", "0"), "--seeds is 0"),
        (("--workdir", "gs://bucket/run"), "expected a local path"),
        (("--data.limit", "4"), "do not set data.limit"),
        (("--train.objective", "reward"), "leave loss.kind at cross_entropy"),
        (("--data.eval", "--train.eval-every", "0"), "data.eval is empty"),
    ):
        assert run_command(["ceiling", str(config_file), *arguments]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_ceiling_is_measured_written_down_and_goes_on_where_it_was_stopped(config_file, tiny_model, tmp_path, capsys):
    arguments = ["ceiling", str(config_file), "--parts", "4", "2", "1", "--seeds", "2", *SHORT, "--json"]
    arguments += ["--larger", str(tiny_model)]  # the same model: what it takes off the loss is what a seed does
    assert run_command(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    run = tmp_path / "run"
    assert abs(found["larger"]["value"]) < 0.05 and "a larger model's" in found["verdict"]["evidence"][-1]
    assert found["scaling"]["sizes"] == [12, 24, 48] and found["score"] == "exact"
    assert found["verdict"]["words"] and len(found["samples"]) == 3
    assert (run / "ceiling.html").read_text(encoding="utf-8").count("<svg") == 2
    assert json.loads((run / "ceiling.json").read_text()) == found
    parts = sorted(path.name for path in run.glob("n*"))
    assert parts == ["n12-seed0", "n12-seed1", "n24-seed0", "n24-seed1", "n48-seed0", "n48-seed1"]
    rows = [json.loads(line) for line in (run / "n12-seed1" / "held_out.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4] and len(rows[0]["nll"]) == 6
    before = {path: path.stat().st_mtime_ns for path in run.glob("n*/metrics.jsonl")}
    assert run_command(arguments) == 0
    assert json.loads(capsys.readouterr().out) == found
    assert before == {path: path.stat().st_mtime_ns for path in run.glob("n*/metrics.jsonl")}  # nothing trained again


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("name", "answer"), [("few", "more data"), ("systematic", "preferences"), ("small", "larger model")]
)
def test_what_limits_a_run_by_construction_is_what_the_verdict_says(name, answer, tmp_path, process):
    """configs/ceiling_*.py, one run a point."""
    status, out, error = process(
        "ceiling", f"configs/ceiling_{name}.py", "--workdir", tmp_path / name, "--check", "exact", "--parts", 16, 4, 1,
        "--seeds", 1, "--max-new-tokens", 4, "--json", seconds=800,
    )  # fmt: skip
    assert status == 0, error
    assert json.loads(out)["verdict"]["answer"] == answer
