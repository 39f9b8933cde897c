import jax
import numpy as np
import pytest

from sft_jax.config import Optimizer, Sharding
from sft_jax.errors import BadInput
from sft_jax.model.decoder import abstract_parameters
from sft_jax.parallel.rules import shardings
from sft_jax.train.checkpoint import open_checkpoints, restore, restore_parameters, save
from sft_jax.train.optimizer import make_optimizer
from sft_jax.train.step import initial_state, state_shardings


@pytest.fixture
def laid_out(tiny, mesh_of):
    """mesh sizes -> (abstract state, its shardings)."""

    def lay_out(**sizes):
        mesh = mesh_of(**sizes)
        abstract, axes = abstract_parameters(tiny)
        layout = shardings({name: leaf.shape for name, leaf in abstract.items()}, axes, mesh, Sharding())
        optimizer = make_optimizer(Optimizer())
        state = jax.eval_shape(lambda parameters: initial_state(parameters, optimizer), abstract)
        return state, state_shardings(state, layout, mesh), layout

    return lay_out


@pytest.fixture
def state_at(tiny_parameters, laid_out):
    """(step, mesh sizes) -> a state whose moments are not zero."""

    def make(step, **sizes):
        optimizer = make_optimizer(Optimizer())
        state = initial_state({k: v + step for k, v in tiny_parameters.items()}, optimizer)
        state = state._replace(step=state.step + step, moments=jax.tree.map(lambda x: x + step, state.moments))
        return jax.device_put(state, laid_out(**sizes)[1])

    return make


def test_a_state_restores_bit_equal_onto_another_mesh(tmp_path, state_at, laid_out):
    state = state_at(3, fsdp=2, tensor=2)
    manager = open_checkpoints(tmp_path, 1, 0)
    save(manager, state, {"data": "abc"})
    manager.wait_until_finished()
    manager.close()
    manager = open_checkpoints(tmp_path, 1, 0)
    abstract, where, _ = laid_out(fsdp=8)
    restored, record = restore(manager, 3, abstract, where)
    assert record == {"data": "abc"}
    for ours, saved, sharding in zip(*map(jax.tree.leaves, (restored, state, where)), strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(saved))
        assert ours.sharding.is_equivalent_to(sharding, ours.ndim)
    manager.close()


def test_the_newest_and_every_nth_are_kept(tmp_path, state_at):
    manager = open_checkpoints(tmp_path, keep_last=2, keep_every=4)
    for step in range(1, 8):
        save(manager, state_at(step), {})
    manager.wait_until_finished()
    assert sorted(manager.all_steps()) == [4, 6, 7]
    manager.close()


def test_parameters_alone_are_read_for_sampling(tmp_path, tiny, state_at, laid_out):
    manager = open_checkpoints(tmp_path, 1, 0)
    state = state_at(2)
    save(manager, state, {})
    manager.wait_until_finished()
    manager.close()
    parameters = restore_parameters(tmp_path, tiny, laid_out(fsdp=4)[2])
    assert parameters.keys() == state.trainable.keys()
    for name, value in parameters.items():
        np.testing.assert_array_equal(np.asarray(value), np.asarray(state.trainable[name]))


def test_a_run_without_a_checkpoint_and_one_of_another_model_are_refused(tmp_path, tiny, state_at, laid_out):
    with pytest.raises(BadInput, match="no finished checkpoint"):
        restore_parameters(tmp_path, tiny, laid_out()[2])
    manager = open_checkpoints(tmp_path, 1, 0)
    save(manager, state_at(1), {})
    manager.wait_until_finished()
    abstract, where, _ = laid_out()
    wide = jax.ShapeDtypeStruct((300, 32), np.float32)
    other = abstract._replace(trainable={**abstract.trainable, "embedding": wide})
    with pytest.raises(BadInput, match="cannot be restored"):
        restore(manager, 1, other, where)
    manager.close()
