"""evaluate, kl, reward-init, select and training with samples, on the tiny model, in this process."""

import json

import jax
import pytest

from sft_jax.cli.main import run_command


@pytest.fixture
def file(tmp_path):
    """(name, rows) -> a JSONL file."""

    def write(name: str, rows: list[dict]) -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def answers(file) -> str:
    turns = [({"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"#### {n}"}) for n in range(5)]
    rows = [{"messages": list(both), "regex": "."} for both in turns]
    return file("answers.jsonl", rows)


def _run(capsys, *arguments) -> tuple[int, str, str]:
    status = run_command([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_evaluate_measures_a_model_beside_another_on_held_out_and_retained_rows(
    tiny_model, answers, file, tmp_path, capsys
):
    retained = file("kept.jsonl", [{"text": "Once upon a time."}])
    out = tmp_path / "rows.jsonl"
    status, text, _ = _run(
        capsys, "evaluate", tiny_model, "--data", answers, "--against", tiny_model, "--retained", retained, "--json",
        "--max-new-tokens", 8, "--out", out,
    )  # fmt: skip
    assert status == 0
    report = json.loads(text)
    model = report["data"]["model"]
    loss = model["held_out"]["loss"]
    assert loss["n"] == 5 and loss["low"] <= loss["value"] <= loss["high"]
    assert {"numeric", "regex", "stopped", "tokens"} <= model["scores"].keys()
    assert model["register"]["words"] >= 0 and model["register_demonstrated"]["words"] == 1
    assert report["data"]["difference"]["loss"] == {"value": 0.0, "low": 0.0, "high": 0.0, "n": 5}
    assert report["data"]["kl"]["kl"] == 0 and report["retained"]["kl"]["tokens"] > 5
    assert "scores" not in report["retained"]["model"]  # a text asks nothing
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert len([line for line in lines if "text" in line["model"]]) == 5
    assert {line["set"] for line in lines} == {"data", "retained"} and "against" in lines[0]
    status, text, _ = _run(
        capsys, "evaluate", tiny_model, "--data", answers, "--check", "none", "--against", tiny_model
    )
    assert status == 0 and "perplexity" in text and "numeric" not in text


def test_kl_prints_its_numbers_and_refuses_another_vocabulary(tiny_model, answers, tmp_path, capsys):
    out = tmp_path / "kl.jsonl"
    status, text, _ = _run(
        capsys, "kl", tiny_model, "--reference", tiny_model, "--data", answers, "--json", "--out", out
    )
    assert status == 0
    found = json.loads(text)
    assert found == {"kl": 0.0, "k1": 0.0, "k2": 0.0, "k3": 0.0, "tokens": found["tokens"]} and found["tokens"] > 5
    line = json.loads(out.read_text().splitlines()[0])
    assert line["logprobs"] == line["reference_logprobs"] and len(line["kl"]) == len(line["logprobs"])
    other = tmp_path / "other"
    other.mkdir()
    for path in tiny_model.iterdir():
        content = path.read_bytes()
        if path.name == "tokenizer.json":
            content = content.replace(b"<|im_start|>", b"<|im_begin|>")
        (other / path.name).write_bytes(content)
    (other / "chat_template.jinja").write_text("{{ messages[0].content }}<|im_end|>")
    status, _, error = _run(capsys, "kl", tiny_model, "--reference", other, "--data", answers)
    assert status == 2 and "different tokenizers" in error and "im_" in error


def test_samples_are_selected_into_demonstrations_and_pairs(tiny_model, answers, tmp_path, capsys):
    samples, chosen, pairs = (tmp_path / name for name in ("samples.jsonl", "chosen.jsonl", "pairs.jsonl"))
    status, _, _ = _run(
        capsys, "sample", tiny_model, "--prompts", answers, "--n", 3, "--temperature", 1, "--max-new-tokens", 6,
        "--out", samples, "--top-k", 20, "--min-p", 0.01, "--stop", "zzz",
    )  # fmt: skip
    assert status == 0 and not list(tmp_path.glob("*.partial"))
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    assert [len(row["completions"]) for row in rows] == [3] * 5 and rows[0]["regex"] == "."
    status, text, _ = _run(
        capsys, "select", samples, "--out", chosen, "--check", "regex", "--at-least", 1, "--keep", "passing"
    )
    assert status == 0 and "5 prompts" in text
    assert all(row["messages"][-1]["role"] == "assistant" for row in map(json.loads, chosen.read_text().splitlines()))
    status, _, _ = _run(capsys, "select", samples, "--out", pairs, "--by", "logprob", "--pairs")
    assert status == 0
    assert all(row["chosen"] != row["rejected"] for row in map(json.loads, pairs.read_text().splitlines()))
    for arguments, message in (
        ((), "scores by one of --check, --scorer, --reward, --by; given: none"),
        (("--by", "rank"), "a completion's rank is None, expected a number"),
        (("--check", "none"), "found nothing in the rows to judge by"),
        (("--reward", tiny_model), "is a language model"),
    ):
        status, _, error = _run(capsys, "select", samples, "--out", chosen, *arguments)
        assert status == 2 and message in error


@pytest.mark.slow
def test_a_reward_model_is_initialised_trained_exported_and_ranks(tiny_model, tmp_path, file, capsys):
    pairs = [{"prompt": f"Say {n}.", "chosen": f"good {n}", "rejected": f"a bad answer {n}"} for n in range(24)]
    pairs = [{**pair, "margin": n % 2} for n, pair in enumerate(pairs)]
    start, run, out = (tmp_path / name for name in ("start", "run", "out"))
    status, _, error = _run(capsys, "reward-init", tiny_model, "--out", start)
    assert status == 2 and "no special token to use for padding" in error
    status, text, _ = _run(capsys, "reward-init", tiny_model, "--out", start, "--pad-token", "<|im_start|>")
    assert status == 0 and "padding is <|im_start|> instead of <|im_end|>" in text
    config = tmp_path / "config.py"
    files = file("pairs.jsonl", pairs), file("more.jsonl", pairs[:8])
    config.write_text(
        "from sft_jax.config import *\n\n"
        "def get_config():\n"
        f"    data = Data(({files[0]!r},), eval=({files[1]!r},), sequence_length=64)\n"
        "    train = Train(objective='reward', steps=6, batch_size=8, eval_every=3, tensorboard=False)\n"
        f"    return RunConfig({str(run)!r}, Model({str(start)!r}), data, Optimizer(learning_rate=3e-3), train)\n"
    )
    status, _, error = _run(capsys, "train", config)
    assert status == 0, error
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    trained = [row for row in rows if "loss" in row]
    assert trained[0]["reward_margin"] == 0 and trained[-1]["loss"] < trained[0]["loss"]
    assert [row["eval/reward_margin"] for row in rows if "eval/loss" in row][-1] > 0
    handoff = (run / "handoff.json").read_text()
    (run / "handoff.json").unlink()  # a kill came right before it
    status, _, error = _run(capsys, "train", config)
    assert status == 0 and "already at step 6" in error, error  # the same command goes on with the same run
    assert (run / "handoff.json").read_text() == handoff
    status, _, _ = _run(capsys, "export", run, "--out", out)
    assert status == 0
    assert json.loads((out / "config.json").read_text())["architectures"] == ["LlamaForSequenceClassification"]
    answers = [{"text": "a bad answer 5"}, {"text": "good 5"}]
    samples = file("samples.jsonl", [{"id": "1", "prompt": "Say 5.", "completions": answers}])
    status, _, error = _run(capsys, "select", samples, "--out", tmp_path / "best.jsonl", "--reward", run)
    assert status == 0, error
    assert json.loads((tmp_path / "best.jsonl").read_text())["completion"] == "good 5"
    for command in (("sample", run, "--prompts", samples), ("score", run, "--data", files[0])):
        status, _, error = _run(capsys, *command)
        assert status == 2 and "this is a reward model" in error


def test_pairs_are_prepared_for_the_run_that_will_read_them(tiny_model, tmp_path, file, capsys):
    start, prepared, config = tmp_path / "start", tmp_path / "prepared", tmp_path / "config.py"
    pairs = file("pairs.jsonl", [{"prompt": f"{n}.", "chosen": f"yes {n}", "rejected": "no"} for n in range(24)])
    assert _run(capsys, "reward-init", tiny_model, "--out", start, "--pad-token", "<|im_start|>")[0] == 0
    config.write_text(
        "from sft_jax.config import *\n\n"
        "def get_config():\n"
        f"    data = Data(({pairs!r},), sequence_length=31, packing='none')\n"
        "    train = Train(objective='reward', steps=2, batch_size=8, tensorboard=False)\n"
        f"    return RunConfig({str(tmp_path / 'run')!r}, Model({str(start)!r}), data, train=train)\n"
    )
    status, text, error = _run(capsys, "data", "prepare", config, "--out", prepared)
    assert status == 0 and "48 trained" in text, error  # both ends of each pair
    status, _, error = _run(capsys, "train", config, "--data.train", prepared)
    assert status == 0, error
    short = ("--data.over-length", "error", "--data.sequence-length", 12, "--workdir", tmp_path / "other")
    status, _, error = _run(capsys, "train", config, *short)
    assert status == 2 and 'data.over_length="drop"' in error


@pytest.mark.slow
def test_held_out_prompts_are_answered_and_judged_while_training_goes_on(config_file, tmp_path, capsys):
    status, _, error = _run(
        capsys, "train", config_file, "--train.eval-samples", 3, "--train.eval-new-tokens", 6, "--train.eval-checks",
        "exact", "--train.steps", 4, "--train.eval-every", 2,
    )  # fmt: skip
    assert status == 0, error
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    held_out = [row for row in rows if "eval/loss" in row]
    assert len(held_out) == 2 and all({"eval/exact", "eval/stopped", "eval/tokens"} <= row.keys() for row in held_out)
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert [line["step"] for line in samples] == [2, 2, 2, 4, 4, 4]
    assert all(line["demonstration"] and "exact" in line["scores"] for line in samples)
    jax.clear_caches()
