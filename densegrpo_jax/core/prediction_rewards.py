"""SDPO's dense reward (arXiv 2411.11727): three predictions of the clean image are scored, and the
others get a reward between theirs by similarity.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

MIN_TOTAL = 1e-3  # cosines that add up to less say nothing


class Predictions(NamedTuple):
    """How alike the predictions x0hat_k of a trajectory are, k = 0 ... T-1. The batch is the second
    axis.
    """

    anchor: Int[Array, '1 B']  # the prediction least like both ends
    # cosines of every prediction with the scored ones: the first, the anchor, the last
    cosines: Float[Array, 'T B 3']


def anchor_of(first: Float[ArrayLike, 'T B'], last: Float[ArrayLike, 'T B']) -> Int[Array, 'B']:
    """argmin_k [cos(x0hat_k, x0hat_0) + cos(x0hat_k, x0hat_{T-1})], from these two cosines."""
    return jnp.argmin(jnp.asarray(first) + last, axis=0).astype(jnp.int32)


def similarity_rewards(
    rewards: Float[ArrayLike, '3 B'], predictions: Predictions
) -> Float[Array, 'T B']:
    """The reward of every prediction: its own if it was scored, else

        r_k = sum_j r_j cos(x0hat_k, x0hat_j) / sum_j cos(x0hat_k, x0hat_j)

    over the three scored j. If the cosines do not add up to a positive number, the mean of the
    three.

    Args:
        rewards: of the first prediction, the anchor and the last.
    """
    rewards = jnp.asarray(rewards)
    cosines, anchor = predictions.cosines, predictions.anchor
    total = cosines.sum(-1)
    usable = total > MIN_TOTAL
    between = (cosines * rewards.T).sum(-1) / jnp.where(usable, total, 1)
    between = jnp.where(usable, between, rewards.mean(0))
    k = jnp.arange(len(cosines))[:, None]
    between = jnp.where(k == anchor, rewards[1], between)
    return between.at[0].set(rewards[0]).at[-1].set(rewards[2])


def anchored_rewards(
    rewards: Float[ArrayLike, 'states B'],
    anchor_reward: Float[ArrayLike, 'B'],
    anchor: Int[ArrayLike, '1 B'],
) -> Float[Array, 'states B']:
    """Rewards of predictions with that of each sample's anchor in its place."""
    k = jnp.arange(len(jnp.asarray(rewards)))[:, None]
    return jnp.where(k == anchor, jnp.asarray(anchor_reward), rewards)


def returns_to_go(rewards: Float[Array, 'T B'], gamma: float) -> Float[Array, 'T B']:
    """R_k = r_k + gamma R_{k+1}, R_T = 0."""

    def add(later, reward):
        total = reward + gamma * later
        return total, total

    return jax.lax.scan(add, jnp.zeros_like(rewards[0]), rewards, reverse=True)[1]


def sdpo_reward(
    rewards: Float[Array, 'states B'], *, predictions: Predictions, sdpo_gamma: float = 0.99
) -> Float[Array, 'T B']:
    """Returns to go of `similarity_rewards`, as a credit rule.

    Args:
        rewards: [T+1, B] of the predictions 0, the anchor and T - 1; others may be NaN.
    """
    last = len(rewards) - 2
    anchored = jnp.take_along_axis(rewards, predictions.anchor, 0)[0]
    scored = jnp.stack([rewards[0], anchored, rewards[last]])
    return returns_to_go(similarity_rewards(scored, predictions), sdpo_gamma)
