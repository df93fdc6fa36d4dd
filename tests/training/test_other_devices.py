"""A checkpoint continues on another number of devices, with the batches that the recipe has for
them: a run that was moved ends where one that stayed does.
"""

import jax
import numpy as np
import pytest

from densegrpo_jax.config.variants import apply
from densegrpo_jax.rewards.build import REWARDS
from densegrpo_jax.runtime.mesh import make_mesh
from densegrpo_jax.runtime.stop import StopRequest
from densegrpo_jax.training.run import run
from tests.programs import shared_programs  # noqa: F401
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
    mesh = make_mesh({'data': devices, 'fsdp': 1, 'tensor': 1}, jax.devices()[:devices])
    return run(config, workdir, mesh, StopRequest())


def test_a_run_continues_on_other_devices(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(REWARDS, 'brightness', Brightness)
    stayed = train(folder, tmp_path / 'stayed', 1, 2)
    _, expected, _ = final_state(tmp_path / 'stayed')
    # from one device to two: the same run as it was after its first update
    after_one_iteration(tmp_path / 'stayed', tmp_path / 'to two')
    moved = {'to two': train(folder, tmp_path / 'to two', 2, 2)}
    # and from two to one
    train(folder, tmp_path / 'to one', 2, 1)
    moved['to one'] = train(folder, tmp_path / 'to one', 1, 2)
    for name, summary in moved.items():
        assert summary['updates'] == 2 and len(summary['evaluations']) >= 2
        # Sums in another order round otherwise, and a pixel that rounds the other way moves a
        # reward by 2.6e-6.
        moved_alike(final_state(tmp_path / name)[1], expected, 1e-2)
        np.testing.assert_allclose(
            summary['evaluations'][-1][1], stayed['evaluations'][-1][1], atol=5e-6
        )
        # the gradient is that of advantages, which divide by the spread of the rewards
        for key, rtol in {'train/reward': 0, 'gain/step_0': 2e-4, 'train/grad_norm': 1e-2}.items():
            found, want = (rows(tmp_path / n)[2][key] for n in (name, 'stayed'))
            np.testing.assert_allclose(found, want, rtol=rtol, atol=5e-6, err_msg=key)
