"""GRPO-Guard's loss: its ratio against the plain one, its gradient on policy against PPO's, the
clipping by hand, and the means that the rollouts keep for it.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densegrpo_jax.core.grpo_loss import grpo_loss
from densegrpo_jax.core.guard_loss import guard_log_ratio, guard_loss
from densegrpo_jax.core.losses import LOSSES, Loss
from densegrpo_jax.core.masks import step_masks
from densegrpo_jax.core.rollout import run_plan
from densegrpo_jax.core.rollout_plan import state_points, trajectory_plan
from densegrpo_jax.core.sde_step import StepOutput, log_prob_ratio, sde_step
from densegrpo_jax.core.transitions import OUTCOME, transitions

GRID = np.float32([1, 0.9, 0.6, 0.3, 0])
T, B, SHAPE = 4, 6, (5, 3)
MASKS = step_masks(GRID)
LEVELS = {'sde': np.float32([0.9, 0.8, 0.7, 0.6]), 'cps': np.full(T, 0.7, np.float32)}
RNG = np.random.default_rng(0)
NOISE = RNG.standard_normal((T + 1, B, *SHAPE)).astype(np.float32)
THETA = RNG.standard_normal((3, 3)).astype(np.float32) / 2
MOVED = THETA + 0.02 * RNG.standard_normal((3, 3)).astype(np.float32)
ADVANTAGE = RNG.standard_normal((T, B)).astype(np.float32)


def velocity(theta, x, s):
    return jnp.tanh(x @ theta) + s[:, None, None] * x


def sampled(kernel, complete=(), shifted=False, **options):
    def velocity_fn(x, s):
        v = velocity(THETA, x, s)
        return (v, v + 0.3) if shifted else v

    plan, noise = trajectory_plan(MASKS, state_points(complete)), lambda k: jnp.asarray(NOISE)[k]
    options |= {'kernel': kernel}
    run = lambda first: run_plan(velocity_fn, first, GRID, LEVELS[kernel], plan, noise, **options)
    return jax.jit(run)(NOISE[T])


@functools.cache
def record_of(kernel, **options):
    rollout = sampled(kernel, keep_means=True, **options)
    return jax.jit(transitions)(rollout, {OUTCOME: ADVANTAGE}, np.repeat([0, 1], 3))


@functools.partial(jax.jit, static_argnames='kernel')
def step_at(theta, t, kernel):
    at = (t.x, t.s, t.s_next, t.noise_level)
    return sde_step(velocity(theta, t.x, t.s), *at, sample=t.x_next, kernel=kernel)


@functools.partial(jax.jit, static_argnames=('kernel', 'clip_range'))
def guard_of(theta, t, kernel, clip_range=2e-6, mask=None):
    return guard_loss(
        step_at(theta, t, kernel),
        t.mean_old,
        t.s,
        t.s_next,
        t.advantage,
        mask=t.mask if mask is None else mask,
        weight=t.weight,
        clip_range=clip_range,
    )


@pytest.mark.parametrize('kernel', ['sde', 'cps'])
def test_the_ratio_is_the_plain_one_centred_and_scaled(kernel):
    """For every Gaussian kernel, next to the policy that sampled and far from it."""
    t = record_of(kernel)
    for theta in (THETA, THETA + 1e-4, MOVED):
        step = step_at(theta, t, kernel)
        plain = np.asarray(log_prob_ratio(step, t.log_prob), np.float64)
        moved = np.asarray(step.mean - t.mean_old, np.float64)
        std = np.asarray(t.std, np.float64)
        expected = std * (plain + (moved**2).mean((1, 2)) / (2 * std**2))
        np.testing.assert_allclose(guard_log_ratio(step, t.mean_old), expected, atol=1e-6)
    assert np.abs(expected).min() > 1e-5  # at MOVED there is something to compare


@pytest.mark.parametrize('kernel', ['sde', 'cps'])
def test_on_policy_it_is_ppo_with_step_weights(kernel):
    t = record_of(kernel)

    def weighted(theta):
        step, weight = step_at(theta, t, kernel), t.std / (t.s - t.s_next)
        kept = {'mask': t.mask, 'weight': weight, 'clip_range': 1e-4}
        return grpo_loss(step, t.log_prob, t.advantage, **kept).policy_sum

    expected = jax.jit(jax.grad(weighted))(THETA)
    found = jax.jit(jax.grad(lambda theta: guard_of(theta, t, kernel).policy_sum))(THETA)
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())
    if kernel == 'sde':  # sigma / sqrt(s - s_next)
        level = np.tile(LEVELS['sde'][:3, None], B).reshape(-1)
        np.testing.assert_allclose(
            t.std / (t.s - t.s_next), level / np.sqrt(t.s - t.s_next), rtol=1e-5
        )
    sums = guard_of(THETA, t, kernel)
    assert sums.clip_sum == 0 and sums.ratio_deviation_max <= 2e-7  # a tenth of the clip range
    assert sums.policy_count == 3 * B
    values = -ADVANTAGE[:3].reshape(-1) / np.asarray(t.s - t.s_next)
    assert float(sums.policy_sum) == pytest.approx(values.sum(), abs=1e-4)


@functools.partial(jax.jit, static_argnames='clip_range')
def by_hand(log_ratio, advantage, clip_range, std=0.5):
    """One element: x' - mean_old = std, so that log r' is mean - mean_old."""
    m = len(log_ratio)
    mean_old, std = jnp.full((m, 1), 0.25), jnp.full(m, std)
    step = StepOutput(mean_old + std[:, None], mean_old + log_ratio[:, None], std, jnp.zeros(m))
    s = jnp.full(m, 0.75)
    return guard_loss(
        step,
        mean_old,
        s,
        s - 0.25,
        {OUTCOME: advantage},
        mask=jnp.arange(m) != 5,
        weight=jnp.float32([1, 1, 1, 1, 2, 1])[:m],
        clip_range=clip_range,
    )


def test_clipping_by_hand():
    ratios = np.float32([1, 1.3, 1.3, 0.7, 0.7, 9])
    advantage = jnp.float32([2, 1, -1, 1, -1, jnp.nan])
    sums = by_hand(jnp.log(ratios), advantage, 0.2)
    expected = 4 * np.array([-2, -1.2, 1.3, -0.7, 2 * 0.8])  # 1 / (s - s_next) = 4
    assert float(sums.policy_sum) == pytest.approx(expected.sum(), rel=1e-5)
    assert (sums.policy_count, sums.clip_sum, sums.clip_low_sum) == (5, 4, 2)
    assert float(sums.ratio_deviation_max) == pytest.approx(0.3, rel=1e-5)
    assert float(sums.ratio_deviation_sum) == pytest.approx(1.2, rel=1e-5)
    logs = np.log(ratios[:5])
    plain = (logs - logs**2 / (2 * 0.5)) / 0.5
    assert float(sums.log_ratio_square_sum) == pytest.approx((plain**2).sum(), rel=1e-4)


def test_a_clip_range_below_the_rounding_of_one_binds_where_it_should():
    """Beyond 2e-6 there is no gradient, and next to it there is: 1 + 2e-6 in float32 would tell
    them apart only in steps of 1.2e-7.
    """
    log_ratio = jnp.float32([1.98e-6, 2.02e-6, -1.98e-6, -2.02e-6])
    advantage = jnp.float32([1, 1, -1, -1])
    slope = jax.jit(jax.grad(lambda r: by_hand(r, advantage, 2e-6).policy_sum))(log_ratio)
    np.testing.assert_allclose(slope, [-4, 0, 4, 0], rtol=1e-5)


def test_each_named_advantage_has_a_surrogate():
    log_ratio = jnp.log(jnp.float32([1.3, 0.7]))
    a, b = jnp.float32([1, -1]), jnp.float32([-1, 1])
    one = lambda advantage: by_hand(log_ratio, advantage, 0.2).policy_sum
    t = dict(mask=jnp.ones(2, bool), weight=jnp.ones(2), clip_range=0.2)
    mean, std = jnp.zeros((2, 1)), jnp.full(2, 0.5)
    step = StepOutput(mean + 0.5, log_ratio[:, None], std, std)
    both = guard_loss(step, mean, jnp.full(2, 0.75), jnp.full(2, 0.5), {'a': a, 'b': b}, **t)
    assert float(both.policy_sum) == pytest.approx(float(one(a) + one(b)), rel=1e-4)


@pytest.mark.parametrize('shifted', [False, True])
@pytest.mark.parametrize('kernel', ['sde', 'cps'])
def test_rollouts_keep_the_policys_means(kernel, shifted):
    """Whatever guidance moved the samples; and nothing else changes."""
    kept = sampled(kernel, range(T), shifted, keep_means=True)
    plain = sampled(kernel, range(T), shifted)
    assert plain.mean is None and kept.mean.shape == (T, B, *SHAPE)
    for name in ('latents', 'log_prob', 'std', 'completions', 'similarity'):
        np.testing.assert_array_equal(getattr(kept, name), getattr(plain, name), name)
    t = record_of(kernel, shifted=shifted)
    np.testing.assert_allclose(t.mean_old, step_at(THETA, t, kernel).mean, atol=1e-6)
    at = kept.latents[T - 1], kept.s[T - 1], kept.s_next[T - 1], kept.noise_level[T - 1]
    last = sde_step(velocity(THETA, *at[:2]), *at, sample=kept.latents[T], kernel=kernel)
    np.testing.assert_allclose(kept.mean[T - 1], last.mean, atol=1e-6)


def test_masked_transitions_leave_sums_and_gradients():
    t = record_of('sde')
    mask = jnp.arange(3 * B) % 2 == 0
    bad = t._replace(mean_old=jnp.where(mask[:, None, None], t.mean_old, 0))
    sums = guard_of(MOVED, bad, 'sde', mask=mask)
    of = lambda rows: jax.tree.map(lambda a: a[rows], t)
    kept = guard_of(MOVED, of(np.flatnonzero(mask)), 'sde')
    for name, a, b in zip(sums._fields[:-2], sums, kept):
        np.testing.assert_allclose(a, b, rtol=1e-5, err_msg=name)
    none = jax.grad(lambda p: guard_of(p, t, 'sde', mask=jnp.zeros(3 * B, bool)).policy_sum)
    np.testing.assert_array_equal(none(MOVED), 0)


def test_a_loss_on_samples_has_no_means():
    with pytest.raises(ValueError, match="mean_old is set and batch is 'clean'"):
        Loss(LOSSES['winners'].fn, batch='clean', mean_old=True)
