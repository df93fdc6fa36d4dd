"""Rollouts whose predictions are scored: which one is a sample's anchor, how alike they are, and
what that costs.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from densegrpo_jax.core.credit_rules import CREDIT_RULES, CreditRule
from densegrpo_jax.core.dense_reward import dense_reward
from densegrpo_jax.core.masks import step_masks
from densegrpo_jax.core.plan_kinds import PLAN_KINDS, Setting
from densegrpo_jax.core.prediction_rewards import sdpo_reward
from densegrpo_jax.core.rollout import run_plan
from densegrpo_jax.core.rollout_plan import ANCHOR, X0HAT, Point, check_plan, trajectory_plan
from densegrpo_jax.runtime.mesh import make_mesh

GRID = np.float32([1, 0.9, 0.75, 0.5, 0.2, 0])
T, B, SHAPE = 5, 16, (3, 5)
LEVELS = np.float32([0.9, 0.8, 0.7, 0.6, 0.5])
MASKS = step_masks(GRID)
RNG = np.random.default_rng(1)
WEIGHTS = 1.5 * RNG.standard_normal((5, 5)).astype(np.float32)
NOISE = RNG.standard_normal((T + 1, B, *SHAPE)).astype(np.float32)
SCORED = (Point(X0HAT, 0), Point(X0HAT, T - 1), Point(ANCHOR, 0))


def velocity(x, s):
    return jnp.tanh(x @ WEIGHTS) + s[:, None, None]


def rollout(points=SCORED, first=NOISE[T]):
    plan = trajectory_plan(MASKS, points)
    return run_plan(velocity, first, GRID, LEVELS, plan, lambda k: jnp.asarray(NOISE)[k])


@functools.cache
def anchored():
    return rollout()


def cosine(a, b):
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    return (a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1))


@functools.cache
def expected():
    """(predictions [T, B, ...], anchors [B], cosines [T, B, 3]) in float64."""
    x = np.asarray(anchored().latents, np.float64)
    s = GRID.astype(np.float64)
    x0hat = np.stack([x[k] - s[k] * (np.tanh(x[k] @ WEIGHTS) + s[k]) for k in range(T)])
    first, last = (np.stack([cosine(a, x0hat[end]) for a in x0hat]) for end in (0, T - 1))
    anchor = (first + last).argmin(0)
    middle = np.stack([cosine(a, x0hat[anchor, range(B)]) for a in x0hat])
    return x0hat, anchor, np.stack([first, middle, last], -1)


def test_every_sample_has_its_own_anchor():
    x0hat, anchor, cosines = expected()
    found = anchored()
    np.testing.assert_array_equal(found.predictions.anchor, [anchor])
    assert len(set(anchor.tolist())) > 1  # or there is nothing to choose
    np.testing.assert_allclose(found.predictions.cosines, cosines, atol=2e-6)
    rows = {p: found.completions[c] for p, c in zip(found.plan.points, found.plan.sources)}
    np.testing.assert_allclose(rows[Point(X0HAT, 0)], x0hat[0], atol=1e-5)
    np.testing.assert_allclose(rows[Point(X0HAT, T - 1)], x0hat[T - 1], atol=1e-5)
    np.testing.assert_allclose(rows[Point(ANCHOR, 0)], x0hat[anchor, range(B)], atol=1e-5)


def test_it_costs_the_trajectory_alone_and_changes_nothing_else():
    plain, found = rollout(()), anchored()
    check_plan(found.plan)
    assert found.nfe == plain.nfe == T and plain.predictions is None
    assert len(found.completions) == 4 and len(plain.completions) == 1
    for name in ('latents', 'log_prob', 'std', 'similarity'):
        np.testing.assert_array_equal(getattr(found, name), getattr(plain, name), name)
    np.testing.assert_array_equal(found.completions[-1], plain.completions[-1])


def test_eight_devices_choose_as_one_does():
    mesh = make_mesh({'data': 2, 'fsdp': 2, 'tensor': 2}, jax.devices()[:8])
    split = NamedSharding(mesh, PartitionSpec(('data', 'fsdp')))
    found = jax.jit(rollout, static_argnums=0)(SCORED, jax.device_put(NOISE[T], split))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(anchored())):
        np.testing.assert_allclose(a, b, atol=1e-5)
    np.testing.assert_array_equal(found.predictions.anchor, anchored().predictions.anchor)


def plan_of(masks=MASKS, grid=GRID):
    setting = Setting(grid, LEVELS, masks, T, CREDIT_RULES['sdpo'])
    return PLAN_KINDS['trajectory'].make(setting)


def test_the_last_prediction_is_the_sample_where_no_noise_follows():
    """Three pictures; four if the last transition adds noise, or the grid ends above 0."""
    plan = plan_of()
    check_plan(plan)
    assert (plan.nfe, len(plan.completions), plan.credited) == (T, 3, (X0HAT,))
    sources = dict(zip(plan.points, plan.sources))
    assert sources[Point(X0HAT, T - 1)] == 2  # the sample's
    assert sorted((sources[Point(X0HAT, 0)], sources[Point(ANCHOR, 0)])) == [0, 1]
    noisy = plan_of(step_masks(GRID, train_end=True))
    above = plan_of(step_masks(GRID + np.float32(0.05 * (GRID == 0))), GRID + 0.05 * (GRID == 0))
    assert len(noisy.completions) == len(above.completions) == 4
    # it is the sample, to rounding
    x0hat, *_ = expected()
    np.testing.assert_allclose(anchored().completions[-1], x0hat[T - 1], atol=1e-5)


def test_points_that_are_not_there():
    with pytest.raises(ValueError, match='there is no point anchor 1'):
        trajectory_plan(MASKS, [Point(ANCHOR, 1)])


def test_a_rule_says_that_it_reads_predictions():
    with pytest.raises(ValueError, match='reads_predictions is False; expected True if assign'):
        CreditRule(sdpo_reward)
    assert CREDIT_RULES['sdpo'].options == {'sdpo_gamma': True}
    with pytest.raises(ValueError, match="credit 'sdpo' needs predictions of 5 steps"):
        dense_reward(np.zeros((6, 2), np.float32), 'sdpo')
