"""`sft-jax plan`: on devices that are not here, from nothing but a config.json."""

import html
import json
import re
from importlib.metadata import PackageNotFoundError

import jax
import pytest

from sft_jax.plan import aot

SHARDING = ("--show", "sharding")


@pytest.fixture
def only_a_config(tiny_model, tmp_path):
    """A model directory without weights or tokenizer; the data of the config file need not exist."""
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text((tiny_model / "config.json").read_text())
    return ("--model.path", tmp_path / "bare", "--data.train", "nowhere.jsonl", "--data.eval", "--train.eval-every", 0)


def test_the_plan_shows_every_array_and_who_holds_it(run, config_file, only_a_config, tmp_path):
    options = ("--mesh.data", 2, "--mesh.fsdp", 2, "--mesh.tensor", 2, "--parameter", "*query.kernel")
    page = tmp_path / "plan.html"
    status, out, err = run("plan", config_file, *only_a_config, *SHARDING, *options, "--html", page)
    assert status == 0, err
    assert "mesh of 8 devices: data 2 x fsdp 2 x tensor 2" in out
    assert re.search(r"layers\.0:3\.attention\.query\.kernel +3x32x4x8 +layers embed:fsdp heads:tensor head_dim", out)
    assert "every replica holds all parameters" in out and "here every token is a target" in out
    assert "heads 2..3  held by fsdp 1, tensor 1, each data" in out
    text = page.read_text(encoding="utf-8")
    assert text.count('<tr class="array">') == 3 * 11 + 1 + 6 + 11 and "http" not in text


def test_the_plan_is_one_json_object(run, config_file, only_a_config):
    status, out, err = run("plan", config_file, *only_a_config, *SHARDING, "--topology", "v5e:4x4", "--mesh.tensor", 2,
                           "--json", "--train.batch-size", 16)  # fmt: skip
    assert status == 0, err
    found = json.loads(out)
    assert found["devices"] == 16 and found["mesh"]["fsdp"] == 8
    embedding = next(each for each in found["arrays"] if each["name"] == "embedding")
    assert embedding["spec"] == ["tensor", "fsdp"] and embedding["shard_shape"] == [130, 4]
    assert found["totals"]["parameter"]["bytes_a_device"] == sum(
        each["bytes_a_device"] for each in found["arrays"] if each["kind"] == "parameter"
    )


