"""SmolLM2 135M on four v5e chips, full fine-tuning.

Plan:      sft-jax plan configs/smollm2_135m_v5e4.py --topology v5e:2x2
Planned:   4 chips; 9.6 of 15.8 GiB a chip, 6.2 to spare; about 62,205 tokens/s a chip (32 % MFU), bounded by the
           matrix units (compiled with jax 0.10.2)
Train:     sft-jax train configs/smollm2_135m_v5e4.py --model.path YOUR/SmolLM2-135M-Instruct --data.train YOUR.jsonl \\
               --distributed.auto True      (on every host)
Hardware:  one host with 2x2 v5e chips (v5litepod-4)
"""

from smollm2_135m_h100 import get_config as base

from sft_jax.config import RunConfig, with_overrides


def get_config() -> RunConfig:
    return with_overrides(
        base(),
        {
            "workdir": "runs/smollm2-135m-v5e4",
            "mesh.fsdp": 4,
        },
    )
