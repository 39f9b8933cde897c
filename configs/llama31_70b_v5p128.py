"""Llama 3.1 70B on 64 v5p chips, full fine-tuning.

Plan:      sft-jax plan configs/llama31_70b_v5p128.py --topology v5p:4x4x4
Planned:   64 chips; 91.0 of 93.6 GiB a chip, 2.5 to spare; about 693 tokens/s a chip (65 % MFU), bounded by the
           matrix units (compiled with jax 0.10.2)
Train:     sft-jax train configs/llama31_70b_v5p128.py --model.path YOUR/Llama-3.1-70B-Instruct \\
               --data.train YOUR.jsonl --distributed.auto True      (on every host)
Hardware:  v5p-128 (128 cores): 4x4x4 chips on 16 hosts
"""

from sft_jax.config import Data, Mesh, Model, Optimizer, RunConfig, Train


def get_config() -> RunConfig:
    return RunConfig(
        workdir="runs/llama31-70b-v5p128",
        # Enough for a plan; training also needs the weights, which this repository does not include.
        model=Model(path="configs/architectures/llama-3.1-70b", dtype="bfloat16", remat="minimal", head_chunk=1024),
        data=Data(train=("YOUR.jsonl",), sequence_length=4096),
        optimizer=Optimizer(learning_rate=1e-5, schedule="cosine", warmup_steps=20),
        train=Train(epochs=2, batch_size=128, accumulation=2),
        mesh=Mesh(fsdp=32, tensor=2),
    )
