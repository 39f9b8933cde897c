"""GGUF files made from the golden models the way llama.cpp converts them, read back."""

import json

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file

from sft_jax.errors import BadInput
from sft_jax.weights.gguf import Gguf, Stored, hugging_face_name
from sft_jax.weights.load import open_model

Q8_0 = gguf.GGMLQuantizationType.Q8_0


def permuted(tensor, heads):
    """llama.cpp's LlamaModel.permute (convert_hf_to_gguf.py), on weights and biases of queries and keys."""
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.swapaxes(1, 2).reshape(tensor.shape)


def llama3_divisors(rope, head_dim):
    """LlamaModel.generate_extra_tensors (convert_hf_to_gguf.py)."""
    keys = ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor")
    original, low, high = (rope[key] for key in keys)
    factors = []
    for frequency in 1.0 / rope["rope_theta"] ** (np.arange(0, head_dim, 2, dtype=np.float32) / head_dim):
        wavelength = 2 * np.pi / frequency
        if wavelength < original / high:
            factors.append(1)
        elif wavelength > original / low:
            factors.append(rope["factor"])
        else:
            smooth = (original / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, dtype=np.float32)


def gguf_name(name):
    """The inverse of `hugging_face_name`, by llama.cpp's own table."""
    mapping = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, 3)
    found = mapping.get_name(name, try_suffixes=(".weight", ".bias"))
    assert found is not None, name
    return found


def is_quantised(tensor) -> bool:
    """llama.cpp leaves vectors alone, and rows that are no multiple of a block."""
    return tensor.ndim == 2 and tensor.shape[1] % 32 == 0


@pytest.fixture
def convert(goldens, tmp_path):
    """(case, quantised tensors?, extra metadata, extra tensors) -> a GGUF file of the golden model."""

    def convert(case, quantised=False, change=lambda writer: None, architecture=None, rope=None):
        config = json.loads((goldens / case / "config.json").read_text())
        name = architecture or config["model_type"]
        writer = gguf.GGUFWriter(tmp_path / "model.gguf", name)
        writer.add_block_count(config["num_hidden_layers"])
        writer.add_context_length(config["max_position_embeddings"])
        writer.add_embedding_length(config["hidden_size"])
        writer.add_feed_forward_length(config["intermediate_size"])
        writer.add_head_count(config["num_attention_heads"])
        writer.add_head_count_kv(config["num_key_value_heads"])
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
        rope = rope or config["rope_parameters"]
        writer.add_rope_freq_base(rope["rope_theta"])
        head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        writer.add_key_length(head_dim)
        if rope["rope_type"] == "linear":
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(rope["factor"])
        if rope["rope_type"] == "llama3":
            writer.add_tensor("rope_freqs.weight", llama3_divisors(rope, head_dim))
        change(writer)
        heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
        for theirs, tensor in load_file(goldens / case / "model.safetensors").items():
            projection = theirs.split(".")[-2]
            if config["model_type"] == "llama" and projection in heads:
                tensor = permuted(tensor, heads[projection])
            if quantised and is_quantised(tensor):
                writer.add_tensor(gguf_name(theirs), gguf.quants.quantize(tensor, Q8_0), raw_dtype=Q8_0)
            else:
                writer.add_tensor(gguf_name(theirs), tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return tmp_path / "model.gguf"

    return convert


@pytest.mark.parametrize("case", ["llama2", "llama3", "llama_biased", "qwen25_tied", "qwen3", "qwen3_tied"])
def test_a_gguf_file_gives_the_parameters_it_was_made_from(case, convert, goldens, load):
    files, parameters = load(convert(case))
    expected_files, expected = load(goldens / case)
    assert files.architecture == expected_files.architecture
    assert parameters.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(np.asarray(parameters[name]), np.asarray(expected[name]), err_msg=name)


@pytest.mark.parametrize("case", ["llama3", "qwen3"])
def test_quantised_tensors_are_dequantised_in_whole_or_in_part(case, convert, goldens):
    files = open_model(str(convert(case, quantised=True)))
    for name, tensor in load_file(goldens / case / "model.safetensors").items():
        read = files.read(name)
        assert read.dtype == np.float32
        blocks = gguf.quants.quantize(tensor, Q8_0) if is_quantised(tensor) else None
        expected = tensor if blocks is None else gguf.quants.dequantize(blocks, Q8_0)
        np.testing.assert_array_equal(read, expected, err_msg=name)
        part = tuple(slice(size // 4, size // 2 + 1) for size in tensor.shape)
        np.testing.assert_array_equal(files.read(name, part), expected[part], err_msg=name)


@pytest.mark.parametrize("columns", [(0, 128), (0, 5), (40, 100), (64, 96), (100, 128)])
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "BF16", "F16", "F32"])
def test_only_the_blocks_of_a_row_that_are_asked_for_are_dequantised(kind, columns, monkeypatch):
    quantised = gguf.GGMLQuantizationType[kind]
    whole = np.random.default_rng(0).normal(size=(6, 128)).astype(np.float32)
    stored = gguf.quants.quantize(whole, quantised)
    expected, dequantise, seen = gguf.quants.dequantize(stored, quantised), gguf.quants.dequantize, []
    monkeypatch.setattr(
        gguf.quants, "dequantize", lambda data, kind: seen.append(data.nbytes) or dequantise(data, kind)
    )
    tensors = Gguf({"x": Stored(quantised, stored.view(np.uint8))}, {"x": (6, 128)}, {})
    part = (slice(2, 5), slice(*columns))
    np.testing.assert_array_equal(tensors.read("x", part), expected[part])
    block, size = gguf.GGML_QUANT_SIZES[quantised]
    blocks = -(-columns[1] // block) - columns[0] // block
    assert seen == [3 * blocks * size]


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama_31_scaling_is_recovered_from_its_divisors(convert, factor):
    rope = {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": factor, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    scaling = open_model(str(convert("llama3", rope=rope))).config["rope_scaling"]
    assert scaling == {key: value for key, value in rope.items() if key != "rope_theta"}


def test_divisors_of_another_scaling_are_refused(convert):
    with pytest.raises(BadInput, match=r"rope_freqs.weight \(4 divisors from 1 to 8\) is not Llama 3.1's RoPE scaling"):
        open_model(str(convert("llama31")))


@pytest.mark.parametrize("length", [3, 5000])
def test_tensors_are_found_behind_a_vocabulary(convert, goldens, length):
    def vocabulary(writer):
        writer.add_token_list([f"token {i} 日本" for i in range(length)])
        writer.add_token_scores([0.5] * length)
        writer.add_token_types([1] * length)
        writer.add_eos_token_id(2)

    files = open_model(str(convert("llama3", change=vocabulary)))
    assert files.generation_config["eos_token_id"] == 2
    for name, tensor in load_file(goldens / "llama3" / "model.safetensors").items():
        np.testing.assert_array_equal(files.read(name), tensor, err_msg=name)


def test_floats_are_read_as_they_were_written(convert):
    assert open_model(str(convert("llama3"))).config["rms_norm_eps"] == 1e-6


def test_every_token_that_ends_a_turn_is_kept(convert):
    def tokens(writer):
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_eot_token_id(5)

    generation = open_model(str(convert("llama3", change=tokens))).generation_config
    assert generation == {"bos_token_id": 1, "eos_token_id": [2, 5]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.YARN), "RoPE scaling 'yarn' is not supported"),
        (lambda w: w.add_rope_dimension_count(4), "RoPE rotates 4 of 8 elements per head"),
        (lambda w: w.add_uint16("split.count", 3), "part 1 of 3; join them with `llama-gguf-split --merge"),
    ],
)
def test_what_cannot_be_computed_is_refused(convert, change, message):
    with pytest.raises(BadInput, match=message):
        open_model(str(convert("llama3", change=change)))


