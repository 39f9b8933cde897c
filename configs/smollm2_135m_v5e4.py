"""SmolLM2 135M on four v5e chips, every weight trained.

Plan:      sft-jax plan configs/smollm2_135m_v5e4.py --topology v5e:2x2
Planned:   4 chips; 9.6 of 15.8 GiB a chip, 6.2 to spare; about 62,205 tokens/s a chip (32 % MFU), bounded by the
           matrix units (compiled with jax 0.10.2)
Train:     sft-jax train configs/smollm2_135m_v5e4.py --model.path YOUR/SmolLM2-135M-Instruct --data.train YOUR.jsonl \\
               --distributed.auto True      (on every host)
Hardware:  one host with 2x2 v5e chips (v5litepod-4)
"""

from sft_jax.config import Data, Mesh, Model, Optimizer, RunConfig, Train


def get_config() -> RunConfig:
    return RunConfig(
        workdir="runs/smollm2-135m-v5e4",
        # The plan needs the architecture alone; training needs the weights, which this repository does not hold.
        model=Model(path="configs/architectures/smollm2-135m", dtype="bfloat16", remat="none", head_chunk=1024),
        data=Data(train=("YOUR.jsonl",), sequence_length=2048),
        optimizer=Optimizer(learning_rate=1e-4, schedule="cosine", warmup_steps=20),
        train=Train(epochs=2, batch_size=64, accumulation=4),
        mesh=Mesh(fsdp=4),
    )
