"""What second implementations of a loss's formula are made of, in float64: the rollout of
one_update.py, its advantages, and the step that minus the gradient makes.
"""

import jax
import jax.numpy as jnp
import numpy as np

from tests.training.one_update import BASE, GROUP, PROMPT, PROMPTS, SAMPLES, SIGMAS, START

TRAINED = 4


def velocity(matrix, x, s):
    return jnp.tanh(x @ matrix) + s * x + np.repeat(PROMPT, GROUP, 0)[:, None, :]


def group_advantages(config, rewards, keep):
    """[B] (r - mean) / (std + eps) in each group."""
    found = np.zeros(SAMPLES)
    for group in np.arange(SAMPLES).reshape(PROMPTS, GROUP):
        kept = rewards[group[keep[group]]].astype(np.float64)
        found[group] = (rewards[group] - kept.mean()) / (kept.std() + config.credit.std_eps)
    return np.where(keep, found, 0)


class Steps:
    """The trained transitions of a rollout with the kernel sde, in float64."""

    def __init__(self, rollout):
        latents = np.asarray(rollout.latents, np.float64)
        s = SIGMAS.astype(np.float64)
        self.x, self.x_next, self.s = latents[:TRAINED], latents[1 : TRAINED + 1], s
        self.level = 0.7 * np.sqrt(s[:TRAINED] / (1 - np.where(s == 1, s[1], s)[:TRAINED]))
        self.gap = s[:TRAINED] - s[1 : TRAINED + 1]
        self.std = self.level * np.sqrt(self.gap)

    def mean(self, policy, k):
        s, x, half = self.s[k], self.x[k], self.level[k] ** 2 * self.gap[k] / (2 * self.s[k])
        v = velocity(BASE.astype(np.float64) + policy, x, s)
        return x - self.gap[k] * v - half * (x + (1 - s) * v)

    def log_prob(self, policy, k):
        return -(((self.x_next[k] - self.mean(policy, k)) / self.std[k]) ** 2).mean((1, 2)) / 2


def moved_by(config, loss, keep):
    """Minus the sum of the gradients of `loss(policy, samples [B])` over the updates' shares."""
    policy = np.asarray(START, np.float64)
    for share in np.split(np.arange(SAMPLES), config.optim.updates):
        used = np.isin(np.arange(SAMPLES), share) & keep
        policy = policy - np.asarray(jax.grad(loss)(policy, used))
    return policy - START


def follows(config, loss, keep, new, tolerance):
    """Asserts that an update has moved the policy, as `moved_by` says, to `tolerance` of the
    largest move.
    """
    with jax.enable_x64(True):
        expected = moved_by(config, loss, keep)
    found = new.policy['a'] - START
    np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max())
    assert np.abs(found).max() > 1e-2
