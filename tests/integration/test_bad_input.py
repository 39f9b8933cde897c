"""Bad input: one clear message, exit 2, no traceback, nothing written where it matters.

The command line runs in this process, on the eight simulated devices: nothing here gets as far as a step.
"""

import copy
import json
import re
import shutil

import pytest
from safetensors.numpy import load_file, save_file

from sft_jax.errors import BadInput
from sft_jax.experiments.quickstart import clear


def _row(*turns):
    roles = ("user", "assistant") * len(turns)
    return {"messages": [{"role": role, "content": text} for role, text in zip(roles, turns, strict=False)]}


BAD_DATA = {
    "missing file": (None, ["no such file", "train.jsonl"]),
    "empty file": ("", ["train.jsonl", "empty"]),
    "invalid JSON": ('{"messages": [}\n', ["train.jsonl:1:15"]),
    "no trained token in all rows": (
        json.dumps(_row("hello")) + "\n",
        ["train.jsonl:1", "none of which has a trained token"],
    ),
    "unknown role": (
        json.dumps({"messages": [{"role": "robot", "content": "x"}]}) + "\n",
        ["train.jsonl:1", "robot", "assistant"],
    ),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_demonstrations_name_file_and_line(run, config_file, demonstrations, case):
    content, words = BAD_DATA[case]
    demonstrations.unlink()
    if content is not None:
        demonstrations.write_text(content)
    _refused(run("train", config_file), words)


BAD_OPTIONS = {
    "unknown field": (("--optimizer.learning-rat", 1e-4), ["--optimizer.learning-rat", "--optimizer.learning-rate"]),
    "wrong type": (("--train.steps", "many"), ["many"]),
    "mesh is not the devices": (
        ("--mesh.data", 4, "--mesh.fsdp", 4),
        ["16", "found 8", "--distributed.cpu-devices 16"],
    ),
    "batch not divisible": (
        ("--train.batch-size", 12),
        ["train.batch_size 12", "8", "nearest valid", "8 or 16"],
    ),
    "accumulation not divisible": (("--train.accumulation", 3), ["train.accumulation 3", "nearest valid: 6 or 9"]),
    "longer than the model": (("--data.sequence-length", 4096), ["4096", "512"]),
    "heads do not divide": (
        ("--mesh.fsdp", 2, "--mesh.tensor", 4),
        ["kv_heads 2", "tensor = 4", "--sharding.kv-heads none"],
    ),
    "unknown mesh axis": (("--sharding.embed", "fdsp"), ["sharding.embed", "fdsp", "fsdp"]),
    "no such model": (("--model.path", "nowhere/model"), ["nowhere/model"]),
    "over-length is an error": (
        ("--data.sequence-length", 24, "--data.over-length", "error"),
        ["limit 24", "truncate"],
    ),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_options_name_the_values_and_the_fix(run, config_file, case):
    options, words = BAD_OPTIONS[case]
    _refused(run("train", config_file, *options), words)


def test_a_workdir_of_another_run_is_refused_with_a_diff(run, config_file, tmp_path):
    status, _, err = run("train", config_file, "--train.steps", 3, "--train.eval-every", 0)
    assert status == 0, err
    metrics = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    _refused(
        run("train", config_file, "--train.steps", 3, "--optimizer.learning-rate", 5e-4),
        ["another run", "optimizer.learning_rate: 0.001 -> 0.0005", "--workdir"],
    )
    data = tmp_path / "train.jsonl"
    data.write_text(data.read_text().replace("Say t3", "Tell t3"))
    _refused(run("train", config_file, "--train.steps", 3), ["demonstrations changed"])
    data.write_text(data.read_text().replace("Tell t3", "Say t3"))
    # What the config leaves open is compared once it is resolved.
    _refused(
        run("train", config_file, "--train.steps", 0, "--train.epochs", 1),
        ["another run", "train.steps: 3 -> 2", "--workdir"],
    )
    record = tmp_path / "run" / "record.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "plan": "f" * 64}))
    _refused(run("train", config_file, "--train.steps", 3), ["packed differently", "ffffffffffff"])
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == metrics


def test_a_start_that_was_refused_does_not_claim_the_workdir(run, config_file, tiny_model, tmp_path):
    """The tensors are read last, when the workdir has its config: the corrected command must not meet it."""
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    tensors = load_file(broken / "model.safetensors")
    del tensors["model.norm.weight"], tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, broken / "model.safetensors")
    options = ("--train.steps", 1, "--train.eval-every", 0)
    _refused(
        run("train", config_file, *options, "--model.path", broken),
        ["2 missing", "model.norm.weight", "model.layers.1.mlp.up_proj.weight"],
    )
    status, _, err = run("train", config_file, *options)
    assert status == 0, err


def test_what_is_dropped_is_counted_in_the_log(run, config_file):
    options = ("--train.steps", 1, "--train.eval-every", 0, "--data.sequence-length", 38)
    status, _, err = run("train", config_file, *options)
    assert status == 0, err
    dropped = int(re.search(r"(\d+) rows dropped: longer than data.sequence_length", err)[1])
    assert 0 < dropped < 48 and f"{48 - dropped} used" in err, err
    assert re.search(r"train\.jsonl:\d+: \d+ tokens, limit 38", err), err


def test_a_changed_context_axis_is_no_other_run(run, config_file, tmp_path):
    """M is a multiple of the axis when it is chosen, and stays what it was when the axis changes."""
    options = ("--train.steps", 2, "--train.eval-every", 0)
    status, _, err = run("train", config_file, *options)
    assert status == 0, err
    capacity = json.loads((tmp_path / "run" / "config.json").read_text())["data"]["target_capacity"]
    assert capacity % (32 * 4), "with the other axis another one would be chosen"
    status, _, err = run("train", config_file, *options, "--mesh.fsdp", 2, "--mesh.context", 4)
    assert status == 0 and "already at step 2 of 2" in err, err
    assert json.loads((tmp_path / "run" / "config.json").read_text())["data"]["target_capacity"] == capacity


def test_a_tokenizer_larger_than_the_model_is_refused(run, config_file, demonstrations, tokenizer, tmp_path):
    larger = copy.deepcopy(tokenizer)
    larger.add_tokens(["zz", "yy", "Say"])
    larger.save_pretrained(tmp_path / "larger")
    _refused(
        run("train", config_file, "--data.tokenizer", tmp_path / "larger"),
        ["train.jsonl:1", "id 260", "260 embeddings"],
    )


BAD_USES = {
    "no room for a token": (
        ("sample", "--prompts", "held_out.jsonl", "--max-new-tokens", 500),
        ["held_out.jsonl:1", "512"],
    ),
    "nothing to generate": (
        ("sample", "--prompts", "held_out.jsonl", "--max-new-tokens", 0),
        ["--max-new-tokens is 0"],
    ),
    "no batch": (("score", "--data", "held_out.jsonl", "--batch-size", 0), ["--batch-size is 0"]),
    "negative temperature": (("sample", "--prompts", "held_out.jsonl", "--temperature", -1), ["--temperature is -1"]),
    "no probability": (("sample", "--prompts", "held_out.jsonl", "--top-p", 0), ["--top-p is 0"]),
    "output is a directory": (("sample", "--prompts", "held_out.jsonl", "--out", "."), ["directory"]),
    "output below a file": (("export", "--out", "train.jsonl/x"), ["train.jsonl is a file"]),
    "mesh without devices": (("score", "--data", "held_out.jsonl", "--mesh.tensor", 0), ["mesh.tensor is 0"]),
    "longer than the model": (("score", "--data", "long.jsonl"), ["long.jsonl:1", "512 positions"]),
    "no prompt": (("sample", "--prompts", "text.jsonl"), ["text.jsonl", "no row has a prompt"]),
}


@pytest.mark.parametrize("case", BAD_USES)
def test_bad_input_of_sample_score_and_export(run, tiny_model, demonstrations, monkeypatch, case):
    monkeypatch.chdir(demonstrations.parent)
    (demonstrations.parent / "long.jsonl").write_text(json.dumps({"text": "x" * 600}) + "\n")
    (demonstrations.parent / "text.jsonl").write_text(json.dumps({"text": "x"}) + "\n")
    (command, *options), words = BAD_USES[case]
    _refused(run(command, tiny_model, *options), words)


def test_messages_need_a_chat_template_and_raw_prompts_do_not(run, tiny_model, demonstrations, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    (base / "chat_template.jinja").unlink()
    _refused(run("sample", base, "--prompts", demonstrations), ["train.jsonl:1", "no chat template"])
    (tmp_path / "raw.jsonl").write_text(json.dumps({"prompt": "Say"}) + "\n")
    status, out, err = run("sample", base, "--prompts", tmp_path / "raw.jsonl", "--max-new-tokens", 2)
    assert status == 0 and len(json.loads(out)["completions"]) == 1, err


def test_the_quickstart_removes_nothing_but_a_run(run, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(BadInput, match="contains files that are not from a quickstart"):
        clear(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").exists()
    clear(tmp_path / "new")
    (tmp_path / "new" / "metrics.jsonl").touch()
    clear(tmp_path / "new")
    assert not (tmp_path / "new" / "metrics.jsonl").exists()


def test_an_unsupported_architecture_lists_the_supported_ones(run, config_file, tiny_model, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    config = json.loads((tiny_model / "config.json").read_text())
    config |= {"architectures": ["MambaForCausalLM"], "model_type": "mamba"}
    (other / "config.json").write_text(json.dumps(config))
    _refused(run("train", config_file, "--model.path", other), ["mamba", "llama", "qwen2", "qwen3"])


def test_an_unknown_command_names_the_nearest(run):
    _refused(run("trian"), ["trian", "train"])


def test_train_without_a_config_is_refused(run):
    """Not help and status 0: a launch script whose variable is empty would take it for done."""
    _refused(run("train"), ["CONFIG is missing"])


def test_a_config_file_without_get_config_is_refused(run, tmp_path):
    (tmp_path / "c.py").write_text("x = 1\n")
    _refused(run("train", tmp_path / "c.py"), ["c.py", "get_config"])


def _refused(result, words):
    status, _, err = result
    assert status == 2, err
    assert "Traceback" not in err
    for word in words:
        assert word.lower() in err.lower(), (word, err)


def test_fewer_rows_than_a_batch_are_refused(run, config_file):
    _refused(
        run("train", config_file, "--train.batch-size", 16),
        ["train.jsonl: 48 documents fill 15 rows of 128 tokens", "16 of train.batch_size", "to 15 or less"],
    )


def test_a_chat_template_that_does_not_compile_is_refused_with_its_line(run, config_file, tmp_path):
    (tmp_path / "mine.jinja").write_text("{% for m in messages %}\n{{ m.content }\n{% endfor %}")
    _refused(
        run("train", config_file, "--data.chat-template", tmp_path / "mine.jinja"), ["mine.jinja:2: not a valid Jinja"]
    )
