"""Opening models and streaming their tensors into shards."""

import dataclasses
import json
import logging
import shutil
import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sft_jax.config import Sharding
from sft_jax.errors import BadInput
from sft_jax.model.architecture import Architecture, LayerSpec
from sft_jax.model.decoder import abstract_parameters
from sft_jax.model.families import config_of
from sft_jax.weights import load as load_module
from sft_jax.weights.export import export
from sft_jax.weights.load import load_parameters, open_model
from sft_jax.weights.names import sources_of

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture
def edited(llama3, tmp_path):
    """(change of the tensors, in place; change of the config) -> the directory of the golden model so changed."""

    def edited(change=lambda tensors: None, **config):
        directory = tmp_path / "model"
        shutil.copytree(llama3, directory)
        tensors = load_file(directory / "model.safetensors")
        change(tensors)
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        path = directory / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
        return directory

    return edited


@dataclasses.dataclass(frozen=True)
class Counted:
    """Tensors that count what is read of them."""

    tensors: object
    elements: dict[str, int]

    @property
    def shapes(self):
        return self.tensors.shapes  # type: ignore[attr-defined]

    def read(self, name, slices=None):
        part = self.tensors.read(name, slices)  # type: ignore[attr-defined]
        self.elements[name] = self.elements.get(name, 0) + part.size
        return part


def counted(files):
    counter = Counted(files.tensors, {})
    return dataclasses.replace(files, tensors=counter), counter.elements


def same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(np.asarray(one[name]), np.asarray(other[name]), err_msg=name)


def split_in_two(directory):
    """Cut model.safetensors into two files with an index."""
    tensors = load_file(directory / "model.safetensors")
    weight_map = {}
    for i, name in enumerate(sorted(tensors)):
        weight_map[name] = f"model-0000{i % 2 + 1}-of-00002.safetensors"
    for file in set(weight_map.values()):
        save_file({name: tensors[name] for name, where in weight_map.items() if where == file}, directory / file)
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return directory


def test_each_parameter_is_the_checkpoints_tensor_in_our_layout(llama3, load):
    theirs = load_file(llama3 / "model.safetensors")
    _, ours = load(llama3)
    query = theirs["model.layers.2.self_attn.q_proj.weight"]
    by_head = query.reshape(4, 8, 32).transpose(2, 0, 1)
    np.testing.assert_array_equal(ours["layers.0:3.attention.query.kernel"][2], by_head)
    output = theirs["model.layers.1.self_attn.o_proj.weight"]
    by_head = output.reshape(32, 4, 8).transpose(1, 2, 0)
    np.testing.assert_array_equal(ours["layers.0:3.attention.output.kernel"][1], by_head)
    np.testing.assert_array_equal(
        ours["layers.0:3.mlp.down.kernel"][0], theirs["model.layers.0.mlp.down_proj.weight"].T
    )
    np.testing.assert_array_equal(ours["head"], theirs["lm_head.weight"])


def test_a_checkpoint_in_two_files_gives_the_same_parameters(llama3, edited, load):
    same(load(split_in_two(edited()))[1], load(llama3)[1])


@pytest.mark.parametrize(
    ("axes", "rules"),
    [
        ({"data": 8, "fsdp": 1}, Sharding()),
        ({"fsdp": 4, "tensor": 2}, Sharding()),
        ({"fsdp": 1, "tensor": 8}, Sharding(heads="none", kv_heads="none", head_dim="tensor")),
        ({"data": 2, "fsdp": 2, "tensor": 2}, Sharding(vocab="tensor+fsdp", embed="none", mlp="fsdp", head_dim="data")),
    ],
)
def test_the_layout_does_not_change_the_parameters(golden, load, axes, rules):
    same(load(golden, rules=rules, **axes)[1], load(golden)[1])


