"""How long an 8B update takes to compile for how many chips: `python -m tests.plan.compile_times`."""

from dataclasses import replace

from sft_jax.config import Mesh
from sft_jax.plan.chips import topology
from sft_jax.plan.planned import plan_compiled
from tests.plan.scale import request_of

SIZES = (topology("v5p:4x8x8"), topology("v5p:8x8x16"), topology("v5p:16x16x16"), topology("v5p:16x16x16", 2))


def main() -> None:
    for on in SIZES:
        request = request_of("llama-3.1-8b", on, on.chips)
        config = request.config
        config = replace(config, mesh=Mesh(data=on.slices), model=replace(config.model, remat="full"))
        plan = plan_compiled(request._replace(config=config))
        used = ", ".join(sorted({name for names in plan.networks.values() for name in names}))
        slices = f" in {on.slices} slices" * (on.slices > 1)
        print(
            f"| {on.chips}{slices} | {plan.compile_seconds or 0:.0f} s | {plan.peak_bytes_per_chip / 2**30:.2f} GiB | "
            f"{plan.tokens_per_second_per_chip:,.0f} | {used} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
