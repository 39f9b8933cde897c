import json
import re
from dataclasses import replace

import pytest

from sft_jax.config import (
    Data,
    Distributed,
    Loss,
    Mesh,
    Model,
    Optimizer,
    RunConfig,
    Sharding,
    Train,
    from_json,
    identity_differences,
    leaf_fields,
    load_config,
    to_json,
    validate,
)  # fmt: skip
from sft_jax.errors import BadInput

GOOD = RunConfig(model=Model(path="m"), data=Data(train=("a.jsonl", "b.jsonl")))


def test_a_config_survives_the_round_trip_through_json():
    config = replace(GOOD, optimizer=Optimizer(learning_rate=3e-5, schedule="cosine"), mesh=Mesh(data=2, fsdp=4))
    assert from_json(to_json(config), "x") == config


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"train": {"stepz": 1}}, ["c.json", "train.stepz", "'train.steps'"]),
        ({"train": {"steps": "1"}}, ["train.steps", "'1'", "int"]),
        ({"optimizer": {"schedule": "cosin"}}, ["optimizer.schedule", "cosine"]),
        ({"data": {"train": "a.jsonl"}}, ["data.train", "tuple"]),
        ({"data": 3}, ["data", "int"]),
    ],
)
def test_a_wrong_json_config_names_field_and_value(change, words):
    with pytest.raises(BadInput) as error:
        from_json(json.dumps(change), "c.json")
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ("RunConfig(data=Data(train_on='asistant'))", ["data.train_on", "'assistant'"]),
        ("RunConfig(data=Data(packing='off'))", ["data.packing", "best_fit", "none"]),
        ("RunConfig(data=Data(train='a.jsonl'))", ["data.train", "'a.jsonl'", "tuple of strings"]),
        ("RunConfig(train=Train(batch_size='2'))", ["train.batch_size", "'2'", "int"]),
        ("RunConfig(train=Train(batch_siz=2))", ["c.py:4", "batch_siz", "Did you mean 'train.batch_size'"]),
        ("RunConfig(1 / 0)", ["c.py:4", "ZeroDivisionError"]),
        ("Train()", ["returned Train, expected RunConfig"]),
        ("RunConfig(", ["c.py:4", "SyntaxError"]),
    ],
)
def test_a_wrong_python_config_names_line_field_and_value(made, words, tmp_path):
    path = tmp_path / "c.py"
    path.write_text(f"from sft_jax.config import Data, RunConfig, Train\n\ndef get_config():\n    return {made}\n")
    with pytest.raises(BadInput) as error:
        load_config(path)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("mine.jsonl", "this is data, not a config. Use configs/quickstart.py --data.train "),
        ("mine.jsonl.gz", "this is data, not a config"),
        ("model.gguf", "this is a model, not a config. Use configs/quickstart.py --model.path "),
        ("run.yaml", ".yaml files are not read"),
        ("absent.py", "no such config file. Start from configs/quickstart.py, or leave CONFIG out"),
    ],
)
def test_what_is_no_config_is_answered_with_what_it_is(name, hint, tmp_path):
    if name != "absent.py":
        (tmp_path / name).touch()
    with pytest.raises(BadInput, match=re.escape(hint)):
        load_config(tmp_path / name)


def test_a_list_in_a_python_config_becomes_a_tuple(tmp_path):
    path = tmp_path / "c.py"
    made = "RunConfig(data=Data(train=['a.jsonl']))"
    path.write_text(f"from sft_jax.config import Data, RunConfig\n\ndef get_config():\n    return {made}\n")
    assert load_config(path).data.train == ("a.jsonl",)


def test_broken_json_names_line_and_column():
    with pytest.raises(BadInput, match=r"c\.json:2:3"):
        from_json("{\n  x}", "c.json")


def test_every_field_is_declared_identity_or_free_and_documented():
    import inspect

    import sft_jax.config.run as module

    source = inspect.getsource(module)
    for name, field, _ in leaf_fields(RunConfig()):
        assert "identity" in field.metadata, name
        declaration = source[source.index(f"    {field.name}: ") :]
        assert declaration.split("\n")[1].startswith('    """'), name


