"""Runs under a guard: the exact runs of training, and a configuration."""

import pytest

from densegrpo_jax.rewards.build import REWARDS
from tests.guard.guarded import Chance, Darkness, Same
from tests.training.conftest import exact_runs  # noqa: F401
from tests.training.small_run import make_config


@pytest.fixture
def config(folder, monkeypatch):
    """Five updates on brightness with large steps, each evaluated and saved. Darkness has fallen
    from the third one on.
    """
    monkeypatch.setitem(REWARDS, 'darkness', Darkness)
    monkeypatch.setitem(REWARDS, 'same', Same)
    monkeypatch.setitem(REWARDS, 'chance', Chance)
    found = make_config(
        folder,
        iterations=5,
        **{
            'eval.every': 1,
            'eval.report': False,
            'eval.groups': 0,
            'checkpoint.keep': 10,
            'optim.learning_rate': 0.03,
            'optim.decay': 'linear',
            'ema.every': 1,
            'ema.decay': 0.0,
            'reward_workers': 1,
            'guard.on': True,
            'guard.level': 0.01,
            'guard.prompts': 8,
            'guard.images': 2,
            'guard.kl_prompts': 0,
        },
    )
    found.reward = {'brightness': {'weight': 1.0}}
    found.eval.panel = {'darkness': {}}
    return found
