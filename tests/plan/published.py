"""Throughput that others published, planned for the same model, batch, length and chips.

`python -m tests.plan.published` compiles every case (about ten minutes on two cores) and prints the table of
docs/verification.md. The figures are from the training recipes that Google publishes for MaxText
(AI-Hypercomputer/tpu-recipes; for v5p MaxText's own configs): pretraining, float32 weights, bfloat16 compute, synthetic
data of one document a row, flash attention.
"""

import sys
from dataclasses import replace
from typing import NamedTuple

from sft_jax.cli.plan import batch_shapes
from sft_jax.config import Data, Mesh, Model, Optimizer, RunConfig, Train
from sft_jax.model.architecture import Architecture
from sft_jax.plan.chips import topology
from sft_jax.plan.isolated import Request
from sft_jax.plan.planned import Planned, plan_analytic, plan_compiled
from sft_jax.weights.pretrained import architecture_at


class Case(NamedTuple):
    """What was published, and how it is planned here."""

    model: str
    topology: str
    rows: int
    """An update."""
    length: int
    remat: str
    tokens_per_second_per_chip: float
    note: str = ""
    """Where our plan is not of the same thing."""


FEWER = "published with more rows a chip; what the two keep differs, and ours do not fit the host"
CASES = {
    # The two that the assumptions were fitted to.
    "8b v6e-8": Case("llama-3.1-8b", "v6e:2x4", 24, 8192, "offload", 7138.9),
    "llama2-70b v5p-512": Case("llama-2-70b", "v5p:8x8x8", 2048, 4096, "attention", 692.0),
    # Those that they were not.
    "8b v6e-256": Case("llama-3.1-8b", "v6e:16x16", 1024, 8192, "offload", 7207.3),
    "mistral-7b v6e-8": Case("mistral-7b", "v6e:2x4", 48, 8192, "offload", 7776.8),
    "70b v6e-64": Case("llama-3.1-70b", "v6e:8x8", 128, 8192, "offload", 876.7),
    "70b v6e-256": Case("llama-3.1-70b", "v6e:16x16", 768, 8192, "offload", 960.2, FEWER),
    "llama2-70b v6e-256": Case("llama-2-70b", "v6e:16x16", 512, 4096, "offload", 905.0),
    "70b ironwood-64": Case("llama-3.1-70b", "tpu7x:4x4x4", 256, 8192, "attention", 2687.0),
    "405b ironwood-256": Case("llama-3.1-405b", "tpu7x:4x8x8", 1024, 8192, "full", 499.8, FEWER),
    "405b v5p-512": Case("llama-3.1-405b", "v5p:8x8x8", 512, 8192, "offload", 124.6, FEWER),
}
FITTED = ("8b v6e-8", "llama2-70b v5p-512")


def request_of(case: Case) -> Request:
    """Plain text, every token a target, parameters divided over all devices."""
    config = RunConfig(
        model=Model(path=f"configs/architectures/{case.model}", dtype="bfloat16", remat=case.remat, head_chunk=1024),
        data=Data(train=("text.jsonl",), format="text", train_on="all", sequence_length=case.length),
        optimizer=Optimizer(schedule="cosine", warmup_steps=20),
        train=Train(steps=100, batch_size=case.rows),
        mesh=Mesh(fsdp=-1),
    )  # type: ignore[arg-type]
    architecture = _architecture(case.model)
    return Request(config, architecture, batch_shapes(config, architecture), topology(case.topology))


def _architecture(model: str) -> Architecture:
    if model == "mistral-7b":  # Llama's shapes, with another vocabulary
        return replace(architecture_at("configs/architectures/llama-3.1-8b"), vocab=32000)
    return architecture_at(f"configs/architectures/{model}")


def line(name: str, plan: Planned) -> str:
    case = CASES[name]
    ratio = plan.tokens_per_second_per_chip / case.tokens_per_second_per_chip
    return (
        f"| {name}{' (fitted)' * (name in FITTED)} | {case.remat} | {case.tokens_per_second_per_chip:,.1f} | "
        f"{plan.tokens_per_second_per_chip:,.1f} | {ratio:.2f} | {plan.bound_by} |"
    )


def main() -> None:
    names = [name for name in sys.argv[1:] if name != "--analytic"]
    plan = plan_analytic if "--analytic" in sys.argv else plan_compiled
    for name in names or CASES:
        print(line(name, plan(request_of(CASES[name]))), flush=True)


if __name__ == "__main__":
    main()