BAD = {
    "no number of devices": ((), ["mesh.fsdp is -1", "--topology v5e:4x4", "--devices 8"]),
    "unknown topology": (("--topology", "v5litepod:4x4"), ["v5litepod", "v5e"]),
    "not the devices": (("--mesh.fsdp", 4, "--topology", "v5e:4x4"), ["needs 4 devices, found 16"]),
    "data over slices": (("--topology", "v5e:2x4", "--slices", 2, "--train.batch-size", 16), ["mesh.data is 1", "2"]),
    "unknown array": (("--devices", 8, "--parameter", "querry"), ["'querry' is no array", "query"]),
    "too many heads": (("--mesh.tensor", 8, "--mesh.fsdp", 1), ["kv_heads 2", "tensor = 8", "nearest mesh"]),
    "longer than the model": (("--devices", 8, "--data.sequence-length", 4096), ["4096", "512 positions"]),
    "an axis without work": (
        ("--devices", 8, "--mesh.expert", 2),
        ["mesh.expert is 2", "duplicate work", "--mesh.expert 1"],
    ),
    "context does not divide": (("--devices", 3, "--mesh.fsdp", 1, "--mesh.context", 3), ["128", "context = 3", "129"]),
    "context does not divide the targets": (
        ("--devices", 4, "--mesh.fsdp", 1, "--mesh.context", 4, "--data.target-capacity", 30),
        ["data.target_capacity 30", "context = 4", "32"],
    ),
    "no such model": (("--devices", 8, "--model.path", "nowhere"), ["nowhere"]),
    "the cost on what": (("--show", "cost"), ["--topology is missing", "v5e:4x4", "--show sharding"]),
    "no time to search": (("--search-minutes", 0, "--topology", "v5e:4x4"), ["--search-minutes is 0", "more than 0"]),
    "no slices": (("--slices", 0, "--topology", "v5e:4x4"), ["--slices is 0"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_of_plan(run, config_file, only_a_config, case):
    options, words = BAD[case]
    status, _, err = run("plan", config_file, *only_a_config, *SHARDING, *options)
    assert status == 2 and "Traceback" not in err, err
    for word in words:
        assert word in err, (word, err)


KEYS = {
    *("topology", "chips", "mesh", "fits", "peak_bytes_per_chip", "hbm_bytes_per_chip", "model_flops"),
    *("executed_flops", "collective_bytes", "step_seconds", "tokens_per_second_per_chip", "mfu", "bound_by"),
    "compile_seconds",
}
"""That scripts read."""


@pytest.mark.slow
def test_the_cost_of_an_update_comes_from_the_tpus_compiler(run, config_file, only_a_config, tmp_path):
    pytest.importorskip("libtpu", reason="libtpu exists for Linux on x86-64 alone")
    page = tmp_path / "plan.html"
    options = ("--topology", "v5e:2x4", "--json", "--html", page)
    status, out, err = run("plan", config_file, *only_a_config, *options)
    assert status == 0, err
    found = json.loads(out)
    assert set(found) > KEYS and found["method"] == "compiled" and found["fits"] is True
    assert (found["topology"], found["chips"], found["mesh"]["fsdp"]) == ("v5e:2x4", 8, 8)
    assert 0 < found["argument_bytes_per_chip"] < found["peak_bytes_per_chip"] < found["hbm_bytes_per_chip"] == 2**34
    assert 0 < found["model_flops"] < found["executed_flops"] and found["compile_seconds"] > 0
    assert sum(found["collective_bytes"]["fsdp"].values()) > 0 and found["networks"]["fsdp"] == ["ici"]
    tokens = found["step_seconds"] * found["tokens_per_second_per_chip"] * 8
    assert tokens == pytest.approx(found["tokens_per_step"])
    text = page.read_text(encoding="utf-8")
    assert "to spare" in text and "http" not in text


def test_a_plan_in_closed_form_has_the_same_keys(run, config_file, only_a_config):
    price = ("--price", 2.5, "--train.steps", 100)
    status, out, err = run("plan", config_file, *only_a_config, "--topology", "h100:8", "--json", *price)
    assert status == 0, err
    found = json.loads(out)
    assert found["chip_hours"] == pytest.approx(100 * found["step_seconds"] * 8 / 3600)
    assert found["cost"] == pytest.approx(2.5 * found["chip_hours"])
    assert set(found) > KEYS and found["method"] == "analytic" and found["compile_seconds"] is None
    assert any("GPU programs cannot be compiled" in note for note in found["notes"])


def test_a_search_shows_the_best_layouts_and_what_to_paste(run, config_file, only_a_config, tmp_path):
    page = tmp_path / "search.html"
    price = ("--price", 2.5, "--train.steps", 100)
    options = ("--topology", "v6e:2x4", "--search", "--analytic", *price, "--html", page)
    status, out, err = run("plan", config_file, *only_a_config, *options)
    assert status == 0, err
    assert "layouts costed in closed form" in err and "in closed form, as --analytic asks" in out
    assert re.search(r"the fastest that fits: --mesh\.\S+ \d.*--model\.remat \w+ --train\.accumulation \d", out)
    assert "mesh=Mesh(" in out and "micro-batches" in out
    text = page.read_text(encoding="utf-8")
    costs = re.search(r"the run's 100 steps</th><td>[\d.]+ chip-hours, [\d.]+ \(", html.unescape(text))
    assert "Layouts" in text and costs and costs[0].replace("</th><td>", " ") in " ".join(out.split())
    status, out, _ = run("plan", config_file, *only_a_config, *options[:-2], "--json")
    found = json.loads(out)
    times = [each["step_seconds"] for each in found["search"]]
    assert times == sorted(times) and found["step_seconds"] == times[0] and found["options"].startswith("--mesh.")


LARGE = ("configs/llama31_8b.py", "--analytic")


def test_what_does_not_fit_is_refused_with_the_numbers_and_a_layout_that_does(run):
    options = ("--topology", "v6e:2x4", "--model.remat", "none", "--data.sequence-length", 8192)
    status, out, err = run("plan", *LARGE, *options, "--json")
    assert status == 2 and json.loads(out)["fits"] is False and "Traceback" not in err
    assert re.search(r"does not fit v6e:2x4: needs [\d.]+ GiB per chip, 31\.52 GiB are available", err)
    offered = re.search(r"nearest layout that does \(in closed form\): (.*)$", err, re.MULTILINE)
    assert offered is not None
    status, out, err = run("plan", *LARGE, *options, *offered[1].split(), "--json")
    assert status == 0 and json.loads(out)["fits"] is True, err


def test_where_nothing_fits_it_says_what_else_to_change(run):
    status, _, err = run("plan", *LARGE, "--topology", "v5e:2x2")
    assert status == 2 and "No layout of this batch fits these chips: take more of them" in err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--topology", "v5litepod-16"), ["for v5litepod-16 use v5e:4x4"]),
        (("--topology", "v6e:2x4", "--mesh.fsdp", 16), ["needs 16 devices, found 8"]),
        (("--topology", "h100:8", "--slices", 2), ["nodes of 8", "h100:16"]),
        (("--topology", "v6e:2x4", "--slices", 2), ["mesh.data is 1", "--mesh.data 2"]),
        (("--topology", "v6e:2x4", "--train.batch-size", 12), ["12 rows", "nearest valid batch sizes: 8 or 16"]),
        (("--topology", "v6e:2x4", "--price", "-1"), ["--price is -1.0", "chip-hour"]),
        (("--topology", "v6e:2x4", "--serach"), ["--serach", "--search"]),
    ],
)
def test_bad_input_of_a_costed_plan(run, options, words):
    status, out, err = run("plan", *LARGE, *options)
    assert status == 2 and "Traceback" not in err and not out, err
    for word in words:
        assert word in err, (word, err)


def test_without_the_compiler_the_install_line_is_named(run, monkeypatch):
    def missing(_):
        raise PackageNotFoundError

    monkeypatch.setattr(aot.sys, "platform", "linux")
    monkeypatch.setattr(aot.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(aot, "version", missing)
    status, out, err = run("plan", *LARGE[:1], "--topology", "v6e:4x4")
    assert status == 2 and not out
    assert "libtpu is not installed" in err and 'pip install "jax[tpu]"' in err and "--analytic" in err
    monkeypatch.setattr(aot, "version", lambda _: "0.0.1")
    status, _, err = run("plan", *LARGE[:1], "--topology", "v6e:4x4")
    assert status == 2 and "libtpu is 0.0.1" in err and f"jax {jax.__version__} needs ==0.0." in err


@pytest.mark.parametrize(("system", "machine"), [("darwin", "arm64"), ("linux", "aarch64")])
def test_where_the_compiler_does_not_exist_the_plan_is_analytic_and_says_so(run, monkeypatch, system, machine):
    monkeypatch.setattr(aot.sys, "platform", system)
    monkeypatch.setattr(aot.platform, "machine", lambda: machine)
    status, out, err = run("plan", *LARGE[:1], "--topology", "v6e:4x4", "--json")
    assert status == 0, err
    found = json.loads(out)
    assert found["method"] == "analytic"
    assert any(f"{system} on {machine}" in note and "only for Linux on x86-64" in note for note in found["notes"])
