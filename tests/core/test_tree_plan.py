"""Trees: their evaluations by count, what leaves share, and the values of nodes by hand."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densegrpo_jax.core.masks import StepMasks
from densegrpo_jax.core.rollout import run_plan
from densegrpo_jax.core.rollout_plan import check_plan, trajectory_plan
from densegrpo_jax.core.tree_plan import leaves_together, node_means, tree_plan
from densegrpo_jax.sampling.sampler import plan_noise

GRID = np.array([1.0, 0.8, 0.6, 0.3, 0.0], np.float32)
LEVELS = np.array([0.5, 0.8, 0.4, 0.0], np.float32)
MASKS = StepMasks(np.arange(4) < 3, np.arange(4) < 3)
SHAPE = (4000,)


def velocity(x, s):
    return jnp.tanh(2 * x) + s[:, None]


def test_evaluations_of_the_paper():
    """T = 20, 16 leaves, splits at 0, 3, 6, 9: 203 evaluations."""
    every = StepMasks(np.ones(20, bool), np.ones(20, bool))
    plan = tree_plan(every, (0, 3, 6, 9), 16)
    check_plan(plan)
    assert plan.nfe * 16 == 1 + 3 * 2 + 3 * 4 + 3 * 8 + 10 * 16 == 203
    assert plan.together == (8,) * 3 + (4,) * 3 + (2,) * 3 + (1,) * 11
    assert plan.copies == (16, *plan.together[:-1])
    assert leaves_together(6, (1, 3), 12) == (12, 2, 2, 1, 1, 1)  # into six, then each into two


def test_leaves_are_one_until_they_split():
    calls = collections.Counter()

    def counted(x, s):
        jax.debug.callback(lambda: calls.update(rows=len(x)))
        return velocity(x, s)

    keys = jax.random.split(jax.random.key(0), 16)  # two trees of eight leaves
    start = np.repeat(np.random.default_rng(0).standard_normal((2, *SHAPE)), 8, 0)
    start = start.astype(np.float32)
    plan = tree_plan(MASKS, (0, 2), 8)
    run = lambda p, fn=velocity: jax.jit(
        lambda: run_plan(fn, start, GRID, LEVELS, p, lambda k: plan_noise(plan, keys, SHAPE, k))
    )()
    found = run(plan, counted)
    jax.effects_barrier()
    assert plan.together == (2, 2, 1, 1) and calls['rows'] == 2 * (1 + 4 + 4 + 8) == 16 * plan.nfe
    states = np.asarray(found.latents)
    for k, width in enumerate((8, 2, 2, 1, 1)):
        nodes = states[k].reshape(-1, width, *SHAPE)
        np.testing.assert_array_equal(nodes, np.repeat(nodes[:, :1], width, 1))
        first = nodes[:, 0]
        apart = np.abs(first[:, None] - first[None]).mean(2) + np.eye(len(first))
        assert apart.min() > 0.05
    # the same noise with an evaluation for every leaf gives the same samples
    every = run(trajectory_plan(MASKS))
    np.testing.assert_allclose(found.latents, every.latents, atol=1e-5)
    np.testing.assert_allclose(found.log_prob, every.log_prob, atol=1e-5)


def test_noise_of_siblings():
    """Variance 1; 1/17 of it is common to the children of a parent at a split, and there alone."""
    keys = jax.random.split(jax.random.key(1), 8)
    plan = tree_plan(MASKS, (0, 2), 8)
    noise = [np.asarray(plan_noise(plan, keys, (40_000,), jnp.int32(k))) for k in range(3)]
    within = lambda z, a, b: (z[a] * z[b]).mean()
    error = 5 / np.sqrt(40_000)
    for z in noise:
        np.testing.assert_allclose((z**2).mean(1), 1, atol=error * np.sqrt(2))
    assert abs(within(noise[0], 0, 2) - 1 / 17) < error and within(noise[0], 0, 1) > 0.9
    assert abs(within(noise[0], 0, 6) - 1 / 17) < error  # all four children of the root
    assert abs(within(noise[1], 0, 2)) < error and within(noise[1], 0, 1) > 0.9
    assert abs(within(noise[2], 0, 1) - 1 / 17) < error
    assert abs(within(noise[2], 0, 2)) < error  # cousins
    assert abs((noise[0][0] * noise[2][0]).mean()) < error
    # without a split, or with nothing in common, each sample has what a trajectory has
    alone = np.asarray(plan_noise(trajectory_plan(MASKS), keys, (10,), jnp.int32(2)))
    apart = plan_noise(plan._replace(split_noise=1e9), keys, (10,), jnp.int32(2))
    np.testing.assert_allclose(apart, alone, atol=1e-6)


def test_the_value_of_a_node_is_the_mean_of_its_leaves():
    values = np.float32([[1, 2, 3, 6], [1, 2, 3, 6], [1, 2, 3, 6]])
    used = np.ones(4, bool)
    found = node_means(values, (4, 2, 1), used)
    np.testing.assert_allclose(found, [[3] * 4, [1.5, 1.5, 4.5, 4.5], [1, 2, 3, 6]])
    # an image without a score is left out; a node without any keeps what it has
    found = node_means(values, (4, 2, 1), np.array([True, True, False, False]))
    np.testing.assert_allclose(found, [[1.5] * 4, [1.5, 1.5, 3, 6], [1, 2, 3, 6]])


@pytest.mark.parametrize(
    'splits, leaves, message',
    [
        ((), 4, r'splits are \(\); expected one or more increasing steps of 0 ... 3'),
        ((1, 1), 4, r'splits are \(1, 1\)'),
        ((0, 4), 4, r'splits are \(0, 4\)'),
        ((0, 1), 6, '2 splits in two need a multiple of 4 leaves, and a tree has 6'),
        ((0, 3), 4, 'from state 3 adds no noise, so a tree cannot split there'),
    ],
)
def test_refused(splits, leaves, message):
    with pytest.raises(ValueError, match=message):
        tree_plan(MASKS, splits, leaves)
