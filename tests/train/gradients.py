"""The loss and all gradients of a run's first batch, by the processes and devices of its config, into an .npz.

Run as `python -m tests.train.gradients CONFIG OUT [--section.field value ...]`, once for each process.
"""

import functools
import sys

import jax
import numpy as np
from jax.experimental import multihost_utils

from sft_jax.cli.arguments import resolve_config
from sft_jax.distributed.start import start
from sft_jax.parallel.mesh import make_mesh
from sft_jax.storage.location import Location
from sft_jax.train.feed import put_batch
from sft_jax.train.inputs import read_inputs
from sft_jax.train.program import compute_of, make_objective
from sft_jax.train.sharding import batch_shapes_of, batch_shardings
from sft_jax.train.step import accumulate
from sft_jax.weights.pretrained import put_on_devices


def main(config_file: str, out: str, *options: str) -> None:
    config = resolve_config([config_file, *options], "gradients")
    start(config.distributed)
    inputs = read_inputs(config, Location(config.workdir))
    mesh = make_mesh(config.mesh)
    shapes = batch_shapes_of(inputs.source)
    architecture, parameters = put_on_devices(inputs.pretrained, config, mesh)
    batch = put_batch(inputs.source, 0, shapes, batch_shardings(mesh, config.sharding))
    objective = make_objective(config, architecture, shapes, compute_of(config, mesh))
    (loss, weight, _), gradients = jax.jit(functools.partial(accumulate, objective))(parameters, {}, batch)
    whole = multihost_utils.process_allgather(gradients, tiled=True)
    if jax.process_index() == 0:
        np.savez(out, loss_sum=np.asarray(loss), weight_sum=np.asarray(weight), **whole)


if __name__ == "__main__":
    main(*sys.argv[1:])