def test_each_device_holds_its_shard_and_no_more(llama3, load):
    _, parameters = load(llama3)
    for name, parameter in parameters.items():
        divided = 1 if name.endswith("norm.scale") else 8
        assert {shard.data.size for shard in parameter.addressable_shards} == {parameter.size // divided}, name
    assert parameters["embedding"].addressable_shards[0].data.shape == (128, 4)
    assert parameters["layers.0:3.attention.query.kernel"].addressable_shards[0].data.shape == (3, 4, 4, 8)


def test_everything_is_read_once(llama3, layout_of):
    files, elements = counted(open_model(str(llama3)))
    load_parameters(files, files.architecture, layout_of(files.architecture))
    assert elements == {name: int(np.prod(shape)) for name, shape in files.tensors.shapes.items()}


def test_replicas_share_one_read(llama3, layout_of):
    files, elements = counted(open_model(str(llama3)))
    load_parameters(files, files.architecture, layout_of(files.architecture, data=8, fsdp=1))
    assert elements == {name: int(np.prod(shape)) for name, shape in files.tensors.shapes.items()}


def test_a_part_of_a_tensor_is_read_alone(llama3):
    files = open_model(str(llama3))
    whole = files.read("model.layers.0.mlp.up_proj.weight")
    part = files.read("model.layers.0.mlp.up_proj.weight", (slice(3, 5), slice(8, 12)))
    assert part.shape == (2, 4)
    np.testing.assert_array_equal(part, whole[3:5, 8:12])


def test_the_host_never_holds_more_than_one_parameter(tmp_path, layout_of, monkeypatch):
    fill = load_module._fill

    def unaligned(*arguments):
        """On a CPU, JAX keeps an aligned array as the shard itself: then device memory would be counted as well."""
        part = fill(*arguments)
        raw = np.empty(part.nbytes + 64, np.uint8)
        start = -raw.ctypes.data % 64 + 4
        copy = raw[start : start + part.nbytes].view(part.dtype).reshape(part.shape)
        copy[...] = part
        return copy

    monkeypatch.setattr(load_module, "_fill", unaligned)
    a = Architecture(
        64, embed=64, mlp=1024, layers=(LayerSpec(),) * 8, heads=4, kv_heads=2, head_dim=8, max_positions=64
    )
    shapes = {name: shape.shape for name, shape in abstract_parameters(a)[0].items()}
    export({n: jnp.ones(shape) for n, shape in shapes.items()}, a, config_of(a, "llama"), None, tmp_path / "made")
    files, layout = open_model(str(tmp_path / "made")), layout_of(a)
    load_parameters(files, a, layout)  # fills caches that are not the load's own memory
    tracemalloc.start()
    load_parameters(files, a, layout)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    largest, total = (4 * int(f(np.prod(shape) for shape in shapes.values())) for f in (max, sum))
    assert (largest, total > 3 * largest) == (2**21, True)
    assert peak < 1.1 * largest


def test_rows_added_to_the_vocabulary_are_zero(llama3, load):
    plain = open_model(str(llama3)).architecture
    padded = plain.padded_to(48)
    _, parameters = load(llama3, padded, Sharding(vocab="fsdp", embed="none"))
    _, whole = load(llama3)
    for name in ("embedding", "head"):
        assert parameters[name].shape == (144, 32)
        np.testing.assert_array_equal(parameters[name][:128], whole[name])
        assert not np.asarray(parameters[name][128:]).any()


def test_parameters_come_in_the_dtype_asked_for(llama3, load):
    _, wide = load(llama3)
    _, narrow = load(llama3, dtype="bfloat16")
    assert {p.dtype.name for p in wide.values()} == {"float32"}
    for name, parameter in narrow.items():
        np.testing.assert_array_equal(np.asarray(parameter), np.asarray(wide[name]).astype("bfloat16"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_checkpoints_become_float32_masters(llama3, edited, load, dtype):
    def narrow(tensors):
        tensors |= {name: tensor.astype(dtype) for name, tensor in tensors.items()}

    _, wide = load(llama3)
    for name, parameter in load(edited(narrow))[1].items():
        assert parameter.dtype == np.float32
        np.testing.assert_array_equal(np.asarray(parameter), np.asarray(wide[name]).astype(dtype).astype("float32"))


def test_missing_tensors_are_all_named(edited, load):
    gone = ["model.norm.weight", "model.layers.1.mlp.up_proj.weight", HEAD]
    directory = edited(lambda tensors: [tensors.pop(name) for name in gone])
    with pytest.raises(BadInput) as error:
        load(directory)
    assert "3 missing" in str(error.value) and all(name in str(error.value) for name in gone)


def test_extra_tensors_are_all_named(edited, load):
    extra = ["model.layers.3.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.bias"]
    directory = edited(lambda tensors: tensors.update({name: np.zeros(3, np.float32) for name in extra}))
    with pytest.raises(BadInput) as error:
        load(directory)
    assert "2 not in the model" in str(error.value) and all(name in str(error.value) for name in extra)


def test_wrong_shapes_are_named_with_both(edited, load):
    with pytest.raises(BadInput, match=r"mlp.up_proj.weight \[48, 32\], expected \[64, 32\]"):
        load(edited(intermediate_size=64))


def test_rotary_buffers_of_old_checkpoints_are_ignored(llama3, edited, load):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    same(load(edited(lambda tensors: tensors.update({name: np.ones(4, np.float32)})))[1], load(llama3)[1])


def test_a_tied_checkpoint_may_hold_the_same_head(edited, load):
    directory = edited(lambda t: t.update({HEAD: t[EMBEDDING].copy()}), tie_word_embeddings=True)
    files, parameters = load(directory)
    assert files.architecture.tied and "head" not in parameters


def test_a_tied_checkpoint_with_another_head_is_untied_as_in_transformers(llama3, edited, load, caplog):
    with caplog.at_level(logging.WARNING):
        files, parameters = load(edited(tie_word_embeddings=True))
    assert not files.architecture.tied and files.config["tie_word_embeddings"] is False
    assert "lm_head.weight differs from model.embed_tokens.weight" in caplog.text
    same(parameters, load(llama3)[1])


def test_a_tied_checkpoint_may_hold_only_the_head(llama3, edited, load):
    _, parameters = load(edited(lambda tensors: tensors.pop(EMBEDDING), tie_word_embeddings=True))
    assert "head" not in parameters
    np.testing.assert_array_equal(parameters["embedding"], load(llama3)[1]["head"])


def test_a_missing_file_of_several_is_named(edited):
    directory = split_in_two(edited())
    (directory / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(BadInput, match=r"files that are missing: model-00002-of-00002\.safetensors"):
        open_model(str(directory))


def test_a_tensor_that_only_the_index_knows_is_named(edited):
    directory = split_in_two(edited())
    index = directory / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.ghost.weight"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(BadInput, match=r"names tensors that no file contains: model.ghost.weight"):
        open_model(str(directory))


def test_a_file_cut_short_is_named(edited):
    directory = edited()
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BadInput, match=r"model.safetensors: not a readable safetensors file \(truncated\?\)"):
        open_model(str(directory))


def test_integers_are_no_weights(edited):
    directory = edited(lambda tensors: tensors.update({"model.norm.weight": np.ones(32, np.int8)}))
    with pytest.raises(BadInput, match=r"tensor model\.norm\.weight is I8; supported: F64, F32, F16, BF16"):
        open_model(str(directory))


def test_pickled_weights_are_not_read(edited):
    directory = edited()
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(BadInput, match=r"neither model.safetensors nor .*found pytorch_model.bin: save it again"):
        open_model(str(directory))


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda d: None, r"no config.json. A Hugging Face directory has one."),
        (lambda d: (d / "m.gguf").touch(), r"no config.json. Pass the file .*m.gguf itself"),
        (lambda d: (d / "config.json").write_text('{"a": 1,}'), r"config.json:1:9: not valid JSON"),
        (lambda d: (d / "config.json").write_text("[]"), r"config.json: contains a list, expected an object"),
    ],
)
def test_a_directory_that_is_no_model_says_why(tmp_path, prepare, message):
    prepare(tmp_path)
    with pytest.raises(BadInput, match=message):
        open_model(str(tmp_path))


