"""Qwen3 0.6B on four v5e chips, full fine-tuning.

Plan:      sft-jax plan configs/qwen3_06b_v5e4.py --topology v5e:2x2
Planned:   4 chips; 6.9 of 15.8 GiB a chip, 8.9 to spare; about 18,733 tokens/s a chip (47 % MFU), bounded by the
           matrix units (compiled with jax 0.10.2)
Train:     sft-jax train configs/qwen3_06b_v5e4.py --model.path YOUR/Qwen3-0.6B --data.train YOUR.jsonl \\
               --distributed.auto True      (on every host)
Hardware:  one host with 2x2 v5e chips (v5litepod-4)
"""

from qwen3_06b_h100 import get_config as base

from sft_jax.config import RunConfig, with_overrides


def get_config() -> RunConfig:
    return with_overrides(
        base(),
        {
            "workdir": "runs/qwen3-06b-v5e4",
            "model.remat": "minimal",
            "train.accumulation": 8,
            "mesh.fsdp": 4,
        },
    )
