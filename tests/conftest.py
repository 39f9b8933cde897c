"""Eight simulated devices for every test, a tiny model with a real tokenizer, and batches of ragged documents."""

import atexit
import json
import os
import socket
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest

from sft_jax.data.pack.batches import Batches
from sft_jax.data.pack.packing import plan_packing
from sft_jax.data.pack.store import Example
from sft_jax.model.architecture import Architecture, LayerSpec
from sft_jax.model.decoder import initialise
from sft_jax.parallel.mesh import AXES

jax.config.update("jax_num_cpu_devices", 8)

FAST_TO_COMPILE = ["--xla_backend_optimization_level=0"]
"""Most of the tests' time is XLA's compiler, and their programs run for milliseconds: with these the compiler takes a
quarter of the time, here and in every process that is started. OPTIMISED=1 leaves them out, for tests in which a real
model computes for minutes (make parity, make long)."""
if jax.__version_info__ < (0, 11):  # later ones do not know it, and a flag that XLA does not know ends the process
    FAST_TO_COMPILE.append("--xla_cpu_use_fusion_emitters=false")
if not os.environ.get("OPTIMISED"):
    os.environ["XLA_FLAGS"] = " ".join([*FAST_TO_COMPILE, os.environ.get("XLA_FLAGS", "")]).strip()


def _share_compiled_programs() -> None:
    """One compilation cache for every process of a test run: pytest, its workers, and all that the tests start.

    `JAX_COMPILATION_CACHE_DIR` names a directory that several runs share (.ci/run); else it ends with this run.
    """
    directory = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if directory is None:
        made = tempfile.TemporaryDirectory(prefix="sft-jax-compiled-", ignore_cleanup_errors=True)
        atexit.register(made.cleanup)
        directory = made.name
    for name, value in {
        "jax_compilation_cache_dir": directory,
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }.items():
        os.environ[name.upper()] = str(value)
        jax.config.update(name, value)


_share_compiled_programs()

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def _tokenizer():
    """Bytes as tokens, ChatML, pad == eos == <|im_end|> as SmolLM2 has it."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ("<|im_start|>", "<|im_end|>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|im_end|>", chat_template=CHATML
    )


@pytest.fixture(scope="session")
def tiny() -> Architecture:
    """Grouped heads, tied embedding, three layers; the vocabulary of the byte tokenizer and two rows more."""
    return Architecture(
        vocab=260,
        embed=32,
        mlp=64,
        layers=(LayerSpec(),) * 3,
        heads=4,
        kv_heads=2,
        head_dim=8,
        max_positions=512,
        tied=True,
    )


@pytest.fixture(scope="session")
def tiny_parameters(tiny):
    """Random float32 parameters of `tiny`, larger than usual so that logits differ."""
    parameters = jax.jit(initialise, static_argnums=(0, 1))(tiny, 0)
    return {name: value * (5 if value.ndim > 2 else 1) for name, value in parameters.items()}


@pytest.fixture(scope="session")
def tokenizer():
    return _tokenizer()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory, tiny, tiny_parameters, tokenizer) -> Path:
    """`tiny` as a Hugging Face directory with its tokenizer."""
    from sft_jax.weights.export import export

    path = tmp_path_factory.mktemp("model") / "tiny"
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_act": "silu",
        "vocab_size": tiny.vocab,
        "hidden_size": tiny.embed,
        "intermediate_size": tiny.mlp,
        "num_hidden_layers": tiny.depth,
        "num_attention_heads": tiny.heads,
        "num_key_value_heads": tiny.kv_heads,
        "head_dim": tiny.head_dim,
        "max_position_embeddings": tiny.max_positions,
        "rms_norm_eps": tiny.norm_eps,
        "rope_theta": tiny.layers[0].rope.theta,
        "tie_word_embeddings": True,
    }
    export(tiny_parameters, tiny, config, tokenizer, path)
    return path


@pytest.fixture(scope="session")
def examples() -> list[Example]:
    """Ragged documents: 3 to 40 tokens, about half of them trained, some weights fractional."""
    random = np.random.default_rng(0)
    made = []
    for line in range(1, 61):
        length = int(random.integers(3, 41))
        weights = random.choice([0.0, 1.0, 0.5], size=length, p=[0.5, 0.4, 0.1]).astype(np.float32)
        weights[0], weights[-1] = 0.0, 1.0
        tokens = random.integers(0, 258, length).astype(np.int32)
        made.append(Example(f"row-{line}", "demos.jsonl", line, tokens, weights))
    return made


@pytest.fixture(scope="session")
def make_batches(examples):
    """(batch_size, accumulation, packing) -> Batches of 64-token rows over `examples`."""

    def make(batch_size: int = 8, accumulation: int = 1, packing: str = "best_fit", **kwargs) -> Batches:
        lengths = np.array([len(example.tokens) for example in examples])
        targets = np.array([example.targets for example in examples])
        plan = plan_packing(lengths, targets, 64, 64, packing)  # type: ignore[arg-type]
        return Batches(examples, plan, 0, batch_size, accumulation, **kwargs)

    return make


@pytest.fixture(scope="session")
def mesh_of():
    """Axis sizes -> a mesh over the first devices of the eight."""

    def make(**sizes: int) -> jax.sharding.Mesh:
        shape = tuple(sizes.get(axis, 1) for axis in AXES)
        devices = np.array(jax.devices()[: int(np.prod(shape))]).reshape(shape)
        return jax.sharding.Mesh(devices, AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(AXES))

    return make


@pytest.fixture
def demonstrations(tmp_path) -> Path:
    """Forty-eight conversations and six more held out, as JSONL beside each other."""
    for name, count in (("train.jsonl", 48), ("held_out.jsonl", 6)):
        rows = [
            {
                "messages": [
                    {"role": "user", "content": f"Say {name[0]}{i}."},
                    {"role": "assistant", "content": f"{name[0]}{i}" * (i % 4 + 1)},
                ]
            }
            for i in range(count)
        ]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return tmp_path / "train.jsonl"


@pytest.fixture
def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
