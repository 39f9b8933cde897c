"""Llama 3.1 8B on TPUs, every weight trained: one row of 2048 tokens a chip, f32 state divided over all chips.

Command:   sft-jax plan configs/llama31_8b.py --topology v6e:4x4 --show memory     (needs no TPU and no weights)
           sft-jax train configs/llama31_8b.py --model.path YOUR/Llama-3.1-8B-Instruct --data.train YOUR.jsonl \\
               --distributed.auto True                                             (on every host)
Hardware:  16 v6e chips or more; --train.batch-size is the number of chips
Memory:    9.3 GiB a chip of v6e-16 (compiled; docs/layouts.md has other sizes)
"""

from sft_jax.config import Data, Model, Optimizer, RunConfig, Train


def get_config() -> RunConfig:
    return RunConfig(
        workdir="runs/llama31-8b",
        # The plan needs the architecture alone; training needs the weights, which this repository does not hold.
        model=Model(path="configs/architectures/llama-3.1-8b", dtype="bfloat16", remat="full", head_chunk=1024),
        data=Data(train=("YOUR.jsonl",), sequence_length=2048),
        optimizer=Optimizer(learning_rate=1e-5, schedule="cosine", warmup_steps=20),
        train=Train(epochs=2, batch_size=16),
    )
