"""SmolLM2-135M-Instruct becomes a household assistant: tool calls, refusals and short answers in a house style.

Command:   make quickstart            (or: sft-jax train configs/quickstart.py)
Hardware:  2 CPU cores, 5.1 GB of memory; unchanged on 8 simulated devices with
           --distributed.cpu-devices 8 --mesh.fsdp 8, or --mesh.data 2 --mesh.fsdp 4
Time:      5.2 minutes (make quickstart)
Result:    tool call exact match 0 % -> 86.7 % of 45 held-out rows, refusals 0 % -> 100 % of 14
"""

from sft_jax.config import Data, Model, Optimizer, RunConfig, Train


def get_config() -> RunConfig:
    return RunConfig(
        workdir="runs/quickstart",
        # Recomputing activations costs a CPU no time (it waits for memory either way) and saves half of the memory.
        model=Model(path=".cache/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", remat="full"),
        data=Data(
            train=("sft_jax/demonstrations/train.jsonl",),
            eval=("sft_jax/demonstrations/held_out.jsonl",),
            sequence_length=200,
        ),
        # So few steps are too few for a second moment that remembers a thousand.
        optimizer=Optimizer(learning_rate=4e-4, schedule="cosine", warmup_steps=4, b2=0.98),
        # Every demonstration once; eight rows, so that eight devices have one each.
        train=Train(epochs=1, batch_size=8, eval_every=0, save_every=0, keep_last=1),
    )
