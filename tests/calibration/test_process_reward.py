"""The process reward's fit: it finds what is linear, judges it on held-out prompts, and its file is
refused for another base, reward or grid.
"""

import numpy as np
import pytest

from densegrpo_jax.calibration import process_reward
from densegrpo_jax.calibration.process_reward import Rows, fit_probe
from densegrpo_jax.config.methods import METHODS
from densegrpo_jax.rewards.base import RewardError
from densegrpo_jax.runtime.stop import StopRequest
from densegrpo_jax.sampling.process_reward import read_probe
from densegrpo_jax.sampling.session import check
from tests import miniature
from tests.meshes import data_mesh
from tests.training.small_run import make_config, one_device

SIGMAS = np.float32([1, 0.6, 0])
METHOD = {
    **METHODS['euphonium'].overrides,
    'rollout.steps': 3,
    'guide.samples': 48,
    'guide.steps': (1,),
    'reward_workers': 1,
}


def rows(noise=0.0, prompts=20, group=6, size=8):
    """Rewards that are linear in the hidden states of the last state, and of none before it."""
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((3, prompts * group, size)).astype(np.float32)
    weights = rng.standard_normal(size)
    reward = hidden[-1] @ weights + noise * rng.standard_normal(prompts * group)
    prompt = np.repeat(np.arange(prompts), group)
    return Rows(hidden, reward.astype(np.float32), prompt, prompt), weights


def test_what_a_fit_explains_is_told_state_by_state():
    given, weights = rows()
    found = fit_probe(given, SIGMAS, (1e-3, 10.0))
    assert found.hidden.shape == (8,) and found.time.shape == (3,) and found.penalty == 1e-3
    # one regression for three states, of which one tells the reward: a third of its weights
    np.testing.assert_allclose(found.hidden, weights / 3, atol=0.4)
    assert found.explained[2] > 0.4 and found.within[2] > 0.4
    assert (found.explained[:2] < 0.1).all() and (found.within[:2] < 0.1).all()


def test_a_prompt_s_mean_is_no_help_within_it():
    """Hidden states that tell the prompt and nothing else."""
    given, _ = rows()
    of_prompt = (-1.0) ** given.prompt
    hidden = 0 * given.hidden
    hidden[..., 0] = of_prompt
    noise = 0.3 * np.random.default_rng(2).standard_normal(120)
    found = fit_probe(
        given._replace(hidden=hidden, reward=(of_prompt + noise).astype(np.float32)),
        SIGMAS,
        (1e-3,),
    )
    assert (found.explained > 0.7).all() and (np.abs(found.within) < 0.01).all()


def test_equal_rewards_leave_nothing_to_fit():
    given, _ = rows()
    with pytest.raises(RewardError, match='all 120 samples have the same reward, 0.5'):
        fit_probe(given._replace(reward=np.full(120, 0.5, np.float32)), SIGMAS, (1.0,))


def config_of(folder, **changes):
    config = make_config(folder, **{**METHOD, **changes})
    config.reward = {'brightness': {'weight': 1.0}}
    return config


def needed(config):
    return check(config, one_device(), needs=('schedule', 'process_reward')).process_reward


def test_the_command_s_file_and_what_it_is_refused_for(folder, tmp_path):
    out = tmp_path / 'made' / 'process.npz'
    made = process_reward.run(config_of(folder), tmp_path, out, one_device(), StopRequest())
    probe = read_probe(out)
    np.testing.assert_array_equal(probe.hidden, made.hidden)
    assert probe.hidden.shape == (32,) and np.abs(probe.hidden).max() > 0
    assert probe.facts['samples'] == 48
    names = [name for name in probe.facts if name.startswith('explained within prompts')]
    assert len(names) == 4 and all(probe.facts[name] <= 1 for name in names)

    # stopped after a batch, the same command goes on
    first, *others = sorted((tmp_path / 'batches').glob('*/batch_*.npz'))
    before = first.stat().st_mtime_ns
    for path in others:
        path.unlink()
    on = process_reward.run(config_of(folder), tmp_path, out, one_device(), StopRequest())
    np.testing.assert_array_equal(on.hidden, made.hidden)
    assert first.stat().st_mtime_ns == before and others[0].is_file()

    given = {'guide.file': str(out)}
    fitting = needed(config_of(folder, **given))
    assert fitting.probe.digest == made.digest
    assert fitting.facts() == {'process reward': made.digest}
    # the amounts and the noise of a run are its own
    needed(config_of(folder, **given, **{'rollout.level': 0.4, 'rollout.group': 8}))
    for changes, words in (
        ({'rollout.steps': 4, 'guide.steps': (1,)}, 'rollout.steps: 3, now 4'),
        ({'model.guidance': 2.0}, 'model.guidance'),
    ):
        with pytest.raises(ValueError, match=f'fitted for something else .*{words}'):
            needed(config_of(folder, **given, **changes))
    other = config_of(folder, **given)
    other.reward = {'brightness': {'weight': 2.0}}
    with pytest.raises(ValueError, match='reward.brightness.weight: 1.0, now 2.0'):
        needed(other)
    another = miniature.random_flux(tmp_path / 'another', seed=1)
    with pytest.raises(ValueError, match='weights of the transformer'):
        needed(config_of(another, **given))
    for content, words in (
        (b'not an npz', 'cannot be read'),
        (out.read_bytes()[:400], 'cannot be read'),
    ):
        (tmp_path / 'bad.npz').write_bytes(content)
        with pytest.raises(ValueError, match=words):
            needed(config_of(folder, **{'guide.file': str(tmp_path / 'bad.npz')}))
    rest = {'settings': '{}', 'names': [], 'values': [], 'time': np.zeros(3)}
    np.savez(tmp_path / 'bad.npz', format=1, hidden=np.float32([np.nan]), **rest)
    with pytest.raises(ValueError, match='hidden is float32 .*must be finite numbers'):
        needed(config_of(folder, **{'guide.file': str(tmp_path / 'bad.npz')}))
    with pytest.raises(FileNotFoundError, match='there is no file .*densegrpo_jax.process_reward'):
        needed(config_of(folder))


@pytest.mark.slow
def test_two_devices_fit_as_one_does(folder, tmp_path):
    config = config_of(folder, **{'guide.ridge': 0.1})
    found = []
    for devices in (1, 2):
        mesh = data_mesh(devices)
        out = tmp_path / f'{devices}.npz'
        workdir = tmp_path / str(devices)
        found.append(process_reward.run(config, workdir, out, mesh, StopRequest()))
    one, two = found
    np.testing.assert_allclose(two.hidden, one.hidden, atol=1e-3 * np.abs(one.hidden).max())
