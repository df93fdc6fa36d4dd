"""A method of one's own through a whole run: the code of docs/methods.md, and parts named by where
they are imported from, which train as the same parts of the package do.
"""

import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densegrpo_jax.core.dense_reward import state_rewards
from densegrpo_jax.runtime.stop import StopRequest
from densegrpo_jax.training.run import run
from tests.programs import own_programs  # noqa: F401
from tests.training.formulas import TRAINED, Steps, group_advantages, moved_by
from tests.training.one_update import START, one_iteration
from tests.training.small_run import (
    SMOOTH,
    after_one_iteration,
    final_state,
    make_config,
    moved_alike,
    one_device,
    rows,
)

pytestmark = pytest.mark.usefixtures('own_programs')

ROOT = pathlib.Path(__file__).parents[2]
[PAGE] = re.findall(
    r'## Yours in 40 lines\n(.*)', (ROOT / 'docs/methods.md').read_text(), re.DOTALL
)
[CODE] = re.findall(r'```python\n(.*?)```', PAGE, re.DOTALL)
# key -> value of the page's command
GIVEN = dict(re.findall(r'--config\.(\S+?)=examples\.(\S+)', PAGE))

OWN = """
from densegrpo_jax.core.kernels import ETA, KERNELS, Kernel
from densegrpo_jax.core.noise_tables import NoiseTable
from densegrpo_jax.core.schedules import constant_noise_levels

kernel = Kernel(lambda *at: KERNELS['cps'].coefficients(*at), ETA, 1.0, noise_into_zero=False)
table = NoiseTable(constant_noise_levels, ETA, in_levels=True)
"""
SHIPPED = {'rollout.kernel': 'cps', 'rollout.noise': 'constant'}
NAMED = {'rollout.kernel': 'own_parts:kernel', 'rollout.noise': 'own_parts:table'}
GAE = {'credit.rule': 'gae', 'credit.gae_lambda': 1.0}
SHORT = {
    **SMOOTH,
    'optim.learning_rate': 1.0,
    'loss.clip_range': 0.2,
    'iterations': 1,
    'eval.every': 1,
    'ema.every': 8,
    'rollout.level': 0.6,
    'rollout.steps': 4,
}


@pytest.fixture(autouse=True)
def own_method(tmp_path_factory, monkeypatch):
    """The page's code is a module in a folder of the reader's."""
    path = tmp_path_factory.mktemp('reader')
    (path / 'own_method.py').write_text(CODE)
    monkeypatch.syspath_prepend(path)
    monkeypatch.delitem(sys.modules, 'own_method', raising=False)  # of another test


def trained(folder, workdir, **changes):
    config = make_config(folder, **{**SHORT, **changes})
    config.reward = {'pixels': {'weight': 1.0}}  # smooth: equal pictures up to rounding score alike
    run(config, workdir, one_device(), StopRequest())
    return final_state(workdir)[1]


def test_the_page_shows_the_example_in_at_most_40_lines():
    assert CODE == (ROOT / 'examples' / 'own_method.py').read_text()
    assert len(CODE.splitlines()) <= 40
    assert GIVEN == {'credit.rule': 'own_method:rule', 'loss.kind': 'own_method:loss'}


@pytest.mark.parametrize('invalid, updates', [(None, 1), (7, 2)])
def test_its_update_is_that_of_the_formula(invalid, updates):
    """In float64; the second update is off policy, where the pull counts."""
    changes = {**GIVEN, 'optim.updates': updates}
    c, rollout, rewards, valid, new, metrics = one_iteration(invalid, **changes)
    steps, keep = Steps(rollout), valid.all(0)
    values = np.asarray(state_rewards(rewards, rollout.plan.sources_of()), np.float64)

    def loss(policy, used):
        total = 0.0
        for k in range(TRAINED):
            advantage = group_advantages(c, values[-1] - values[k], keep)
            moved = steps.log_prob(policy, k) - steps.log_prob(np.float64(START), k)
            ratio = jnp.exp(moved)
            pull = abs(advantage) * (ratio - 1) ** 2 / (2 * c.loss.clip_range)
            total += jnp.where(used, pull - ratio * advantage, 0).sum()
        return total / (TRAINED * used.sum())

    with jax.enable_x64(True):
        expected = moved_by(c, loss, keep)
    found = new.policy['a'] - START
    np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())
    assert metrics['finite'] and np.abs(found).max() > 1e-2


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


@pytest.mark.slow
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


def test_the_method_of_the_page_trains_as_its_formula(folder, tmp_path):
    """As `gae` with the clipped loss: with λ = 1 the later gains add up to what is still gained,
    and at the ratio 1 there is neither pull nor clip.
    """
    cases = {'page': GIVEN, 'gae': GAE, 'usual': {}}
    page, gae, usual = (trained(folder, tmp_path / name, **of) for name, of in cases.items())
    moved_alike(page, gae, 1e-2)
    with pytest.raises(AssertionError, match='policy/'):
        moved_alike(page, usual, 0.1)


@pytest.mark.slow
def test_parts_of_ones_own_train_as_those_of_the_package(folder, tmp_path, monkeypatch):
    """Kernel and noise, to the bit."""
    (tmp_path / 'own_parts.py').write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    cases = {'own': NAMED, 'shipped': SHIPPED, 'usual': {}}
    own, shipped, usual = (trained(folder, tmp_path / name, **of) for name, of in cases.items())
    assert own.keys() == shipped.keys()
    for name in own:
        np.testing.assert_array_equal(own[name], shipped[name], name)
    assert any(np.abs(own[n] - usual[n]).max() > 1e-6 for n in own if n.startswith('policy/'))
