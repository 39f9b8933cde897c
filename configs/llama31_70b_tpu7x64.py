"""Llama 3.1 70B on 64 Ironwood chips, every weight trained.

Plan:      sft-jax plan configs/llama31_70b_tpu7x64.py --topology tpu7x:4x4x4
Planned:   64 chips; 94.0 of 189.1 GiB a chip, 95.2 to spare; about 3,286 tokens/s a chip (62 % MFU), bounded by the
           matrix units (compiled with jax 0.10.2)
Train:     sft-jax train configs/llama31_70b_tpu7x64.py --model.path YOUR/Llama-3.1-70B-Instruct \\
               --data.train YOUR.jsonl --distributed.auto True      (on every host)
Hardware:  tpu7x-128 (128 cores): 4x4x4 chips on 16 hosts; two devices a chip
"""

from sft_jax.config import Data, Mesh, Model, Optimizer, RunConfig, Train


def get_config() -> RunConfig:
    return RunConfig(
        workdir="runs/llama31-70b-tpu7x64",
        # The plan needs the architecture alone; training needs the weights, which this repository does not hold.
        model=Model(path="configs/architectures/llama-3.1-70b", dtype="bfloat16", remat="attention", head_chunk=1024),
        data=Data(train=("YOUR.jsonl",), sequence_length=4096),
        optimizer=Optimizer(learning_rate=1e-5, schedule="cosine", warmup_steps=20),
        train=Train(epochs=2, batch_size=256, accumulation=1),
        mesh=Mesh(fsdp=128),
    )
