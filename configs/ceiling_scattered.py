"""A demonstrator that is right six times in ten, its errors scattered: does imitation reach more than it was shown?

Command:   sft-jax ceiling configs/ceiling_scattered.py --check exact --samples 16     (make ceiling runs all of them)
"""

from pathlib import Path

from sft_jax.config import Data, Model, Optimizer, RunConfig, Train
from sft_jax.demonstrations.skill import Demonstrator, write_task


def get_config() -> RunConfig:
    task = write_task(Path("runs/ceiling/tasks/scattered"), Demonstrator("scattered", 0.6), demonstrations=16_000)
    return RunConfig(
        workdir="runs/ceiling/scattered",
        model=Model(path=str(task / "model"), weights="random"),
        data=Data(train=(str(task / "train.jsonl"),), eval=(str(task / "held_out.jsonl"),), sequence_length=128),
        optimizer=Optimizer(learning_rate=3e-3, schedule="cosine", warmup_steps=20, b2=0.98),
        train=Train(steps=300, batch_size=32, eval_every=30, save_every=0, keep_last=1, tensorboard=False),
    )
