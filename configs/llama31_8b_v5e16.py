"""Llama 3.1 8B on sixteen v5e chips, full fine-tuning.

Plan:      sft-jax plan configs/llama31_8b_v5e16.py --topology v5e:4x4
Planned:   16 chips; 12.3 of 15.8 GiB a chip, 3.5 to spare; about 2,338 tokens/s a chip (57 % MFU), bounded by the
           matrix units (compiled with jax 0.10.2)
Train:     sft-jax train configs/llama31_8b_v5e16.py --model.path YOUR/Llama-3.1-8B-Instruct --data.train YOUR.jsonl \\
               --distributed.auto True      (on every host)
Hardware:  v5litepod-16: 4x4 chips on four hosts
"""

from llama31_8b import get_config as base

from sft_jax.config import RunConfig, with_overrides


def get_config() -> RunConfig:
    return with_overrides(
        base(),
        {
            "workdir": "runs/llama31-8b-v5e16",
            "model.remat": "offload",
            "data.sequence_length": 4096,
            "train.batch_size": 32,
            "mesh.fsdp": 16,
        },
    )
