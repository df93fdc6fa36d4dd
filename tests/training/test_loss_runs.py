"""Shipped losses through whole runs: what they sample, count and keep when a run continues."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densegrpo_jax.config.methods import METHODS
from densegrpo_jax.core.roles import OLD_DECAYS
from densegrpo_jax.pipelines.folder import load_pipeline
from densegrpo_jax.rewards.build import REWARDS
from densegrpo_jax.rewards.trial import IMAGES as TRIED
from densegrpo_jax.runtime.stop import StopRequest
from densegrpo_jax.sampling.collector import Collector
from densegrpo_jax.sampling.cost import of_sample
from densegrpo_jax.sampling.schedule import make_schedule
from densegrpo_jax.training.run import run
from tests.programs import own_programs  # noqa: F401
from tests.training.small_run import (
    Brightness,
    after_one_iteration,
    final_state,
    make_config,
    one_device,
    rows,
)

pytestmark = pytest.mark.usefixtures('own_programs')

SHORT = {'iterations': 1, 'eval.every': 1, 'rollout.steps': 4, 'optim.decay': 'constant'}


def trained(method, folder, workdir, **changes):
    changes = {**METHODS[method].overrides, **SHORT, **changes}
    run(make_config(folder, **changes), workdir, one_device(), StopRequest())
    return final_state(workdir)[1]


class Counted(Brightness):
    """Counts the pictures that it scores."""

    batches: ClassVar[list[int]] = []  # several threads append

    def __call__(self, images, *rest):
        Counted.batches.append(len(images))
        return super().__call__(images, *rest)


def test_sdpo_scores_three_pictures_of_a_trajectory(folder, tmp_path, monkeypatch):
    """And evaluates nothing but the trajectory. The reward sees distinct images alone."""
    monkeypatch.setitem(REWARDS, 'brightness', Counted)
    Counted.batches.clear()
    config = make_config(folder, **METHODS['sdpo'].overrides, **SHORT)
    config.reward = {'brightness': {'weight': 1.0}}
    run(config, tmp_path, one_device(), StopRequest())
    last, samples, evaluations = rows(tmp_path)[-1], 16, 2 * 8
    # The first prediction is that of the initial noise, one for a group of 4.
    assert sum(Counted.batches) == TRIED + (2 * 4 + 1) * 4 + evaluations
    each = of_sample(config, make_schedule(load_pipeline(folder, text_length=16)[0], config))
    assert samples * each.images == (2 * 4 + 1) * 4
    assert last['train/nfe'] == 4 * samples and last['train/transitions'] == 3 * samples
    assert last['train/ratio_deviation_first'] <= 1e-6 and last['train/grad_norm'] > 0


def test_nft_samples_from_the_old_policy_and_continues(folder, tmp_path, monkeypatch):
    """Bit for bit, with d = 1/4 after the first iteration and 1/2 after the second."""
    monkeypatch.setitem(OLD_DECAYS, 'rising', lambda step: 0.25 * (step + 1.0))
    sampled, sample = [], Collector.sample

    def watched(self, rollout_fn, policy, *rest, **options):
        sampled.append(jax.device_get(policy))
        found = sample(self, rollout_fn, policy, *rest, **options)
        assert all(not np.any(rollout.std) for rollout in found[0])  # by ODE
        return found

    monkeypatch.setattr(Collector, 'sample', watched)
    of = {'loss.draws': 3, 'loss.beta': 0.01, 'optim.microbatch': 8}
    whole = trained('nft', folder, tmp_path / 'whole', **of, iterations=2)
    stopped = after_one_iteration(tmp_path / 'whole', tmp_path / 'stopped')
    _, first, _ = final_state(stopped)
    continued = trained('nft', folder, stopped, **of, iterations=2)
    for name in whole:
        np.testing.assert_array_equal(whole[name], continued[name], name)
    # The first update starts at zero matrices b; its policy moves them, and the old one less.
    names = [n.removeprefix('old/') for n in first if n.startswith('old/')]
    moved = [n for n in names if n.endswith('/b') and np.any(first[f'policy/{n}'])]
    assert moved
    for name in moved:
        old = 0.75 * first[f'policy/{name}']
        np.testing.assert_allclose(first[f'old/{name}'], old, rtol=1e-6)
        later = 0.5 * old + 0.5 * whole[f'policy/{name}']
        np.testing.assert_allclose(whole[f'old/{name}'], later, rtol=1e-5, atol=1e-9)
    used = jax.tree.leaves(sampled[1])  # of the second iteration
    old = [first[f'old/{name}'] for name in names]
    assert {a.tobytes() for a in map(np.asarray, used)} == {a.tobytes() for a in old}
    last = rows(tmp_path / 'whole')[-1]
    assert last['train/samples'] == 3 * 16 and last['train/kl'] > 0
    assert last['train/nfe'] == 2 * 16 * 4  # T = 4 each
    assert jnp.isfinite(last['train/loss']) and last['train/finite'] == 1
