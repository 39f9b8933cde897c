"""The sums and gradients of one batch under any layout, computed the way the step does."""

import functools
from dataclasses import replace

import jax
import numpy as np
import pytest

from sft_jax.config import Sharding
from sft_jax.losses.cross_entropy import cross_entropy_objective
from sft_jax.model.decoder import abstract_parameters
from sft_jax.model.layers import Compute
from sft_jax.parallel.rules import Layout, axis_parts, shardings
from sft_jax.train.feed import put_batch
from sft_jax.train.sharding import batch_shapes_of, batch_shardings
from sft_jax.train.step import accumulate


@pytest.fixture(scope="session")
def sums_and_gradients():
    """(architecture, parameters, batches, mesh) -> ((loss_sum, weight_sum, metrics), gradients) on the host."""

    def run(architecture, parameters, batches, mesh, compute=None, rules=None, chunk=16, step=0):
        compute, rules = compute or Compute(), rules or Sharding()
        wanted = architecture.padded_to(axis_parts("vocab", rules, mesh))
        shapes, axes = abstract_parameters(wanted)
        where = shardings({name: s.shape for name, s in shapes.items()}, axes, mesh, rules)
        placed = {}
        for name, value in parameters.items():
            missing = shapes[name].shape[0] - value.shape[0] if name in ("embedding", "head") else 0
            padded = np.pad(value, [(0, missing)] + [(0, 0)] * (value.ndim - 1))
            placed[name] = jax.device_put(padded, where[name])
        batch = put_batch(batches, step, batch_shapes_of(batches), batch_shardings(mesh, rules))
        objective = cross_entropy_objective(wanted, replace(compute, layout=Layout(mesh, rules)), chunk)
        run_step = jax.jit(functools.partial(accumulate, objective), out_shardings=None)
        return jax.tree.map(np.asarray, run_step(placed, {}, batch))

    return run


@pytest.fixture(scope="session")
def assert_same():
    """Loss to 1e-6 relative, every gradient to 5e-4 of its leaf's maximum (f32); 1e-10 for both in f64."""

    def check(one, other, loss_tolerance=1e-6, gradient_tolerance=5e-4):
        np.testing.assert_allclose(one[0][0], other[0][0], rtol=loss_tolerance)
        assert one[0][1] == other[0][1]
        assert one[1].keys() == other[1].keys()
        for name, gradient in one[1].items():
            reference = other[1][name]
            rows = min(len(gradient), len(reference)) if name in ("embedding", "head") else None
            scale = np.abs(reference).max()
            assert scale > 0, name
            difference = np.abs(gradient[:rows] - reference[:rows]).max()
            assert difference <= gradient_tolerance * scale, (name, difference / scale)

    return check
