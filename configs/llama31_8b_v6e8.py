"""Llama 3.1 8B on eight v6e chips, every weight trained.

Plan:      sft-jax plan configs/llama31_8b_v6e8.py --topology v6e:2x4
Planned:   8 chips; 25.4 of 31.5 GiB a chip, 6.1 to spare; about 7,794 tokens/s a chip (41 % MFU), bounded by the
           chip's memory (compiled with jax 0.10.2)
Train:     sft-jax train configs/llama31_8b_v6e8.py --model.path YOUR/Llama-3.1-8B-Instruct --data.train YOUR.jsonl \\
               --distributed.auto True      (on every host)
Hardware:  v6e-8: 2x4 chips
"""

from sft_jax.config import Data, Mesh, Model, Optimizer, RunConfig, Train


def get_config() -> RunConfig:
    return RunConfig(
        workdir="runs/llama31-8b-v6e8",
        # The plan needs the architecture alone; training needs the weights, which this repository does not hold.
        model=Model(path="configs/architectures/llama-3.1-8b", dtype="bfloat16", remat="attention", head_chunk=1024),
        data=Data(train=("YOUR.jsonl",), sequence_length=4096),
        optimizer=Optimizer(learning_rate=1e-5, schedule="cosine", warmup_steps=20),
        train=Train(epochs=2, batch_size=32, accumulation=4),
        mesh=Mesh(fsdp=8),
    )
