"""DenseGRPO in 60 lines of core functions: sample, complete, score, credit, advantages, update.

    python -m examples.minimal_iteration

A toy stands in for FLUX: the "network" has one weight per latent element, the "reward" prefers
latents near 1. Between them stand the functions that training itself calls.
"""

import jax
import jax.numpy as jnp
import numpy as np

from densegrpo_jax.core.advantages import group_advantages, group_ids_of
from densegrpo_jax.core.dense_reward import dense_reward, needed_states, state_rewards
from densegrpo_jax.core.grpo_loss import grpo_loss
from densegrpo_jax.core.masks import step_masks
from densegrpo_jax.core.rollout import run_plan
from densegrpo_jax.core.rollout_plan import state_points, trajectory_plan
from densegrpo_jax.core.schedules import flow_grpo_noise_levels
from densegrpo_jax.core.sde_step import sde_step
from densegrpo_jax.core.transitions import OUTCOME, transitions

PROMPTS, GROUP, LATENT = 4, 16, (4, 8)
SIGMAS = np.array([1.0, 0.8, 0.5, 0.2, 0.0], np.float32)  # s from noise to image: T = 4 steps
LEVELS = flow_grpo_noise_levels(SIGMAS, 0.7)  # noise of each step
MASKS = step_masks(SIGMAS)  # which steps are stochastic, which are trained
CREDIT, CLIP_RANGE, LEARNING_RATE = 'dense', 0.2, 16.0
# A table of what is sampled and scored: a trajectory and the completions that the credit reads.
PLAN = trajectory_plan(MASKS, state_points(needed_states(CREDIT, MASKS)))
GROUPS = group_ids_of([GROUP] * PROMPTS)  # the prompt of each sample


def velocity(theta, x, s):
    """The network: x [B, 4, 8], s [B] -> v [B, 4, 8]."""
    return x - theta * (1.2 - s)[:, None, None]


def reward(images):
    """[..., 4, 8] -> [...]; the largest is 0."""
    return -jnp.abs(images - 1).mean((-2, -1))


@jax.jit
def iteration(theta, key):
    """One update -> (new theta, mean reward of the samples, largest |ratio - 1|)."""
    noise = lambda k: jax.random.normal(jax.random.fold_in(key, k), (PROMPTS * GROUP, *LATENT))
    policy = lambda x, s: velocity(theta, x, s)
    # 1. Trajectories of the SDE and the ODE completion of each state (Eq. 6, 8).
    rollout = run_plan(policy, noise(99), SIGMAS, LEVELS, PLAN, noise)
    # 2. The reward of every completion; the gain of every step (Eq. 7, 9).
    rewards = state_rewards(reward(rollout.completions), PLAN.sources_of())  # [T+1, B]
    gains = dense_reward(rewards, CREDIT)  # [T, B]
    # 3. Each step's gains are compared within the group of a prompt (Eq. 10).
    advantages = group_advantages(gains, PROMPTS, steps=MASKS.trained).values
    batch = transitions(rollout, {OUTCOME: advantages}, GROUPS)

    # 4. The clipped objective over all trained transitions (Eq. 3, 4).
    def loss(theta):
        v = velocity(theta, batch.x, batch.s)
        step = sde_step(v, batch.x, batch.s, batch.s_next, batch.noise_level, sample=batch.x_next)
        old, a = batch.log_prob, batch.advantage
        sums = grpo_loss(step, old, a, mask=batch.mask, clip_range=CLIP_RANGE)
        return sums.policy_sum / sums.policy_count, sums.ratio_deviation_max

    gradient, deviation = jax.grad(loss, has_aux=True)(theta)
    return theta - LEARNING_RATE * gradient, rewards[-1].mean(), deviation


if __name__ == '__main__':
    theta = jnp.zeros(LATENT)
    for i in range(41):
        theta, mean, deviation = iteration(theta, jax.random.key(i))
        if i % 10 == 0:
            print(f'iteration {i:2d}: reward {mean:.3f}, |ratio - 1| <= {deviation:.0e}')
