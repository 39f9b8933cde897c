"""A complete fine-tuning script, from files to a Hugging Face directory, to read from top to bottom.

    .venv/bin/python docs/examples/minimal_train.py MODEL demonstrations.jsonl out [STEPS]

It uses the same pieces as `sft-jax train`, without a workdir: no checkpoints, no resume, no evaluation. It runs
unchanged on one device or on many.
"""

import sys

import jax
import numpy as np

from sft_jax.config import Data, Mesh, Model, Optimizer, RunConfig, Train
from sft_jax.data.pack.batches import Batches
from sft_jax.data.pack.packing import choose_target_capacity, plan_packing
from sft_jax.data.pack.prepare import prepare
from sft_jax.data.pack.store import sizes
from sft_jax.parallel.mesh import make_mesh
from sft_jax.train.feed import feed
from sft_jax.train.program import make_initial_state, make_program
from sft_jax.train.sharding import batch_shapes_of
from sft_jax.weights.export import export
from sft_jax.weights.pretrained import open_pretrained


def main(model: str, demonstrations: str, out: str, steps: int = 20) -> list[float]:
    """Train and export; returns the loss of every step."""
    config = RunConfig(
        model=Model(path=model),
        data=Data(train=(demonstrations,), sequence_length=256),
        optimizer=Optimizer(learning_rate=1e-3, schedule="cosine", warmup_steps=2),
        train=Train(steps=steps, batch_size=8),
    )
    mesh = make_mesh(Mesh(fsdp=-1))  # shard the parameters and the rows over all devices

    # Architecture, tokenizer and chat template. No weights are read yet.
    pretrained = open_pretrained(model)

    # Demonstrations become documents: token ids, and each token's weight as a target (mostly 0 or 1).
    examples = prepare(config.data, pretrained.tokenizer).examples
    lengths, targets = sizes(examples)

    # Documents are packed into rows of T tokens; only a row's M target positions go through the head.
    length = config.data.sequence_length
    capacity = choose_target_capacity(lengths, targets, length, "best_fit", 32)
    plan = plan_packing(lengths, targets, length, capacity, "best_fit")
    print(plan.summary(config.train.batch_size))
    batches = Batches(examples, plan, seed=0, batch_size=config.train.batch_size)  # batches.batch(step)
    shapes = batch_shapes_of(batches)

    # The update: loss, clipped gradients, one optax step; jitted, with the state donated.
    program = make_program(config, pretrained.architecture, shapes, mesh)

    # The weights, each read straight into its shards, and then the optimizer state.
    parameters = pretrained.load(program.architecture, program.parameter_layout)
    state = make_initial_state(program)(parameters)

    # The next batch is built and transferred while the device works on the current one.
    losses = []
    for step, batch, _ in feed(batches, range(steps), shapes, program.batch_layout):
        state, metrics = program.update(state, {}, batch)
        losses.append(float(metrics["loss_sum"] / metrics["weight_sum"]))
        print(f"step {step + 1}: loss {losses[-1]:.4f}, gradient norm {float(metrics['grad_norm']):.3f}")

    # A directory that transformers, vLLM and others load.
    export(
        state.trainable,
        program.architecture,
        pretrained.hf_config,
        pretrained.tokenizer,
        out,
        generation_config=pretrained.generation_config,
    )
    print(f"{out}: {sum(np.prod(array.shape) for array in jax.tree.leaves(state.trainable)) / 1e6:.1f} M parameters")
    return losses


if __name__ == "__main__":
    main(*sys.argv[1:4], *map(int, sys.argv[4:5]))
