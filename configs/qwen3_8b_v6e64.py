"""Qwen3 8B on 64 v6e chips, every weight trained.

Plan:      sft-jax plan configs/qwen3_8b_v6e64.py --topology v6e:8x8
Planned:   64 chips; 28.4 of 31.5 GiB a chip, 3.1 to spare; about 6,229 tokens/s a chip (33 % MFU), bounded by the
           matrix units (compiled with jax 0.10.2)
Train:     sft-jax train configs/qwen3_8b_v6e64.py --model.path YOUR/Qwen3-8B --data.train YOUR.jsonl \\
               --distributed.auto True      (on every host)
Hardware:  v6e-64: 8x8 chips on 16 hosts
"""

from sft_jax.config import Data, Mesh, Model, Optimizer, RunConfig, Train


def get_config() -> RunConfig:
    return RunConfig(
        workdir="runs/qwen3-8b-v6e64",
        # The plan needs the architecture alone; training needs the weights, which this repository does not hold.
        model=Model(path="configs/architectures/qwen3-8b", dtype="bfloat16", remat="minimal", head_chunk=1024),
        data=Data(train=("YOUR.jsonl",), sequence_length=4096),
        optimizer=Optimizer(learning_rate=1e-5, schedule="cosine", warmup_steps=20),
        train=Train(epochs=2, batch_size=128, accumulation=1),
        mesh=Mesh(fsdp=64),
    )
