"""D2-Align through whole runs: the reward along a direction, a stopped run that goes on with the
same bits, and an iteration on eight devices that moves the policy as one device does.
"""

import functools

import jax
import numpy as np
import pytest

from configs import tiny_scene
from densegrpo_jax.rewards.directional import Direction, write_direction
from densegrpo_jax.rewards.local.scene_embedding import DIMENSIONS, SceneEmbeddingReward
from densegrpo_jax.runtime.mesh import make_mesh
from densegrpo_jax.runtime.stop import StopRequest
from densegrpo_jax.training.run import run
from tests.training.small_run import (
    OVERRIDES,
    SMOOTH,
    after_one_iteration,
    equal,
    final_state,
    moved_alike,
    one_device,
    rows,
)

pytestmark = [pytest.mark.usefixtures('exact_runs'), pytest.mark.slow]

SAMPLES, STEPS = 16, 3


@pytest.fixture(scope='module')
def direction(tmp_path_factory):
    """A file with a direction of no meaning."""
    path = tmp_path_factory.mktemp('direction') / 'direction.npz'
    vector = 0.3 * np.random.default_rng(0).standard_normal(len(DIMENSIONS)).astype(np.float32)
    reward = SceneEmbeddingReward()
    made = Direction(
        vector, 1.5, False, reward.name, reward.weights_fingerprint(), np.zeros(1, np.float32), {}
    )
    write_direction(path, made)
    return path


def trained(folder, direction, workdir, mesh=None, iterations=2):
    config = tiny_scene.get_config('method=d2_align')
    keys = {key: value for key, value in OVERRIDES.items() if key != 'data.train'}
    changes = {'model.path': str(folder), 'd2.file': str(direction), 'iterations': iterations}
    large = {'model.height': 32, 'full': False, 'ema.every': 8, 'eval.every': 50}
    config.update_from_flattened_dict(keys | SMOOTH | changes | large)
    config.reward = {'scene_embedding': {'weight': 1.0}}
    run(config, workdir, mesh or one_device(), StopRequest())
    return final_state(workdir)


@pytest.fixture(scope='module')
def whole(folder, direction, tmp_path_factory):
    """Makes, once, a run of two iterations on one device; returns its folder."""

    @functools.cache
    def made():
        path = tmp_path_factory.mktemp('whole')
        trained(folder, direction, path)
        return path

    return made


def test_a_run_continues_with_the_same_bits(folder, direction, whole, tmp_path):
    _, expected, meta = final_state(whole())
    stopped = after_one_iteration(whole(), tmp_path / 'stopped')
    step, continued, its = trained(folder, direction, stopped)
    equal(continued, expected)
    assert step == 2 and its['nfe'] == meta['nfe'] == 2 * SAMPLES * STEPS
    lines = [line for line in rows(whole()) if 'train/reward' in line]
    assert len(lines) == 2
    for line in lines:
        assert line['train/ratio_deviation_first'] <= 1e-6 and line['train/grad_norm'] > 0


def test_an_iteration_on_eight_devices_moves_as_on_one(folder, direction, whole, tmp_path):
    mesh = make_mesh({'data': 2, 'fsdp': 2, 'tensor': 2}, jax.devices())
    _, split, _ = trained(folder, direction, tmp_path / 'split', mesh, iterations=1)
    _, alone, _ = final_state(after_one_iteration(whole(), tmp_path / 'alone'))
    # a pixel that rounds the other way moves a reward
    moved_alike(split, alone, 2e-2)
