"""Qwen3 8B on eight H100s, full fine-tuning.

Plan:      sft-jax plan configs/qwen3_8b_8xh100.py --topology h100:8
Planned:   8 chips; 31.9 of 73.4 GiB a chip, 41.5 to spare; about 12,666 tokens/s a chip (63 % MFU), bounded by the
           matrix units (in closed form, no GPU measured yet)
Train:     sft-jax train configs/qwen3_8b_8xh100.py --model.path YOUR/Qwen3-8B --data.train YOUR.jsonl
Hardware:  one node with eight H100s of 80 GB
"""

from sft_jax.config import Data, Mesh, Model, Optimizer, RunConfig, Train


def get_config() -> RunConfig:
    return RunConfig(
        workdir="runs/qwen3-8b-8xh100",
        # Enough for a plan; training also needs the weights, which this repository does not include.
        model=Model(path="configs/architectures/qwen3-8b", dtype="bfloat16", remat="minimal", head_chunk=1024),
        data=Data(train=("YOUR.jsonl",), sequence_length=4096),
        optimizer=Optimizer(learning_rate=1e-5, schedule="cosine", warmup_steps=20),
        train=Train(epochs=2, batch_size=32, accumulation=4),
        mesh=Mesh(fsdp=8),
    )
