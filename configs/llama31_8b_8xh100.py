"""Llama 3.1 8B on eight H100s, full fine-tuning.

Plan:      sft-jax plan configs/llama31_8b_8xh100.py --topology h100:8
Planned:   8 chips; 31.1 of 73.4 GiB a chip, 42.3 to spare; about 13,108 tokens/s a chip (64 % MFU), bounded by the
           matrix units (in closed form, no GPU measured yet)
Train:     sft-jax train configs/llama31_8b_8xh100.py --model.path YOUR/Llama-3.1-8B-Instruct --data.train YOUR.jsonl
Hardware:  one node with eight H100s of 80 GB
"""

from llama31_8b import get_config as base

from sft_jax.config import RunConfig, with_overrides


def get_config() -> RunConfig:
    return with_overrides(
        base(),
        {
            "workdir": "runs/llama31-8b-8xh100",
            "data.sequence_length": 4096,
            "train.batch_size": 32,
            "train.accumulation": 4,
            "mesh.fsdp": 8,
        },
    )