def test_train_objective_is_an_older_name_for_loss_kind():
    for objective, kind in (("sft", "cross_entropy"), ("reward", "reward")):
        config = RunConfig(train=Train(objective=objective))
        assert (config.loss.kind, config.train.objective) == (kind, None)
    assert RunConfig(train=Train(objective="reward"), loss=Loss("reward")).loss.kind == "reward"
    with pytest.raises(BadInput, match=r"train\.objective is 'sft' and loss\.kind 'reward'.* give loss\.kind alone"):
        RunConfig(train=Train(objective="sft"), loss=Loss("reward"))


def test_only_identity_fields_count_as_another_run():
    assert identity_differences(GOOD, replace(GOOD, mesh=Mesh(data=8), workdir="elsewhere")) == []
    other = replace(GOOD, train=Train(batch_size=16, accumulation=2), optimizer=Optimizer(learning_rate=1.0))
    assert identity_differences(GOOD, other) == [
        "optimizer.learning_rate: 2e-05 -> 1.0",
        "train.batch_size: 8 -> 16",
    ]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (replace(GOOD, model=Model()), ["model.path is empty"]),
        (replace(GOOD, data=Data()), ["data.train is empty"]),
        *(
            (
                replace(GOOD, data=replace(GOOD.data, template_date=day)),
                [f"data.template_date is '{day}'", "YYYY-MM-DD"],
            )
            for day in ("2026-13-01", "03.02.2026", "20260203", "2026-W01-1", "today")
        ),
        (replace(GOOD, optimizer=Optimizer(warmup_ratio=1.0)), ["optimizer.warmup_ratio is 1.0", "less than 1"]),
        (replace(GOOD, optimizer=Optimizer(warmup_ratio=0.1, warmup_steps=2)), ["warmup_ratio is 0.1", "give one"]),
        (replace(GOOD, train=Train(batch_size=0, epochs=0)), ["train.batch_size is 0", "train.epochs is 0"]),
        (replace(GOOD, train=Train(batch_size=8, accumulation=3)), ["8", "3", "nearest valid: 6 or 9"]),
        (replace(GOOD, train=Train(eval_every=5)), ["train.eval_every is 5", "data.eval is empty"]),
        (replace(GOOD, mesh=Mesh(data=-1, fsdp=-1)), ["data and fsdp are both -1"]),
        (replace(GOOD, mesh=Mesh(tensor=0)), ["mesh.tensor is 0"]),
        (replace(GOOD, workdir=""), ["workdir is ''"]),
        (replace(GOOD, workdir="az://bucket/run"), ["workdir is 'az://bucket/run'", "gs://bucket/path", "mount"]),
        (replace(GOOD, workdir="gs://bucket/run*"), ["workdir: gs://bucket/run* has '*'", "not all programs"]),
        (replace(GOOD, workdir="gs://bucket"), ["workdir is 'gs://bucket'", "gs://bucket/path"]),
        (replace(GOOD, optimizer=Optimizer(learning_rate=float("nan"))), ["optimizer.learning_rate is nan", "finite"]),
        (replace(GOOD, optimizer=Optimizer(b2=2.0, eps=0.0)), ["optimizer.b2 is 2.0", "optimizer.eps is 0.0"]),
        (replace(GOOD, train=Train(seed=2**64)), ["train.seed", "2**63"]),
        (replace(GOOD, distributed=Distributed(processes=2, coordinator="host")), ["'host'", "host:port"]),
        (replace(GOOD, sharding=Sharding(embed="data+fsdpp")), ["sharding.embed", "'fsdpp'", "'fsdp'"]),
    ],
)
def test_validation_names_every_problem(config, words):
    with pytest.raises(BadInput) as error:
        validate(config)
    assert all(word in str(error.value) for word in words), str(error.value)
    validate(GOOD)


def test_a_day_is_a_valid_template_date():
    validate(replace(GOOD, data=replace(GOOD.data, template_date="2026-02-03")))


def test_the_shipped_configs_are_valid():
    from pathlib import Path

    files = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))
    assert files
    for path in files:
        validate(load_config(path))
