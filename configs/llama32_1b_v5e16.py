"""Llama 3.2 1B on sixteen v5e chips, full fine-tuning.

Plan:      sft-jax plan configs/llama32_1b_v5e16.py --topology v5e:4x4
Planned:   16 chips; 6.5 of 15.8 GiB a chip, 9.3 to spare; about 13,352 tokens/s a chip (56 % MFU), bounded by the
           matrix units (compiled with jax 0.10.2)
Train:     sft-jax train configs/llama32_1b_v5e16.py --model.path YOUR/Llama-3.2-1B-Instruct --data.train YOUR.jsonl \\
               --distributed.auto True      (on every host)
Hardware:  v5litepod-16: 4x4 chips on four hosts
"""

from llama32_1b_h100 import get_config as base

from sft_jax.config import RunConfig, with_overrides


def get_config() -> RunConfig:
    return with_overrides(
        base(),
        {
            "workdir": "runs/llama32-1b-v5e16",
            "train.batch_size": 64,
            "train.accumulation": 4,
            "mesh.fsdp": 16,
        },
    )
