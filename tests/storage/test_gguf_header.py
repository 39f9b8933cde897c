"""Headers of GGUF files: what the gguf package wrote is read as its own reader does, and damage is named."""

import struct

import gguf
import numpy as np
import pytest

from sft_jax.errors import BadInput
from sft_jax.storage.gguf_header import read_header

TOKENS = [f"token {i} 日本" for i in range(500)]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A value of every type, a vocabulary, tensors plain and quantised, and an alignment of its own."""
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(64)
    for name in ("uint8", "uint16", "uint32", "uint64"):
        getattr(writer, f"add_{name}")(f"a.{name}", 200)
    for name in ("int8", "int16", "int32", "int64"):
        getattr(writer, f"add_{name}")(f"a.{name}", -100)
    writer.add_float32("a.float32", 1e-6)
    writer.add_float64("a.float64", 1e-6)
    writer.add_bool("a.bool", True)
    writer.add_string("a.string", "Grüße")
    writer.add_array("a.few", [3, 1, 2])
    writer.add_array("a.names", ["x", ""])
    writer.add_token_list(TOKENS)
    writer.add_token_scores([0.5 + i for i in range(len(TOKENS))])
    writer.add_token_types([1] * len(TOKENS))
    writer.add_eos_token_id(2)
    writer.add_tensor("matrix", np.arange(12, dtype=np.float32).reshape(3, 4))
    q8_0 = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor("blocks", gguf.quants.quantize(np.ones((2, 64), np.float32), q8_0), raw_dtype=q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_it_is_read_as_by_the_package_that_wrote_it(path):
    header, reader = read_header(path), gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert header.metadata == fields and header.metadata["tokenizer.ggml.tokens"] == TOKENS
    assert {name: type(value) for name, value in header.metadata.items()} == {
        name: type(value) for name, value in fields.items()
    }
    assert header.metadata["a.float32"] == np.float32(1e-6) and header.metadata["a.bool"] is True
    assert list(header.tensors) == ["matrix", "blocks"] and header.tensors["matrix"].shape == (3, 4)
    for tensor in reader.tensors:
        found = header.tensors[tensor.name]
        assert (found.start, found.kind) == (tensor.data_offset, tensor.tensor_type)
        assert found.shape == tuple(reversed(tensor.shape.tolist()))


def test_a_header_cut_anywhere_is_named(path, tmp_path):
    header = path.read_bytes()[: read_header(path).tensors["matrix"].start - 64]
    for size in {*range(0, len(header), 97), *range(1200), *range(len(header) - 300, len(header))}:
        (tmp_path / "cut.gguf").write_bytes(header[:size])
        with pytest.raises(BadInput, match=r"cut\.gguf: not a readable .*(truncated near byte|expected GGUF)"):
            read_header(tmp_path / "cut.gguf")


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def entry(kind: int, value: bytes, key: str = "a") -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def tensor(dimensions: int) -> bytes:
    return string("x") + struct.pack(f"<I{dimensions}QIQ", dimensions, *[1] * dimensions, 0, 0)


ONE = entry(4, struct.pack("<I", 7))


@pytest.mark.parametrize(
    ("entries", "tensors", "message"),
    [
        ([entry(13, b"")], [], "unknown type 13"),
        ([entry(9, struct.pack("<IQ", 13, 1))], [], "unknown type 13"),
        ([entry(9, struct.pack("<IQIQ", 9, 1, 4, 0))], [], "unknown type 9"),
        ([entry(9, struct.pack("<IQ", 4, 2**62))], [], "truncated near byte"),
        ([entry(9, struct.pack("<IQ", 8, 2**63))], [], "truncated near byte"),
        ([entry(8, struct.pack("<Q", 2**63))], [], r"a string of 9,223,372,036,854,775,808 bytes, 0 left"),
        ([entry(8, struct.pack("<Q", 1) + b"\xff")], [], "utf-8"),
        ([ONE, ONE], [], "duplicate name a"),
        ([entry(4, struct.pack("<I", 0), "general.alignment")], [], "general.alignment is 0"),
        ([], [tensor(1), tensor(2)], "duplicate name x"),
        ([], [tensor(5)], "x has 5 dimensions"),
        ([], [tensor(0)], "x has 0 dimensions"),
    ],
)
def test_damage_is_named(tmp_path, entries, tensors, message):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries)) + b"".join((*entries, *tensors)))
    with pytest.raises(BadInput, match=rf"m\.gguf: not a readable GGUF file: .*{message}"):
        read_header(path)


def test_a_file_of_another_version_or_byte_order_is_named(tmp_path):
    for version, message in (
        (struct.pack("<I", 1), "version 1, expected GGUF version 2 or 3$"),
        (struct.pack(">I", 3), "big-endian: convert it with gguf-convert-endian .* little$"),
    ):
        (tmp_path / "m.gguf").write_bytes(b"GGUF" + version + bytes(100))
        with pytest.raises(BadInput, match=message):
            read_header(tmp_path / "m.gguf")
