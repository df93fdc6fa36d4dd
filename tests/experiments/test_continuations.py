"""A trajectory that is followed from one of its states."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densegrpo_jax.core.masks import step_masks
from densegrpo_jax.core.rollout import run_plan
from densegrpo_jax.core.rollout_plan import trajectory_plan
from experiments.reproduction.continuations import continue_trajectory

GRID = np.float32([1.0, 0.9, 0.75, 0.5, 0.2, 0.0])
T = len(GRID) - 1
LEVELS = np.float32([0.9, 0.8, 0.7, 0.6, 0.5])
RNG = np.random.default_rng(0)
X_INIT, *NOISE = RNG.standard_normal((T + 1, 4, 3)).astype(np.float32)
NOISE = np.array(NOISE)
MASKS = {
    'paper': step_masks(GRID, train_end=True),
    'default': step_masks(GRID),
    'window': step_masks(GRID, first=1, last=3),
}


def velocity(x, s):
    return jnp.tanh(2 * x) + s[:, None]


def pair(x, s):
    """A policy's velocity, and the guided one that its samples follow."""
    return velocity(x, s), velocity(x, s) + 0.3 * x


def noise(k):
    return jnp.asarray(NOISE)[k]


@pytest.mark.parametrize('policy', [velocity, pair])
@pytest.mark.parametrize('name', MASKS)
def test_continuing_a_trajectory_with_its_own_noise_ends_in_its_sample(name, policy):
    plan = trajectory_plan(MASKS[name])
    states = run_plan(policy, X_INIT, GRID, LEVELS, plan, noise).latents
    levels = np.where(MASKS[name].stochastic, LEVELS, 0)
    calls = []

    def counted(x, s):
        jax.debug.callback(lambda: calls.append(1))
        return policy(x, s)

    follow = jax.jit(lambda x, k: continue_trajectory(counted, x, k, GRID, levels, noise))
    for k in range(T + 1):
        calls.clear()
        found = jax.block_until_ready(follow(states[k], k))
        jax.effects_barrier()
        np.testing.assert_allclose(found, states[-1], atol=2e-6)
        assert len(calls) == T - k
    assert follow._cache_size() == 1  # one body for all states
    other = continue_trajectory(policy, states[1], 1, GRID, levels, lambda j: -noise(j))
    assert np.abs(other - states[-1]).max() > 0.1
