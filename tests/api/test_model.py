"""A loaded model, as a notebook uses it."""

import re
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import sft_jax as sft
from sft_jax.config import Sharding

ROW = {"messages": [{"role": "user", "content": "Say a."}, {"role": "assistant", "content": "a!"}]}


@pytest.fixture(scope="module")
def model(tiny_model) -> sft.Model:
    return sft.load(str(tiny_model), mesh=sft.Mesh(data=8, fsdp=1))


def test_importing_the_package_takes_less_than_a_second_and_no_jax():
    code = "import time; t = time.time(); import sft_jax, sys; print(time.time() - t, 'jax' in sys.modules)"
    started = time.perf_counter()
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert float(out[0]) < 1 and out[1] == "False", time.perf_counter() - started


def test_show_colours_what_trains(model):
    shown = model.show(ROW)
    assert model.tokenizer.decode(shown.trained) == "a!<|im_end|>"
    assert "<b title=" in shown._repr_html_() and "<script" not in shown._repr_html_()
    assert "\x1b[" in str(shown) and "a!" in re.sub(r"\x1b\[[0-9;]*m", "", str(shown))
    assert repr(shown) == f"Shown({len(shown.pieces)} tokens, 3 trained)"


def test_text_in_a_row_is_no_markup(model):
    shown = model.show({"text": "[/b] <b>&"})
    assert "&lt;" in shown._repr_html_() and "&amp;" in shown._repr_html_()
    assert "[/b]" in str(shown).replace("\x1b[30;42m", "").replace("\x1b[0m", "")


def test_generate_takes_texts_messages_and_rows_and_is_the_same_again(model):
    prompts = ["Say", [{"role": "user", "content": "Say a."}], {"messages": ROW["messages"][:1]}]
    found = model.generate(prompts, n=2, temperature=1.0, max_new_tokens=5, seed=3)
    assert [len(each) for each in found] == [2, 2, 2]
    assert found == model.generate(prompts, n=2, temperature=1.0, max_new_tokens=5, seed=3)
    assert found != model.generate(prompts, n=2, temperature=1.0, max_new_tokens=5, seed=4)
    one = found[0][0]
    assert len(one.tokens) == len(one.logprobs) <= 5 and one.finish in ("stop", "length")
    assert all(log_p <= 0 for log_p in one.logprobs) and isinstance(one.text, str)


def test_another_seed_compiles_nothing(model):
    prompts = ["Say something else"]
    model.generate(prompts, temperature=0.7, max_new_tokens=4, seed=0)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None
    )
    model.generate(prompts, temperature=0.7, max_new_tokens=4, seed=12345)
    assert not compiled


def test_scores_line_up_with_tokens(model):
    [row] = model.score([ROW])
    assert row["logprobs"][0] is None and len(row["logprobs"]) == len(row["tokens"]) == len(row["weights"])
    [longer] = model.score(["some text"], train_on="all")
    assert longer["weights"][0] == 0 and all(weight == 1 for weight in longer["weights"][1:])


def test_an_export_comes_back_the_same_and_another_format_is_refused(model, tmp_path):
    model.export(tmp_path / "out")
    again = sft.load(tmp_path / "out", mesh=sft.Mesh(fsdp=8))
    for name, array in model.parameters.items():
        np.testing.assert_array_equal(np.asarray(array), np.asarray(again.parameters[name]))
    with pytest.raises(sft.BadInput, match="not empty"):
        model.export(tmp_path / "out")
    with pytest.raises(sft.BadInput, match="format is 'onnx'"):
        model.export(tmp_path / "other", format="onnx")  # type: ignore[arg-type]


def test_int8_kernels_load_in_shards_and_sample(tiny_model, model, mesh_of):
    whole = Sharding(kv_heads="none", heads="none")
    small = sft.load(str(tiny_model), mesh=mesh_of(fsdp=2, tensor=2), sharding=whole, quantization="int8")
    name = "layers.0:3.mlp.up.kernel"
    assert small.parameters[f"{name}.values"].dtype == "int8" and name not in small.parameters
    assert {s.data.shape for s in small.parameters[f"{name}.values"].addressable_shards} == {(3, 16, 32)}
    assert sum(x.nbytes for x in small.parameters.values()) < 0.6 * sum(x.nbytes for x in model.parameters.values())
    exact, near = (np.array(each.score([ROW])[0]["logprobs"][1:]) for each in (model, small))
    assert 0 < np.abs(exact - near).max() < 0.3
    assert len(small.generate("Say", max_new_tokens=3)[0][0].tokens) <= 3


def test_a_model_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(sft.BadInput, match="no such file or directory"):
        sft.load(tmp_path / "nothing")
    with pytest.raises(sft.BadInput, match=r"mesh .* needs"):
        sft.load(tmp_path, mesh=sft.Mesh(data=3, fsdp=1))
