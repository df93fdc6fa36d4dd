"""A method of one's own through a whole run: parts named by where they are imported from train as
the same parts of the package do.
"""

import numpy as np
import pytest

from densegrpo_jax.runtime.stop import StopRequest
from densegrpo_jax.training.run import run
from tests import miniature
from tests.training.small_run import final_state, make_config, one_device

OWN = """
from densegrpo_jax.core.credit_rules import CreditRule, read_onwards
from densegrpo_jax.core.dense_reward import dense_reward
from densegrpo_jax.core.kernels import ETA, KERNELS, Kernel
from densegrpo_jax.core.noise_tables import NoiseTable
from densegrpo_jax.core.schedules import constant_noise_levels

def assign(rewards, *, gae_lambda):
    return dense_reward(rewards, 'gae', gae_lambda=gae_lambda)

rule = CreditRule(assign, read_onwards)
kernel = Kernel(lambda *at: KERNELS['cps'].coefficients(*at), ETA, 1.0, noise_into_zero=False)
table = NoiseTable(constant_noise_levels, ETA, in_levels=True)
"""
SHIPPED = {'credit.rule': 'gae', 'rollout.kernel': 'cps', 'rollout.noise': 'constant'}
NAMED = {
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


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return miniature.random_flux(tmp_path_factory.mktemp('flux'))


def trained(folder, workdir, **changes):
    run(make_config(folder, **SHORT, **changes), workdir, one_device(), StopRequest())
    return final_state(workdir)[1]


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
