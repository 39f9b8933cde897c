"""Qwen3 0.6B on four v5e chips, every weight trained.

Plan:      sft-jax plan configs/qwen3_06b_v5e4.py --topology v5e:2x2
Planned:   4 chips; 6.9 of 15.8 GiB a chip, 8.9 to spare; about 18,733 tokens/s a chip (47 % MFU), bounded by the
           matrix units (compiled with jax 0.10.2)
Train:     sft-jax train configs/qwen3_06b_v5e4.py --model.path YOUR/Qwen3-0.6B --data.train YOUR.jsonl \\
               --distributed.auto True      (on every host)
Hardware:  one host with 2x2 v5e chips (v5litepod-4)
"""

from sft_jax.config import Data, Mesh, Model, Optimizer, RunConfig, Train


def get_config() -> RunConfig:
    return RunConfig(
        workdir="runs/qwen3-06b-v5e4",
        # The plan needs the architecture alone; training needs the weights, which this repository does not hold.
        model=Model(path="configs/architectures/qwen3-0.6b", dtype="bfloat16", remat="minimal", head_chunk=1024),
        data=Data(train=("YOUR.jsonl",), sequence_length=4096),
        optimizer=Optimizer(learning_rate=2e-5, schedule="cosine", warmup_steps=20),
        train=Train(epochs=2, batch_size=32, accumulation=8),
        mesh=Mesh(fsdp=4),
    )