def test_a_path_that_does_not_exist_says_what_a_model_is(tmp_path):
    with pytest.raises(BadInput, match=r"no such file or directory\. A model is a Hugging Face directory, a \.gguf"):
        open_model(str(tmp_path / "nothing"))


def test_the_hub_needs_an_organisation_and_a_name():
    with pytest.raises(BadInput, match="hf://onlyname: expected hf://org/name"):
        open_model("hf://onlyname")


def test_a_hub_that_cannot_be_reached_says_what_to_do(monkeypatch):
    import huggingface_hub

    def offline(*args, **kwargs):
        raise huggingface_hub.errors.LocalEntryNotFoundError("An error happened while trying to locate the files.")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(BadInput, match=r"hf://org/name: could not be downloaded: An error.*copy the model directory"):
        open_model("hf://org/name")


def test_the_hubs_snapshot_is_opened_like_a_directory(llama3, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: {"org/name": str(llama3)}[name])
    assert open_model("hf://org/name").origin == str(llama3)


def test_without_generation_config_its_token_ids_come_from_the_config(edited):
    directory = edited()
    (directory / "generation_config.json").unlink()
    assert open_model(str(directory)).generation_config == {"bos_token_id": 1, "eos_token_id": [2, 5]}


def test_the_name_table_covers_the_golden_checkpoints(golden):
    files = open_model(str(golden))
    named = {name for source in sources_of(files.architecture, files.model_type).values() for name in source.names}
    assert named == set(files.tensors.shapes)
