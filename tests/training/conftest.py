"""What tests of training share: runs whose bits are compared."""

import jax
import pytest

from densegrpo_jax.rewards.build import REWARDS
from tests.training.small_run import Brightness


@pytest.fixture
def exact_runs(monkeypatch):
    """Runs by `small_run.trained`, of which equal ones have equal bits."""
    monkeypatch.setitem(REWARDS, 'brightness', Brightness)
    # XLA:CPU rounds differently in a program that it reads back than in one it has just compiled
    enabled = jax.config.jax_enable_compilation_cache
    jax.config.update('jax_enable_compilation_cache', False)
    yield
    jax.config.update('jax_enable_compilation_cache', enabled)
