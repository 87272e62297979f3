"""Checkpoints: the newest and the best are both kept, and each is found."""

import jax.numpy as jnp
import numpy as np
import pytest

from jax_mlm.errors import UserError
from jax_mlm.run.checkpoint import load_params, open_checkpoints, restore, save
from jax_mlm.train.step import TrainState


def state(step: int) -> TrainState:
    params = {"dense": {"kernel": jnp.full((3, 2), float(step))}}
    return TrainState(jnp.int32(step), params, {"mu": params})


def saved(run, losses):
    manager = open_checkpoints(run)
    for step, loss in enumerate(losses, 1):
        save(manager, state(step), {"step": step, "elapsed": 0.5 * step, "horizon": 9}, loss)
    manager.wait_until_finished()
    return manager


@pytest.mark.parametrize(
    ("losses", "kept", "best"),
    [
        ([3.0, 1.0, 2.0, 2.5, 2.6], [2, 3, 4, 5], 2),
        ([4.0, 3.0, 2.0, 1.0], [2, 3, 4], 4),
        ([1.0, 2.0, 2.0, 2.0, None], [1, 3, 4, 5], 1),
        ([None, None], [1, 2], 2),
    ],
)
def test_the_best_and_the_three_newest_are_kept_and_resume_takes_the_latest(tmp_path, losses, kept, best):
    with saved(tmp_path, losses) as manager:
        assert list(manager.all_steps()) == kept
        restored, meta = restore(manager, state(0))
    assert int(restored.step) == meta["step"] == len(losses)
    assert meta["elapsed"] == 0.5 * len(losses)
    assert load_params(tmp_path, "best")[0] == best
    for step in kept:
        found, params = load_params(tmp_path, step)
        assert found == step
        assert isinstance(params["dense"]["kernel"], np.ndarray)
        np.testing.assert_array_equal(params["dense"]["kernel"], np.full((3, 2), float(step)))
    assert load_params(tmp_path)[0] == load_params(tmp_path, "latest")[0] == len(losses)


def test_a_save_cut_short_is_not_taken_for_a_checkpoint(tmp_path):
    saved(tmp_path, [2.0, 1.0]).close()
    torn = tmp_path / "checkpoints" / "3.orbax-checkpoint-tmp"
    torn.mkdir()
    (torn / "state").mkdir()
    assert load_params(tmp_path)[0] == 2
    with open_checkpoints(tmp_path) as manager:
        assert restore(manager, state(0))[1]["step"] == 2
        save(manager, state(3), {"step": 3, "elapsed": 0.0, "horizon": 9}, 0.5)
    assert load_params(tmp_path)[0] == 3


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="holds no checkpoint"):
        load_params(tmp_path)
    saved(tmp_path, [1.0]).close()
    with pytest.raises(UserError, match="step 7"):
        load_params(tmp_path, 7)
