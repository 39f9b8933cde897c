"""data audit, prepare and dump on the tiny model; training from what they made; mixtures and streams, resumed."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds


def _jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _losses(workdir: Path) -> list[float]:
    return [row["loss"] for row in _jsonl(workdir / "metrics.jsonl") if "loss" in row]


@pytest.mark.slow
def test_prepared_data_trains_exactly_as_raw_data_does(run, config_file, tmp_path: Path):
    status, told, err = run("data", "prepare", config_file, "--out", tmp_path / "set", "--licence", "MIT")
    assert status == 0, err
    assert "examples" in told and f"{tmp_path / 'set'}:eval" in told
    builder = tfds.builder_from_directory(tmp_path / "set")
    assert builder.info.redistribution_info.license == "MIT"
    status, _, err = run("data", "dump", config_file, "--out", tmp_path / "dump.jsonl")
    assert status == 0, err
    dumped = _jsonl(tmp_path / "dump.jsonl")
    for row, theirs in zip(dumped, builder.as_data_source("train"), strict=True):
        assert row.keys() == {"id", "source", "tokens", "weights"}
        assert row["tokens"] == theirs["tokens"].tolist() and row["weights"] == theirs["weights"].tolist()
        assert row["source"] == f"{theirs['source'].decode()}:{theirs['line']}"
    status, _, err = run("data", "prepare", config_file, "--out", tmp_path / "set", "--licence", "MIT")
    assert status == 0 and "prepared already" in err
    status, _, err = run("data", "prepare", config_file, "--out", tmp_path / "set", "--data.train-on", "all")
    assert status == 2 and "holds another dataset" in err

    status, _, err = run("train", config_file, "--train.steps", 3, "--train.eval-every", 3)
    assert status == 0, err
    prepared = ("--data.train", tmp_path / "set", "--data.eval", f"{tmp_path / 'set'}:eval")
    options = ("--train.steps", 3, "--train.eval-every", 3, "--workdir", tmp_path / "other")
    status, _, err = run("train", config_file, *prepared, *options)
    assert status == 0, err
    same = ("loss", "accuracy", "eval/loss", "tokens", "target_tokens")
    for one, other in zip(
        _jsonl(tmp_path / "run/metrics.jsonl"), _jsonl(tmp_path / "other/metrics.jsonl"), strict=True
    ):
        assert [one.get(key) for key in same] == [other.get(key) for key in same]
    assert not list((tmp_path / "other" / "prepared").glob("*"))
    options = ("--train.steps", 3, "--workdir", tmp_path / "third")
    status, _, err = run("train", config_file, *prepared, *options, "--data.sequence-length", 64)
    assert status == 2 and "data.sequence_length: prepared with 128, the config says 64" in err


def test_the_audit_counts_in_json_and_shows_in_html(run, config_file, tmp_path: Path):
    page = tmp_path / "page.html"
    status, printed, err = run("data", "audit", config_file, "--json", "--html", page)
    assert status == 0, err
    report = json.loads(printed)
    assert report["train"]["counts"]["used"] > 0 and report["train"]["unstopped"]["count"] == 0
    assert report["packing"]["steps"] == 12 and report["packing"]["tokens_per_row"] == 128
    assert report["overlap"].keys() == {"examples", "prompts"}
    first = report["examples"][0]
    assert any(weight for _, _, weight in first["tokens"]) and not first["tokens"][0][2]
    text = page.read_text(encoding="utf-8")
    assert "<b title=" in text and "http" not in text and "First packed rows" in text
    status, printed, err = run("data", "audit", config_file)
    assert status == 0, err
    assert "trained tokens" in printed and "packing:" in printed


def test_the_audit_reads_every_row_and_needs_no_field_of_training(run, tmp_path, tiny_model):
    def jsonl(rows, name="demos.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return tmp_path / name

    talk = [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c"}]
    bad = {"messages": [{"role": "nobody", "content": "x"}]}
    path = jsonl([bad, *[{"messages": talk}] * 3, {"question": "q", "answer": 3}, {"text": "a " * 99}, bad])
    options = (
        "--model.path",
        tiny_model,
        "--data.train",
        path,
        "--data.sequence-length",
        64,
        "--workdir",
        tmp_path / "w",
    )
    status, shown, err = run("data", "audit", *options)
    assert status == 2 and "3 rows cannot be used" in err and "Traceback" not in err
    assert (
        "2 x bad row: messages[0]: unknown role 'nobody'" in shown and "would keep 99 % of all documents whole" in shown
    )
    status, shown, err = run("data", "audit", *options, "--data.bad-rows", "skip")
    assert status == 0, err
    nothing = (*options[:2], "--data.train", jsonl([bad] * 3, "bad.jsonl"), *options[4:])
    status, shown, err = run("data", "audit", *nothing)
    assert status == 2 and "none of which has a trained token" in err
    assert "3 x bad row: messages[0]: unknown role" in shown
    status, shown, _ = run("data", "audit", *nothing, "--json")
    assert status == 2 and json.loads(shown)["faults"][0]["count"] == 3


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("data",), "usage: sft-jax data audit|prepare|dump"),
        (("data", "audti"), "Did you mean 'audit'?"),
        (("data", "audit"), "CONFIG is missing"),
        (("data", "prepare", "{config}"), "--out is missing"),
        (("data", "dump", "{config}", "--out", "{folder}"), "is a directory, expected a file"),
        (("data", "audit", "{config}", "--jsn"), "unknown option --jsn. Did you mean '--json'"),
        (("data", "prepare", "{config}", "--out", "{folder}/x", "--data.weights", "1.0"), "a mixture is made when"),
    ],
)
def test_bad_arguments_exit_with_2(run, config_file, tmp_path: Path, arguments, expected: str):
    filled = [part.format(config=config_file, folder=tmp_path) for part in arguments]
    status, out, err = run(*filled)
    assert status == 2 and expected in out + err and "Traceback" not in err


@pytest.mark.slow
def test_a_mixture_trains_in_its_proportions_and_resumes(run, config_file, tmp_path: Path, demonstrations: Path):
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"text": f"number {k} " * 3}) + "\n" for k in range(30)))
    mixture = ("--data.train", demonstrations, other, "--data.weights", 3, 1, "--train.eval-every", 0)
    status, _, err = run("train", config_file, *mixture, "--train.steps", 6, "--train.save-every", 3)
    assert status == 0, err
    assert "other.jsonl: weight 1" in err and "epochs" in err
    whole = _losses(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")
    status, _, err = run("train", config_file, *mixture, "--train.steps", 6, "--train.save-every", 3)
    assert status == 0 and "continuing" in err, err
    assert _losses(tmp_path / "run") == whole


@pytest.mark.slow
def test_a_streamed_run_resumes_with_the_batches_it_would_have_had(run, config_file, tmp_path: Path):
    options = ("--data.streaming", True, "--train.eval-every", 0, "--train.steps", 6, "--train.save-every", 2)
    options += ("--train.keep-last", 3)
    status, _, err = run("train", config_file, *options)
    assert status == 0, err
    whole = _losses(tmp_path / "run")
    assert len(whole) == 6 and whole[-1] < whole[0]
    assert re.search(r"streamed: \d+ rows \(\d+ messages\): \d+ used", err), err
    for step in (4, 6):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / str(step))
    status, _, err = run("train", config_file, *options)
    assert status == 0 and "continuing" in err, err
    np.testing.assert_array_equal(_losses(tmp_path / "run"), whole)


@pytest.mark.slow
def test_two_processes_stream_what_one_does_and_one_goes_on_where_they_stopped(
    command, run, config_file, tmp_path: Path, free_port: int
):
    options = ("--data.streaming", True, "--data.streams", 2, "--train.steps", 4, "--train.save-every", 2)
    options += ("--train.eval-every", 0, "--train.batch-size", 8, "--mesh.fsdp", 8)
    status, _, err = run("train", config_file, *options, "--workdir", tmp_path / "one")
    assert status == 0, err
    distributed = ("--distributed.cpu-devices", 4, "--distributed.processes", 2)
    distributed += ("--distributed.coordinator", f"127.0.0.1:{free_port}", "--distributed.process-id")
    for process in [command("train", config_file, *options, *distributed, number) for number in range(2)]:
        _, err = process.communicate(timeout=240)
        assert process.returncode == 0, err

    def tokens(workdir: Path) -> list[tuple[int, int]]:
        return [(row["tokens"], row["target_tokens"]) for row in _jsonl(workdir / "metrics.jsonl")]

    np.testing.assert_allclose(_losses(tmp_path / "run"), _losses(tmp_path / "one"), rtol=2e-3)
    assert _losses(tmp_path / "run")[0] == pytest.approx(_losses(tmp_path / "one")[0], rel=1e-6)
    assert tokens(tmp_path / "run") == tokens(tmp_path / "one")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
    status, _, err = run("train", config_file, *options)
    assert status == 0 and "after step 2" in err, err
    assert tokens(tmp_path / "run") == tokens(tmp_path / "one")


def test_values_for_the_template_are_given_to_a_run_and_unread_keys_are_told(run, config_file, tmp_path: Path):
    template, rows = tmp_path / "style.jinja", tmp_path / "rows.jsonl"
    template.write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ style }}{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{{ style }}{% endif %}"
    )
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows.write_text("".join(json.dumps({"messages": talk + talk * k, "source": "web"}) + "\n" for k in range(8)))
    options = ("--data.train", rows, "--data.eval", "--train.eval-every", 0, "--data.chat-template", template)
    kwargs = ("--data.template-kwargs", "style=x y", "budget=3")
    status, printed, err = run("data", "audit", config_file, "--json", *options, *kwargs)
    assert status == 0, err
    report = json.loads(printed)
    assert report["train"]["counts"]["unread"] == {"source": 8, "chat_template_kwargs.budget": 8}
    assert "x ya" in "".join(text for text, *_ in report["examples"][0]["tokens"])
    status, printed, err = run("data", "audit", config_file, *options, *kwargs)
    assert "keys that no form reads: source (8 rows), chat_template_kwargs.budget (8 rows)" in printed, err
    status, _, err = run("data", "audit", config_file, *options, "--data.template-kwargs", "style")
    assert status == 2 and "data.template_kwargs: found 'style', expected name=value" in err
