"""A run, stepped from Python."""

import json
import logging
import subprocess
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest

import sft_jax as sft
from sft_jax.config import Adapter, Data, Distributed, Model, Optimizer, RunConfig, Train


@pytest.fixture
def config(tmp_path, tiny_model, demonstrations) -> RunConfig:
    return RunConfig(
        workdir=str(tmp_path / "run"),
        model=Model(str(tiny_model)),
        data=Data((str(demonstrations),), eval=(str(demonstrations.with_name("held_out.jsonl")),), sequence_length=64),
        optimizer=Optimizer(learning_rate=1e-2),
        train=Train(steps=6, batch_size=8, save_every=0, tensorboard=False),
    )


def rows_of(run: sft.Run) -> list[dict]:
    return [json.loads(line) for line in (run.workdir.local() / "metrics.jsonl").read_text().splitlines()]


def test_steps_taken_by_hand_are_those_of_fit(config, capsys):
    with sft.Run(config) as run:
        rows = run.step(2)
        assert [row["step"] for row in rows] == [1, 2] and run.steps_done == 2
        held_out = run.evaluate()
        assert held_out["step"] == 2 and held_out["eval/loss"] > 0
        before = run.model.score([{"text": "a b"}], train_on="all")
        run.save()
        assert [row["step"] for row in run.step(99)] == [3, 4, 5, 6] and run.step() == []
        assert run.model.score([{"text": "a b"}], train_on="all") != before, "the live parameters"
        assert rows_of(run) == [*rows, *rows_of(run)[2:]]
    assert capsys.readouterr() == ("", ""), "a library prints nothing"
    with sft.Run(config, workdir=f"{config.workdir}-whole") as whole:
        whole.fit()
        assert [row["loss"] for row in rows_of(whole)] == [row["loss"] for row in rows_of(run)]
    assert (whole.workdir.local() / "report.html").is_file() and (whole.workdir.local() / "handoff.json").is_file()


def test_the_report_is_there_from_the_first_evaluation_on(config):
    with sft.Run(config, **{"train.eval_every": 2}) as run:
        report = run.workdir.local() / "report.html"
        run.step(1)
        assert not report.exists()
        run.step(1)
        run._report_page.wait()
        assert "step 2: training" in report.read_text() and "held out" in report.read_text()
        run.step(2)
    assert "step 4: training" in report.read_text()


def test_a_saved_run_goes_on(config):
    with sft.Run(config) as run:
        run.step(3)
        run.save()
        expected = [row["loss"] for row in run.step(3)]
    (run.workdir.local() / "checkpoints" / "6").rename(run.workdir.local() / "gone")
    with sft.Run(config) as again:
        assert again.steps_done == 3
        assert [row["loss"] for row in again.step(3)] == expected


def test_the_log_still_takes_what_the_watchdog_finds_when_a_collective_failed(config, monkeypatch):
    """Its verdict comes seconds after the runtime's error in the process whose peer died."""
    waited_for = []

    def find(watch, error):
        waited_for.append(error)
        logging.getLogger("sft_jax.distributed.watchdog").info("process 2 is silent")

    monkeypatch.setattr("sft_jax.api.run.wait_for_watchdog", find)
    failed = jax.errors.JaxRuntimeError("all-reduce failed")
    with pytest.raises(jax.errors.JaxRuntimeError), sft.Run(config) as run:
        monkeypatch.setattr("sft_jax.distributed.start.watch", types.SimpleNamespace())
        raise failed
    log = (run.workdir.local() / "logs" / "process-0.log").read_text()
    assert waited_for == [failed] and "process 2 is silent" in log


def test_overrides_are_named_as_on_the_command_line(config):
    changed = sft.Run(config, **{"optimizer.learning_rate": 0.5, "train.steps": 2})
    assert changed.config.optimizer.learning_rate == 0.5 and changed.config.train.steps == 2
    changed.close()
    with pytest.raises(sft.BadInput, match=r"unknown field 'optimizer.lr'"):
        sft.Run(config, **{"optimizer.lr": 0.5})
    with pytest.raises(sft.BadInput, match=r"train.batch_size is 'x'"):
        sft.Run(config, **{"train.batch_size": "x"})


