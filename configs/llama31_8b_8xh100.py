"""Llama 3.1 8B on eight H100s, every weight trained.

Plan:      sft-jax plan configs/llama31_8b_8xh100.py --topology h100:8
Planned:   8 chips; 31.1 of 73.4 GiB a chip, 42.3 to spare; about 13,108 tokens/s a chip (64 % MFU), bounded by the
           matrix units (in closed form, no GPU measured yet)
Train:     sft-jax train configs/llama31_8b_8xh100.py --model.path YOUR/Llama-3.1-8B-Instruct --data.train YOUR.jsonl
Hardware:  one node with eight H100s of 80 GB
"""

from sft_jax.config import Data, Mesh, Model, Optimizer, RunConfig, Train


def get_config() -> RunConfig:
    return RunConfig(
        workdir="runs/llama31-8b-8xh100",
        # The plan needs the architecture alone; training needs the weights, which this repository does not hold.
        model=Model(path="configs/architectures/llama-3.1-8b", dtype="bfloat16", remat="minimal", head_chunk=1024),
        data=Data(train=("YOUR.jsonl",), sequence_length=4096),
        optimizer=Optimizer(learning_rate=1e-5, schedule="cosine", warmup_steps=20),
        train=Train(epochs=2, batch_size=32, accumulation=4),
        mesh=Mesh(fsdp=8),
    )
