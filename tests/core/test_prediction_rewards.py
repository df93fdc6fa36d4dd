"""Rewards of one-step predictions between three scored ones: by hand, and in simple cases."""

import jax.numpy as jnp
import numpy as np

from densegrpo_jax.core.prediction_rewards import (
    Predictions,
    anchor_of,
    returns_to_go,
    sdpo_reward,
    similarity_rewards,
)

# Two samples of five steps; of the first, prediction 2 is least like the ends, of the second 3.
FIRST = np.float32([[1, 0.9, 0.5, 0.6, 0.7], [1, 0.8, 0.7, 0.2, 0.6]]).T
LAST = np.float32([[0.7, 0.6, 0.4, 0.8, 1], [0.6, 0.5, 0.6, 0.5, 1]]).T
MIDDLE = np.float32([[0.5, 0.6, 1, 0.7, 0.4], [0.2, 0.3, 0.5, 1, 0.5]]).T
REWARDS = np.float32([[0.2, 0.4], [0.5, 1], [0.8, 0]])  # first, anchor, last


def predictions(cosines=None, anchor=(2, 3)):
    cosines = np.stack([FIRST, MIDDLE, LAST], -1) if cosines is None else cosines
    return Predictions(jnp.int32([anchor]), jnp.asarray(cosines))


def test_the_anchor_is_least_like_both_ends():
    np.testing.assert_array_equal(anchor_of(FIRST, LAST), [2, 3])


def test_by_hand():
    found = np.asarray(similarity_rewards(REWARDS, predictions()))
    # (.9 .2 + .6 .5 + .6 .8) / 2.1, (.6 .2 + .7 .5 + .8 .8) / 2.1
    np.testing.assert_allclose(found[:, 0], [0.2, 0.96 / 2.1, 0.5, 1.11 / 2.1, 0.8], rtol=1e-6)
    # (.8 .4 + .3 1) / 1.6, (.7 .4 + .5 1) / 1.8
    np.testing.assert_allclose(found[:, 1], [0.4, 0.62 / 1.6, 0.78 / 1.8, 1, 0], rtol=1e-6)


def test_scored_predictions_keep_their_rewards():
    rng = np.random.default_rng(0)
    cosines = rng.uniform(0.1, 1, (6, 4, 3)).astype(np.float32)
    rewards = rng.normal(size=(3, 4)).astype(np.float32)
    for anchor in ([1, 2, 3, 4], [0, 5, 0, 5]):
        rewards[1, np.equal(anchor, 0)] = rewards[0, np.equal(anchor, 0)]
        rewards[1, np.equal(anchor, 5)] = rewards[2, np.equal(anchor, 5)]
        found = np.asarray(similarity_rewards(rewards, predictions(cosines, anchor)))
        np.testing.assert_array_equal(found[0], rewards[0])
        np.testing.assert_array_equal(found[anchor, range(4)], rewards[1])
        np.testing.assert_array_equal(found[-1], rewards[2])


def test_equal_rewards_stay_and_equal_cosines_average():
    equal = np.full((3, 2), 0.7, np.float32)
    np.testing.assert_allclose(similarity_rewards(equal, predictions()), 0.7, rtol=1e-6)
    ones = predictions(np.ones((5, 2, 3), np.float32))
    found = np.asarray(similarity_rewards(REWARDS, ones))
    np.testing.assert_allclose(found[[1, 3], 0], 0.5, rtol=1e-6)
    np.testing.assert_allclose(found[[1, 2], 1], 1.4 / 3, rtol=1e-6)


def test_cosines_that_say_nothing_average_too():
    cosines = np.stack([FIRST, MIDDLE, LAST], -1)
    cosines[1] = [[0.5, -0.9, 0.4], [1, 0.5, -1.5]]
    found = np.asarray(similarity_rewards(REWARDS, predictions(cosines)))
    np.testing.assert_allclose(found[1], [0.5, 1.4 / 3], rtol=1e-6)


def test_returns_to_go():
    rewards = jnp.float32([[1, 0], [2, 0], [4, 8]])
    np.testing.assert_allclose(returns_to_go(rewards, 0.5), [[3, 2], [4, 4], [4, 8]])
    np.testing.assert_array_equal(returns_to_go(rewards, 0.0), rewards)


def test_the_rule_reads_each_samples_own_anchor():
    values = np.full((6, 2), np.nan, np.float32)
    values[0], values[4], values[5] = REWARDS[0], REWARDS[2], 9.0
    values[2, 0], values[3, 1] = REWARDS[1]
    values = jnp.asarray(values)
    of_steps = np.asarray(similarity_rewards(REWARDS, predictions()), np.float64)
    found = sdpo_reward(values, predictions=predictions(), sdpo_gamma=0.0)
    np.testing.assert_array_equal(found, of_steps.astype(np.float32))
    power = 0.99 ** np.maximum(np.arange(5) - np.arange(5)[:, None], 0)
    expected = np.triu(power) @ of_steps
    np.testing.assert_allclose(sdpo_reward(values, predictions=predictions()), expected, rtol=1e-6)
