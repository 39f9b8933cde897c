"""Llama 3.1 8B on sixteen v5e chips, every weight trained.

Plan:      sft-jax plan configs/llama31_8b_v5e16.py --topology v5e:4x4
Planned:   16 chips; 12.3 of 15.8 GiB a chip, 3.5 to spare; about 2,338 tokens/s a chip (57 % MFU), bounded by the
           matrix units (compiled with jax 0.10.2)
Train:     sft-jax train configs/llama31_8b_v5e16.py --model.path YOUR/Llama-3.1-8B-Instruct --data.train YOUR.jsonl \\
               --distributed.auto True      (on every host)
Hardware:  v5litepod-16: 4x4 chips on four hosts
"""

from sft_jax.config import Data, Mesh, Model, Optimizer, RunConfig, Train


def get_config() -> RunConfig:
    return RunConfig(
        workdir="runs/llama31-8b-v5e16",
        # The plan needs the architecture alone; training needs the weights, which this repository does not hold.
        model=Model(path="configs/architectures/llama-3.1-8b", dtype="bfloat16", remat="offload", head_chunk=1024),
        data=Data(train=("YOUR.jsonl",), sequence_length=4096),
        optimizer=Optimizer(learning_rate=1e-5, schedule="cosine", warmup_steps=20),
        train=Train(epochs=2, batch_size=32, accumulation=1),
        mesh=Mesh(fsdp=16),
    )