def test_epochs_count_the_steps_of_a_resolved_config_anew(config, tmp_path):
    with sft.Run(config, **{"train.steps": 0, "train.epochs": 1}) as run:
        once = run.config
    resolved = tmp_path / "run" / "config.json"
    with sft.Run(resolved, workdir=str(tmp_path / "twice"), **{"train.epochs": 2}) as twice:
        assert twice.config.train.steps == 2 * once.train.steps


def test_run_validates_what_the_command_line_validates(config):
    for overrides, message in (
        ({"data.eval": (), "train.eval_every": 2}, "train.eval_every is 2 but data.eval is empty"),
        ({"optimizer.momentum": 0.9}, "optimizer.momentum is set, but optimizer.name 'adamw' has b1"),
        ({"optimizer.name": "adam"}, "Did you mean 'adamw'"),
        ({"loss.kind": "ranking"}, "loss.kind is 'ranking'"),
        ({"train.sinks": ("wandb",)}, "train.sinks is 'wandb'"),
    ):
        with pytest.raises(sft.BadInput, match=message):
            sft.Run(config, **overrides)
    with sft.Run(config, **{"data.eval": ()}) as run, pytest.raises(sft.BadInput, match=r"data\.eval is empty"):
        run.evaluate()


def test_fewer_devices_than_asked_for_are_said_once_jax_is_in_use(config):
    with pytest.raises(sft.BadInput, match=r"cpu_devices is 16, but JAX is already initialized .* with 8 cpu device"):
        sft.Run(config, **{"distributed.cpu_devices": 16})


def test_eight_devices_are_simulated_for_a_run_made_first(config):
    code = (
        "import sys; import sft_jax as sft; run = sft.Run(sys.argv[1], **{'distributed.cpu_devices': 8}); "
        "rows = run.step(2); import jax; print(jax.device_count(), len(rows)); run.close()"
    )
    with sft.Run(config):
        pass
    path = f"{config.workdir}/config.json"
    out = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["8", "2"], out.stderr


# --- a part of the parameters -----------------------------------------------------------------------------------------


def test_a_part_trains_and_the_rest_stays_to_the_bit(config, tiny_parameters, tmp_path):
    with sft.Run(config, **{"train.trainable": ("layers.2", "*norm*"), "train.steps": 4, "train.save_every": 2}) as run:
        run.fit()
        found = dict(run.model.parameters)
        assert set(run.state.trainable) == {name for name in found if "norm" in name or name.startswith("layers.2.")}
        assert jax.tree.leaves(run.state.opt_state) and "embedding" not in str(jax.tree.structure(run.state.opt_state))
    for name, value in tiny_parameters.items():
        if name.startswith("layers") and "norm" not in name:
            np.testing.assert_array_equal(found[name.replace("0:3", "0:2")], np.asarray(value)[:2])
            assert (found[name.replace("0:3", "2")] != np.asarray(value)[2]).any()
    saved = run.workdir.local() / "checkpoints" / "4" / "parameters"
    assert sum(path.stat().st_size for path in saved.rglob("*") if path.is_file()) > 0
    # sample, score and export know the whole of it
    model = sft.load(config.workdir)
    for name, value in found.items():
        np.testing.assert_array_equal(np.asarray(model.parameters[name]), np.asarray(value))
    model.export(tmp_path / "whole")
    again = sft.load(tmp_path / "whole")
    np.testing.assert_array_equal(
        np.asarray(again.parameters["layers.0:3.mlp.up.kernel"])[2], np.asarray(found["layers.2.mlp.up.kernel"])
    )


def test_a_part_goes_on_from_its_checkpoint_and_other_base_weights_are_refused(config, tmp_path, tiny_model):
    import shutil

    from safetensors.numpy import load_file, save_file

    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    overrides = {"train.trainable": ("layers.1-2",), "model.path": str(base), "train.save_every": 100}
    with sft.Run(config, **overrides) as run:
        run.step(2)
        run.save()
        expected = [row["loss"] for row in run.step(2)]
    with sft.Run(config, **overrides) as again:
        assert [row["loss"] for row in again.step(2)] == expected
    weights = base / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] += 1
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(sft.BadInput, match=r"trained a part of .*base, whose frozen weights have changed since"):
        sft.Run(config, **overrides)


