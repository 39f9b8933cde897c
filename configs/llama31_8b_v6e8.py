"""Llama 3.1 8B on eight v6e chips, full fine-tuning.

Plan:      sft-jax plan configs/llama31_8b_v6e8.py --topology v6e:2x4
Planned:   8 chips; 25.4 of 31.5 GiB a chip, 6.1 to spare; about 7,794 tokens/s a chip (41 % MFU), bounded by the
           chip's memory (compiled with jax 0.10.2)
Train:     sft-jax train configs/llama31_8b_v6e8.py --model.path YOUR/Llama-3.1-8B-Instruct --data.train YOUR.jsonl \\
               --distributed.auto True      (on every host)
Hardware:  v6e-8: 2x4 chips
"""

from llama31_8b import get_config as base

from sft_jax.config import RunConfig, with_overrides


def get_config() -> RunConfig:
    return with_overrides(
        base(),
        {
            "workdir": "runs/llama31-8b-v6e8",
            "model.remat": "attention",
            "data.sequence_length": 4096,
            "train.batch_size": 32,
            "train.accumulation": 4,
            "mesh.fsdp": 8,
        },
    )
