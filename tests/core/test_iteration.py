"""A whole training iteration out of core functions, in one jit, raises a toy reward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densegrpo_jax.core.advantages import group_advantages, group_ids_of
from densegrpo_jax.core.dense_reward import dense_reward, needed_states, state_rewards
from densegrpo_jax.core.grpo_loss import grpo_loss
from densegrpo_jax.core.masks import step_masks
from densegrpo_jax.core.rollout import run_plan
from densegrpo_jax.core.rollout_plan import state_points, trajectory_plan
from densegrpo_jax.core.schedules import flow_grpo_noise_levels
from densegrpo_jax.core.sde_step import sde_step
from densegrpo_jax.core.transitions import OUTCOME, transitions

GRID = np.array([1.0, 0.8, 0.5, 0.2, 0.0], np.float32)
MASKS = step_masks(GRID)
LEVELS = flow_grpo_noise_levels(GRID, 0.7)
P, G, SHAPE = 4, 16, (4, 8)
RATE = 16.0


def velocity(theta, x, s):
    return x - theta * (1.2 - s)[:, None, None]


def iteration(theta, key, credit):
    def noise(k):
        return jax.random.normal(jax.random.fold_in(key, k), (P * G, *SHAPE))

    plan = trajectory_plan(MASKS, state_points(needed_states(credit, MASKS)))
    dense = run_plan(lambda x, s: velocity(theta, x, s), noise(99), GRID, LEVELS, plan, noise)
    values = -jnp.abs(dense.completions - 1).mean((2, 3))  # the reward: latents near 1
    rewards = state_rewards(values, plan.sources_of())
    if credit.startswith('coca'):  # CoCA's own order: the shares of a normalised terminal reward
        terminal = group_advantages(rewards[-1:], P).values
        advantages = len(LEVELS) * dense_reward(
            jnp.broadcast_to(terminal, rewards.shape), credit, similarity=dense.similarity
        )
    else:
        advantages = group_advantages(dense_reward(rewards, credit), P, steps=MASKS.trained).values
    batch = transitions(dense, {OUTCOME: advantages}, group_ids_of([G] * P))

    def loss(theta):
        v = velocity(theta, batch.x, batch.s)
        step = sde_step(v, batch.x, batch.s, batch.s_next, batch.noise_level, sample=batch.x_next)
        sums = grpo_loss(
            step,
            batch.log_prob,
            batch.advantage,
            mask=batch.mask,
            weight=batch.weight,
            clip_range=0.2,
        )
        return sums.policy_sum / sums.policy_count, sums

    gradient, sums = jax.grad(loss, has_aux=True)(theta)
    return theta - RATE * gradient, values[-1].mean(), sums.ratio_deviation_max


@pytest.mark.parametrize('credit', ['sparse', 'dense', 'gae', 'coca_share'])
def test_iterations_raise_the_reward(credit):
    run = jax.jit(lambda theta, key: iteration(theta, key, credit))
    theta, rewards = jnp.zeros(SHAPE), []
    for i in range(40):
        theta, reward, deviation = run(theta, jax.random.key(i))
        rewards.append(float(reward))
        # one update per rollout: the ratio is 1 when the gradient is taken
        assert deviation <= 1e-6
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 0.15, rewards
