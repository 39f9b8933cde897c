"""Llama 3.1 8B on sixteen v6e chips, full fine-tuning: one row of 2048 tokens per chip.

Plan:      sft-jax plan configs/llama31_8b.py --topology v6e:4x4
Planned:   16 chips; 14.2 of 31.5 GiB a chip, 17.3 to spare; about 5,992 tokens/s a chip (30 % MFU), bounded by the
           network between chips (compiled with jax 0.10.2)
Train:     sft-jax train configs/llama31_8b.py --model.path YOUR/Llama-3.1-8B-Instruct --data.train YOUR.jsonl \\
               --distributed.auto True      (on every host)
Hardware:  v6e-16 (4x4 chips on four hosts) or more; --train.batch-size is the number of chips
"""

from sft_jax.config import Data, Model, Optimizer, RunConfig, Train


def get_config() -> RunConfig:
    return RunConfig(
        workdir="runs/llama31-8b",
        # Enough for a plan; training also needs the weights, which this repository does not include.
        model=Model(path="configs/architectures/llama-3.1-8b", dtype="bfloat16", remat="minimal", head_chunk=1024),
        data=Data(train=("YOUR.jsonl",), sequence_length=2048),
        optimizer=Optimizer(learning_rate=1e-5, schedule="cosine", warmup_steps=20),
        train=Train(epochs=2, batch_size=16),
    )