def test_another_architecture_is_refused_with_the_supported_ones(convert):
    with pytest.raises(BadInput, match=r"GGUF architecture 'gemma3' is not supported\. Supported: llama, qwen2, qwen3"):
        open_model(str(convert("llama3", architecture="gemma3")))


def test_a_tensor_nobody_knows_is_named(convert, load):
    extra = convert("llama3", change=lambda w: w.add_tensor("blk.0.attn_sinks.weight", np.zeros(4, np.float32)))
    with pytest.raises(BadInput, match=r"1 not in the model: blk\.0\.attn_sinks\.weight"):
        load(extra)


@pytest.mark.parametrize("size", [0, 3, 200, 60_000])
def test_a_file_cut_short_is_named(convert, size):
    path = convert("llama3")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(BadInput, match=r"model.gguf: not a readable GGUF file"):
        open_model(str(path))


def test_a_quantisation_that_nobody_can_undo_is_named_with_those_that_can_be(convert):
    def integers(writer):
        writer.add_tensor("blk.0.x.weight", np.zeros((2, 4), np.int32))

    with pytest.raises(BadInput, match=r"cannot dequantise I32\. Supported: BF16, F16, F32, .*Q8_0"):
        open_model(str(convert("llama3", change=integers)))


def test_a_file_that_is_no_gguf_is_named(tmp_path):
    (tmp_path / "model.gguf").write_text("hello" * 100)
    with pytest.raises(BadInput, match="not a readable GGUF file"):
        open_model(str(tmp_path / "model.gguf"))


def test_names_agree_with_the_table_of_llama_cpp(golden):
    for name in load_file(golden / "model.safetensors"):
        assert hugging_face_name(gguf_name(name)) == name
