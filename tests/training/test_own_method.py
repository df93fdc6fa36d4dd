"""A method of one's own through a whole run: parts named by where they are imported from train as
the same parts of the package do.
"""

import numpy as np
import pytest

from densegrpo_jax.runtime.stop import StopRequest
from densegrpo_jax.training.run import run
from tests.programs import own_programs  # noqa: F401
from tests.training.small_run import after_one_iteration, final_state, make_config, one_device, rows

pytestmark = pytest.mark.usefixtures('own_programs')

OWN = """
from densegrpo_jax.core.credit_rules import CreditRule, read_onwards
from densegrpo_jax.core.dense_reward import dense_reward
from densegrpo_jax.core.kernels import ETA, KERNELS, Kernel
from densegrpo_jax.core.grpo_loss import grpo_loss
from densegrpo_jax.core.losses import Loss
from densegrpo_jax.core.noise_tables import NoiseTable
from densegrpo_jax.core.schedules import constant_noise_levels

def assign(rewards, *, gae_lambda):
    return dense_reward(rewards, 'gae', gae_lambda=gae_lambda)

rule = CreditRule(assign, read_onwards)
kernel = Kernel(lambda *at: KERNELS['cps'].coefficients(*at), ETA, 1.0, noise_into_zero=False)
table = NoiseTable(constant_noise_levels, ETA, in_levels=True)

def clipped(outputs, batch, *, clip_range):
    stored = {'mask': batch.mask, 'weight': batch.weight, 'clip_range': clip_range}
    return grpo_loss(outputs['policy'], batch.log_prob, batch.advantage, **stored)

loss = Loss(clipped)
"""
SHIPPED = {'credit.rule': 'gae', 'rollout.kernel': 'cps', 'rollout.noise': 'constant'}
NAMED = {
    'loss.kind': 'own_parts:loss',
    'credit.rule': 'own_parts:rule',
    'rollout.kernel': 'own_parts:kernel',
    'rollout.noise': 'own_parts:table',
}
SHORT = {
    'iterations': 1,
    'eval.every': 1,
    'rollout.level': 0.6,
    'credit.gae_lambda': 0.8,
    'rollout.steps': 4,
}


def trained(folder, workdir, **changes):
    run(make_config(folder, **{**SHORT, **changes}), workdir, one_device(), StopRequest())
    return final_state(workdir)[1]


REGRESSION = """
import jax.numpy as jnp
from densegrpo_jax.core.losses import CLEAN, Loss, loss_sums
from densegrpo_jax.core.roles import EMA, moving_average

def regression(outputs, batch):
    error = (outputs['policy'] - (batch.noise - batch.x0)) ** 2
    near = (outputs['policy'] - outputs['old']) ** 2 + (outputs['policy'] - outputs['ema']) ** 2
    each = batch.advantage['outcome'] * error.mean((1, 2)) + near.mean((1, 2))
    return loss_sums(each, batch.mask)

old = moving_average(lambda step: 0.5)
loss = Loss(regression, CLEAN, needs=(EMA, 'old'), follows={'old': old})
"""
ON_SAMPLES = {
    'loss.kind': 'own_regression:loss',
    'credit.rule': 'sparse',
    'loss.noise_power': 0.0,
    'loss.beta': 0.01,
    'optim.microbatch': 8,
    'optim.decay': 'constant',
}


def test_a_loss_on_clean_samples_trains_and_continues(folder, tmp_path, monkeypatch):
    """The draws of a run that was stopped go on as if it had not been."""
    (tmp_path / 'own_regression.py').write_text(REGRESSION)
    monkeypatch.syspath_prepend(tmp_path)
    whole = trained(folder, tmp_path / 'whole', **ON_SAMPLES, iterations=2)
    stopped = after_one_iteration(tmp_path / 'whole', tmp_path / 'stopped')
    continued = trained(folder, stopped, **ON_SAMPLES, iterations=2)
    for name in whole:
        np.testing.assert_array_equal(whole[name], continued[name], name)
    last = rows(tmp_path / 'whole')[-1]
    assert last['train/samples'] == 16 and last['train/kl'] > 0
    assert last['train/finite'] == 1 and 'train/ratio_deviation' not in last
    assert any(np.any(whole[n]) for n in whole if n.startswith('old/') and n.endswith('/b'))
    assert whole['step'] == 2 and np.isfinite(last['train/loss'])


def test_parts_of_ones_own_train_as_those_of_the_package(folder, tmp_path, monkeypatch):
    (tmp_path / 'own_parts.py').write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    own, shipped, usual = (
        trained(folder, tmp_path / name, **changes)
        for name, changes in (('own', NAMED), ('shipped', SHIPPED), ('usual', {}))
    )
    assert own.keys() == shipped.keys()
    for name in own:
        np.testing.assert_array_equal(own[name], shipped[name], name)
    assert any(np.abs(own[n] - usual[n]).max() > 1e-6 for n in own if n.startswith('policy/'))
