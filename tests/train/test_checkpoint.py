import jax
import numpy as np
import pytest

from sft_jax.config import Optimizer, Sharding
from sft_jax.errors import BadInput
from sft_jax.model.decoder import abstract_parameters
from sft_jax.parallel.rules import axis_parts, shardings
from sft_jax.train.checkpoint import open_checkpoints, restore, save
from sft_jax.train.optimizers import make_optimizer
from sft_jax.train.sharding import state_shardings
from sft_jax.train.step import initial_state
from sft_jax.weights.restore import restore_parameters


@pytest.fixture
def laid_out(tiny, mesh_of):
    """mesh sizes -> (abstract state, its shardings, the parameters' shapes with their shardings)."""

    def with_layout(abstract, layout):
        return {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout[name]) for name, leaf in abstract.items()
        }

    def lay_out(rules=Sharding(), **sizes):  # noqa: B008  (frozen)
        mesh = mesh_of(**sizes)
        abstract, axes = abstract_parameters(tiny.padded_to(axis_parts("vocab", rules, mesh)))
        layout = shardings({name: leaf.shape for name, leaf in abstract.items()}, axes, mesh, rules)
        optimizer = make_optimizer(Optimizer())
        state = jax.eval_shape(lambda parameters: initial_state(parameters, optimizer), abstract)
        return state, state_shardings(state, axes, mesh, rules), with_layout(abstract, layout)

    return lay_out


@pytest.fixture
def state_at(tiny_parameters, laid_out):
    """(step, mesh sizes) -> a state whose moments are not zero."""

    def make(step, **sizes):
        optimizer = make_optimizer(Optimizer())
        state = initial_state({k: v + step for k, v in tiny_parameters.items()}, optimizer)
        state = state._replace(step=state.step + step, opt_state=jax.tree.map(lambda x: x + step, state.opt_state))
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
    restored, record = restore(manager, 3, abstract, where, 260)
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
    parameters, record = restore_parameters(tmp_path, laid_out(fsdp=4)[2], tiny.vocab)
    assert record == {}
    assert parameters.keys() == state.trainable.keys()
    for name, value in parameters.items():
        np.testing.assert_array_equal(np.asarray(value), np.asarray(state.trainable[name]))


def test_a_run_without_a_checkpoint_and_one_of_another_model_are_refused(tmp_path, tiny, state_at, laid_out):
    with pytest.raises(BadInput, match="no finished checkpoint"):
        restore_parameters(tmp_path, laid_out()[2], tiny.vocab)
    manager = open_checkpoints(tmp_path, 1, 0)
    save(manager, state_at(1), {})
    manager.wait_until_finished()
    abstract, where, _ = laid_out()
    wide = jax.ShapeDtypeStruct((300, 32), np.float32)
    other = abstract._replace(trainable={**abstract.trainable, "embedding": wide})
    with pytest.raises(BadInput, match=r"embedding: found \[260, 32\], expected \[300, 32\]"):
        restore(manager, 1, other, where, 300)
    manager.close()


def test_vocabulary_rows_of_one_layout_are_cut_or_added_for_another(tmp_path, state_at, laid_out, tiny):
    manager = open_checkpoints(tmp_path, 1, 0)
    state = state_at(3)
    save(manager, state, {})
    manager.wait_until_finished()
    rules = Sharding(heads="none", kv_heads="none", mlp="none")
    abstract, where, layout = laid_out(rules, tensor=8)
    padded, _ = restore(manager, 3, abstract, where, tiny.vocab)
    for tree in (padded.trainable, padded.opt_state[0].mu, padded.opt_state[0].nu):
        assert tree["embedding"].shape == (264, 32) and not np.asarray(tree["embedding"][260:]).any()
    manager.close()

    manager = open_checkpoints(tmp_path / "padded", 1, 0)
    save(manager, padded, {})
    manager.wait_until_finished()
    abstract, where, _ = laid_out(fsdp=2)
    again, _ = restore(manager, 3, abstract, where, tiny.vocab)
    manager.close()
    for ours, saved in zip(*map(jax.tree.leaves, (again, state)), strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(saved))
    assert restore_parameters(tmp_path, layout, tiny.vocab)[0]["embedding"].shape == (264, 32)


def test_reading_parameters_leaves_a_save_that_goes_on_alone(tmp_path, tiny, state_at, laid_out):
    manager = open_checkpoints(tmp_path, 1, 0)
    save(manager, state_at(1), {})
    manager.wait_until_finished()
    manager.close()
    unfinished = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    unfinished.mkdir()
    restore_parameters(tmp_path, laid_out()[2], tiny.vocab)
    assert unfinished.is_dir()
    # The one that trains removes it: Orbax does so in the background, and waits for it before it saves.
    manager = open_checkpoints(tmp_path, 1, 0)
    save(manager, state_at(2), {})
    manager.wait_until_finished()
    manager.close()
    assert not unfinished.exists()


def test_the_manager_leaves_preemption_to_the_loop(tmp_path, monkeypatch):
    """Orbax would ask JAX's synchronisation point with the step; the loop asks with ticks of its own."""
    monkeypatch.setattr("jax.experimental.multihost_utils.reached_preemption_sync_point", lambda step: True)
    manager = open_checkpoints(tmp_path, 1, 0)
    assert manager.reached_preemption(7) is False
    manager.close()
