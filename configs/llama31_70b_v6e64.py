"""Llama 3.1 70B on 64 v6e chips, full fine-tuning.

Plan:      sft-jax plan configs/llama31_70b_v6e64.py --topology v6e:8x8
Planned:   64 chips; 24.2 of 31.5 GiB a chip, 7.3 to spare; about 800 tokens/s a chip (38 % MFU), bounded by the
           matrix units (compiled with jax 0.10.2)
Train:     sft-jax train configs/llama31_70b_v6e64.py --model.path YOUR/Llama-3.1-70B-Instruct \\
               --data.train YOUR.jsonl --distributed.auto True      (on every host)
Hardware:  v6e-64: 8x8 chips on 16 hosts
"""

from llama31_70b_v5p128 import get_config as base

from sft_jax.config import RunConfig, with_overrides


def get_config() -> RunConfig:
    return with_overrides(
        base(),
        {
            "workdir": "runs/llama31-70b-v6e64",
            "model.remat": "offload",
            "train.accumulation": 1,
            "mesh.fsdp": 64,
            "mesh.tensor": 1,
        },
    )
