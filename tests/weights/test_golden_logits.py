"""Our logits against those that transformers computed (tests/parity/record_goldens.py)."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax.model.architecture import Rope
from sft_jax.model.attention.reference import TokenPositions
from sft_jax.model.decoder import forward, logits
from sft_jax.model.layers import Compute


def our_logits(architecture, parameters, tokens, **compute):
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)

    @jax.jit
    def run(parameters):
        places = TokenPositions(positions, jnp.ones_like(positions))
        hidden, _ = forward(architecture, Compute(**compute), parameters, jnp.asarray(tokens), places)
        return logits(architecture, parameters, hidden)

    return np.asarray(run(parameters))


def largest_difference(directory, architecture, parameters, **compute) -> float:
    with np.load(directory / "logits.npz") as recorded:
        ours = our_logits(architecture, parameters, recorded["tokens"], **compute)
        return float(np.abs(ours - recorded["logits"]).max())


@pytest.mark.parametrize("attention", ["reference", "blockwise"])
def test_logits_equal_those_of_transformers(golden, load, attention):
    files, parameters = load(golden)
    assert largest_difference(golden, files.architecture, parameters, attention=attention) <= 1e-4


def turned_by(rope):
    return lambda a: dataclasses.replace(a, layers=tuple(dataclasses.replace(layer, rope=rope) for layer in a.layers))


def seeing(windows):
    def change(a):
        repeated = itertools.islice(itertools.cycle(windows), a.depth)
        return dataclasses.replace(
            a, layers=tuple(dataclasses.replace(layer, window=w) for layer, w in zip(a.layers, repeated, strict=True))
        )

    return change


@pytest.mark.parametrize(
    ("case", "change"),
    [
        ("llama31", turned_by(Rope())),
        ("llama31", turned_by(Rope(10_000.0, "llama3", 8.0, 1.0, 4.0, 64))),
        ("llama_biased", turned_by(Rope())),
        ("llama3", turned_by(Rope())),
        ("qwen2_windows", seeing((10, None))),
        ("qwen2_windows", seeing((10_000, None))),
        ("qwen3", {"norm_eps": 1e-2}),
    ],
)
def test_the_comparison_notices_a_wrong_switch(goldens, load, case, change):
    files, parameters = load(goldens / case)
    right = files.architecture
    wrong = change(right) if callable(change) else dataclasses.replace(right, **change)
    assert largest_difference(goldens / case, wrong, parameters) > 1e-3


@pytest.mark.parametrize("name", ["attention.query.kernel", "attention.key.kernel"])
def test_the_comparison_notices_rows_left_as_llama_cpp_permutes_them(goldens, load, name):
    files, parameters = load(goldens / "llama3")
    for full in [full for full in parameters if full.endswith(name)]:
        kernel = parameters[full]
        pairs = kernel.reshape(*kernel.shape[:-1], 2, kernel.shape[-1] // 2)
        parameters[full] = pairs.swapaxes(-1, -2).reshape(kernel.shape)
    assert largest_difference(goldens / "llama3", files.architecture, parameters) > 1e-1
