"""Llama 3.1 70B on 64 Ironwood chips, full fine-tuning.

Plan:      sft-jax plan configs/llama31_70b_tpu7x64.py --topology tpu7x:4x4x4
Planned:   64 chips; 94.0 of 189.1 GiB a chip, 95.2 to spare; about 3,286 tokens/s a chip (62 % MFU), bounded by the
           matrix units (compiled with jax 0.10.2)
Train:     sft-jax train configs/llama31_70b_tpu7x64.py --model.path YOUR/Llama-3.1-70B-Instruct \\
               --data.train YOUR.jsonl --distributed.auto True      (on every host)
Hardware:  tpu7x-128 (128 cores): 4x4x4 chips on 16 hosts; two devices per chip
"""

from llama31_70b_v5p128 import get_config as base

from sft_jax.config import RunConfig, with_overrides


def get_config() -> RunConfig:
    return with_overrides(
        base(),
        {
            "workdir": "runs/llama31-70b-tpu7x64",
            "model.remat": "attention",
            "train.batch_size": 256,
            "train.accumulation": 1,
            "mesh.fsdp": 128,
            "mesh.tensor": 1,
        },
    )
