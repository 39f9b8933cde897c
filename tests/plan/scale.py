"""8B, 70B and 405B from one v5p chip to four slices, in closed form: `python -m tests.plan.scale`.

Each size has the fastest layout that the search finds in closed form; prints the tables of docs/verification.md.
"""

from sft_jax.cli.plan import batch_shapes
from sft_jax.config import Data, Mesh, Model, Optimizer, RunConfig, Train
from sft_jax.plan.chips import Topology, topology
from sft_jax.plan.isolated import Request
from sft_jax.plan.planned import Planned
from sft_jax.plan.search import search
from sft_jax.report.plan import spelled_mesh
from sft_jax.weights.pretrained import architecture_at

LENGTH = 4096
WEAK_ROWS, STRONG_ROWS = 4, 1024
"""Rows a chip; rows of a whole batch (4 million tokens)."""
SIZES = (
    topology("v5p:1x1x1"), topology("v5p:2x2x1"), topology("v5p:2x2x4"), topology("v5p:4x4x4"), topology("v5p:4x8x8"),
    topology("v5p:8x8x16"), topology("v5p:8x8x16", 2), topology("v5p:8x8x16", 4),
)  # fmt: skip


def request_of(model: str, on: Topology, rows: int) -> Request:
    config = RunConfig(
        model=Model(path=f"configs/architectures/{model}", dtype="bfloat16", head_chunk=1024),
        data=Data(train=("demos.jsonl",), sequence_length=LENGTH),
        optimizer=Optimizer(schedule="cosine", warmup_steps=20),
        train=Train(steps=100, batch_size=rows),
        mesh=Mesh(),
    )
    architecture = architecture_at(config.model.path)
    return Request(config, architecture, batch_shapes(config, architecture), on)


def cell(plan: Planned) -> str:
    if not plan.fits:
        return f"does not fit: {plan.peak_bytes_per_chip / 2**30:,.0f} GiB per chip"
    micro = f", {plan.accumulation} micro-batches" if plan.accumulation > 1 else ""
    return (
        f"{plan.tokens_per_second_per_chip:,.0f} ({100 * plan.mfu:.0f} %, {plan.bound_by}); {spelled_mesh(plan)}, "
        f"{plan.remat}{micro}"
    )


def main() -> None:
    for name, rows_of in (("weak", lambda chips: WEAK_ROWS * chips), ("strong", lambda chips: STRONG_ROWS)):
        print(f"\n{name}: tokens/s per chip (MFU, bound by); layout\n\n| chips | 8B | 70B | 405B |\n|---|---|---|---|")
        for on in SIZES:
            rows = rows_of(on.chips)
            models = ("llama-3.1-8b", "llama-3.1-70b", "llama-3.1-405b")
            plans = [search(request_of(model, on, rows), False, 0.0, lambda _: None)[0] for model in models]
            slices = f" in {on.slices} slices" if on.slices > 1 else ""
            print(f"| {on.chips}{slices} | " + " | ".join(map(cell, plans)) + " |", flush=True)


if __name__ == "__main__":
    main()
