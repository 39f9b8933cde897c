"""Llama 3.2 1B on one H100, full fine-tuning.

Plan:      sft-jax plan configs/llama32_1b_h100.py --topology h100:1
Planned:   1 chip; 29.1 of 73.4 GiB a chip, 44.3 to spare; about 57,526 tokens/s a chip (48 % MFU), bounded by the
           matrix units (in closed form, no GPU measured yet)
Train:     sft-jax train configs/llama32_1b_h100.py --model.path YOUR/Llama-3.2-1B-Instruct --data.train YOUR.jsonl
Hardware:  one H100 with 80 GB
"""

from sft_jax.config import Data, Model, Optimizer, RunConfig, Train


def get_config() -> RunConfig:
    return RunConfig(
        workdir="runs/llama32-1b-h100",
        # Enough for a plan; training also needs the weights, which this repository does not include.
        model=Model(path="configs/architectures/llama-3.2-1b", dtype="bfloat16", remat="minimal", head_chunk=1024),
        data=Data(train=("YOUR.jsonl",), sequence_length=4096),
        optimizer=Optimizer(learning_rate=1e-5, schedule="cosine", warmup_steps=20),
        train=Train(epochs=2, batch_size=32, accumulation=16),
    )