def test_lora_trains_the_adapter_alone_and_exports_it_merged(config, tmp_path):
    adapted = RunConfig(**{**vars(config), "adapter": Adapter("lora", rank=2, alpha=4.0, targets=("*query.kernel",))})
    with sft.Run(adapted) as run:
        untouched = {name: np.asarray(array) for name, array in run.model.parameters.items() if "lora" not in name}
        run.fit()
        found = dict(run.model.parameters)
        assert set(run.state.trainable) == {f"layers.0:3.attention.query.kernel.lora_{x}" for x in "ab"}
    for name, value in untouched.items():
        np.testing.assert_array_equal(np.asarray(found[name]), value)
    model = sft.load(config.workdir)
    text = {"text": "hello there"}
    model.export(tmp_path / "merged")
    merged = sft.load(tmp_path / "merged")
    one, other = (np.array(each.score([text], "all")[0]["logprobs"][1:]) for each in (model, merged))
    np.testing.assert_allclose(one, other, atol=1e-4)


def test_int8_is_refused_for_training_and_stays_frozen_beside_what_trains(config):
    with pytest.raises(sft.BadInput, match="is stored as int8 and cannot train"):
        sft.Run(config, **{"model.quantization": "int8"})
    with sft.Run(config, **{"model.quantization": "int8", "train.trainable": ("*norm*",)}) as run:
        [row] = run.step()
        assert np.isfinite(row["loss"]) and row["grad_norm"] > 0


@pytest.mark.parametrize(
    ("name", "fields"),
    [("lion", {}), ("adafactor", {"factored_from": 16}), ("muon", {"momentum": 0.9}), ("sgd", {"momentum": 0.9})],
)
def test_the_state_of_every_optimizer_is_laid_out_as_its_parameters(config, name, fields):
    overrides = {f"optimizer.{key}": value for key, value in fields.items()}
    mesh = {"mesh.fsdp": 4, "mesh.data": 2}
    with sft.Run(config, **{"optimizer.name": name, **overrides, **mesh}) as run:
        rows = run.step(3)
        assert rows[-1]["loss"] < rows[0]["loss"]
        largest = max(jax.tree.leaves(run.state.opt_state), key=lambda leaf: leaf.size)
        assert largest.addressable_shards[0].data.size <= largest.size / 4


def test_distributed_is_a_section_like_any_other():
    assert RunConfig().distributed == Distributed()


THINKS = """{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.role == 'assistant' %}<think></think>{% endif %}{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{{ '<think></think>' if enable_thinking is defined and not enable_thinking else '' }}{% endif %}"""


def test_the_models_of_a_run_give_their_template_the_runs_values(config, tmp_path):
    from sft_jax.data.read.rows import Record
    from sft_jax.evaluate.task import task_of
    from sft_jax.sample.draw import Sampling

    (tmp_path / "thinks.jinja").write_text(THINKS)
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    task = task_of(Record("f", 1, row), Data())
    data = {"data.chat_template": str(tmp_path / "thinks.jinja"), "data.template_kwargs": ("enable_thinking=false",)}
    with sft.Run(config, **data, **{"train.steps": 1}) as run:
        run.fit()
        live = run.model
        loaded = sft.load(config.workdir)
        for model in (live, loaded):
            [prompt] = model.prompts([task], Sampling(2))
            assert model.tokenizer.decode(prompt).endswith("assistant\n<think></think>")
            assert model.tokenizer.decode(model.show(row).trained) == "b<|im_end|>", "the model is given the rest"
            [scored] = model.score([row])
            assert scored["tokens"][: len(prompt)] == prompt and not any(scored["weights"][: len(prompt)])
    loaded.export(tmp_path / "out")
    for folder in (config.workdir, tmp_path / "out"):
        about = json.loads((Path(folder) / "handoff.json").read_text())
        assert about["template_kwargs"] == {"enable_thinking": False}
