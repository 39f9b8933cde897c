"""Qwen3 8B on 64 v6e chips, full fine-tuning.

Plan:      sft-jax plan configs/qwen3_8b_v6e64.py --topology v6e:8x8
Planned:   64 chips; 28.4 of 31.5 GiB a chip, 3.1 to spare; about 6,229 tokens/s a chip (33 % MFU), bounded by the
           matrix units (compiled with jax 0.10.2)
Train:     sft-jax train configs/qwen3_8b_v6e64.py --model.path YOUR/Qwen3-8B --data.train YOUR.jsonl \\
               --distributed.auto True      (on every host)
Hardware:  v6e-64: 8x8 chips on 16 hosts
"""

from qwen3_8b_8xh100 import get_config as base

from sft_jax.config import RunConfig, with_overrides


def get_config() -> RunConfig:
    return with_overrides(
        base(),
        {
            "workdir": "runs/qwen3-8b-v6e64",
            "train.batch_size": 128,
            "train.accumulation": 1,
            "mesh.fsdp": 64,
        },
    )
