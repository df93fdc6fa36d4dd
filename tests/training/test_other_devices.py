"""A checkpoint continues on another number of devices, with the batches that the recipe has for
them: a run that was moved ends where one that stayed does.
"""

import numpy as np
import pytest

from densegrpo_jax.config.variants import apply
from densegrpo_jax.rewards.build import REWARDS
from densegrpo_jax.runtime.stop import StopRequest
from densegrpo_jax.training.run import run
from tests.meshes import data_mesh
from tests.programs import shared_programs, sharing  # noqa: F401
from tests.training.small_run import (
    SMOOTH,
    Brightness,
    after_one_iteration,
    final_state,
    make_config,
    moved_alike,
    rows,
)

pytestmark = pytest.mark.usefixtures('shared_programs')


def train(folder, workdir, devices, iterations):
    """Trains, or continues, under `:devices=N`; returns the summary."""
    config = make_config(folder, iterations=iterations, **SMOOTH, **{'ema.every': 8})
    config.reward = {'brightness': {'weight': 1.0}}
    config.text_cache = str(folder.parent / 'text')
    apply(config, f'devices={devices}', samples=4, transitions=8)
    assert (config.rollout.prompts_per_batch, config.optim.microbatch) == (devices, 8 * devices)
    mesh = data_mesh(devices)
    return run(config, workdir, mesh, StopRequest())


@pytest.fixture(scope='module')
def stayed(folder, tmp_path_factory):
    """The folder and the summary of a run that stays on one device."""
    workdir = tmp_path_factory.mktemp('stayed')
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(REWARDS, 'brightness', Brightness)
        with sharing():
            return workdir, train(folder, workdir, 1, 2)


# test_checkpoints.py restores onto another mesh, test_meshes.py compares what runs there, and
# test_processes.py has a whole run over several devices.
@pytest.mark.slow
@pytest.mark.parametrize('devices', [2, 1])
def test_a_run_continues_on_other_devices(folder, stayed, tmp_path, monkeypatch, devices):
    """From one device to two, or from two to one, after the first update."""
    monkeypatch.setitem(REWARDS, 'brightness', Brightness)
    before, its = stayed
    moved = tmp_path / 'moved'
    if devices == 2:
        after_one_iteration(before, moved)
    else:
        train(folder, moved, 2, 1)
    summary = train(folder, moved, devices, 2)
    assert summary['updates'] == 2 and len(summary['evaluations']) >= 2
    # Sums in another order round otherwise, and a pixel that rounds the other way moves a reward by
    # 2.6e-6.
    moved_alike(final_state(moved)[1], final_state(before)[1], 1e-2)
    np.testing.assert_allclose(summary['evaluations'][-1][1], its['evaluations'][-1][1], atol=5e-6)
    # the gradient is that of advantages, which divide by the spread of the rewards
    for key, rtol in {'train/reward': 0, 'gain/step_0': 2e-4, 'train/grad_norm': 1e-2}.items():
        found, want = (rows(path)[2][key] for path in (moved, before))
        np.testing.assert_allclose(found, want, rtol=rtol, atol=5e-6, err_msg=key)
