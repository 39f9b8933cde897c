"""Qwen3 0.6B on one H100, full fine-tuning.

Plan:      sft-jax plan configs/qwen3_06b_h100.py --topology h100:1
Planned:   1 chip; 26.8 of 73.4 GiB a chip, 46.6 to spare; about 89,423 tokens/s a chip (45 % MFU), bounded by the
           matrix units (in closed form, no GPU measured yet)
Train:     sft-jax train configs/qwen3_06b_h100.py --model.path YOUR/Qwen3-0.6B --data.train YOUR.jsonl
Hardware:  one H100 with 80 GB
"""

from sft_jax.config import Data, Model, Optimizer, RunConfig, Train


def get_config() -> RunConfig:
    return RunConfig(
        workdir="runs/qwen3-06b-h100",
        # Enough for a plan; training also needs the weights, which this repository does not include.
        model=Model(path="configs/architectures/qwen3-0.6b", dtype="bfloat16", remat="none", head_chunk=1024),
        data=Data(train=("YOUR.jsonl",), sequence_length=4096),
        optimizer=Optimizer(learning_rate=2e-5, schedule="cosine", warmup_steps=20),
        train=Train(epochs=2, batch_size=32, accumulation=16),
    )
