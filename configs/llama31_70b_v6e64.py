"""Llama 3.1 70B on 64 v6e chips, every weight trained.

Plan:      sft-jax plan configs/llama31_70b_v6e64.py --topology v6e:8x8
Planned:   64 chips; 24.2 of 31.5 GiB a chip, 7.3 to spare; about 800 tokens/s a chip (38 % MFU), bounded by the
           matrix units (compiled with jax 0.10.2)
Train:     sft-jax train configs/llama31_70b_v6e64.py --model.path YOUR/Llama-3.1-70B-Instruct \\
               --data.train YOUR.jsonl --distributed.auto True      (on every host)
Hardware:  v6e-64: 8x8 chips on 16 hosts
"""

from sft_jax.config import Data, Mesh, Model, Optimizer, RunConfig, Train


def get_config() -> RunConfig:
    return RunConfig(
        workdir="runs/llama31-70b-v6e64",
        # The plan needs the architecture alone; training needs the weights, which this repository does not hold.
        model=Model(path="configs/architectures/llama-3.1-70b", dtype="bfloat16", remat="offload", head_chunk=1024),
        data=Data(train=("YOUR.jsonl",), sequence_length=4096),
        optimizer=Optimizer(learning_rate=1e-5, schedule="cosine", warmup_steps=20),
        train=Train(epochs=2, batch_size=128, accumulation=1),
        mesh=Mesh(fsdp=64),
    )
