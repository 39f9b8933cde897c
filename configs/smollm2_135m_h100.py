"""SmolLM2 135M on one H100, full fine-tuning.

Plan:      sft-jax plan configs/smollm2_135m_h100.py --topology h100:1
Planned:   1 chip; 34.9 of 73.4 GiB a chip, 38.5 to spare; about 275,303 tokens/s a chip (28 % MFU), bounded by the
           matrix units (in closed form, no GPU measured yet)
Train:     sft-jax train configs/smollm2_135m_h100.py --model.path YOUR/SmolLM2-135M-Instruct --data.train YOUR.jsonl
Hardware:  one H100 with 80 GB
"""

from sft_jax.config import Data, Model, Optimizer, RunConfig, Train


def get_config() -> RunConfig:
    return RunConfig(
        workdir="runs/smollm2-135m-h100",
        # Enough for a plan; training also needs the weights, which this repository does not include.
        model=Model(path="configs/architectures/smollm2-135m", dtype="bfloat16", remat="none", head_chunk=1024),
        data=Data(train=("YOUR.jsonl",), sequence_length=2048),
        optimizer=Optimizer(learning_rate=1e-4, schedule="cosine", warmup_steps=20),
        train=Train(epochs=2, batch_size=64, accumulation=4),
    )
