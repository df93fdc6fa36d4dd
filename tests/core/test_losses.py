"""Losses say what they need; the batch of clean samples is what it says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densegrpo_jax.core.clean_samples import (
    best_weights,
    clean_samples,
    noised_rows,
    velocity_difference,
)
from densegrpo_jax.core.losses import Loss, loss_sums
from densegrpo_jax.core.masks import step_masks
from densegrpo_jax.core.rollout import run_plan
from densegrpo_jax.core.rollout_plan import trajectory_plan

SIGMAS = np.float32([1, 0.5, 0])
B, SHAPE = 400, (3, 2)
NOISE = np.random.default_rng(0).standard_normal((2, B, *SHAPE)).astype(np.float32)


def rollout(nan=None):
    first = NOISE[0].copy()
    if nan is not None:
        first[nan] = np.nan
    plan = trajectory_plan(step_masks(SIGMAS))
    levels = np.float32([0.7, 0])
    given = SIGMAS, levels, plan, lambda k: jnp.asarray(NOISE)[k]
    return jax.jit(lambda first: run_plan(lambda x, s: x, first, *given))(first)


def samples(nan=None, valid=None):
    sampled = rollout(nan)
    reward, ids = np.arange(B, dtype=np.float32), np.arange(B) // 4
    valid = np.ones(B, bool) if valid is None else valid
    return clean_samples(sampled, reward, {'outcome': -reward}, ids, valid=valid), sampled


def noised(found, key, draws=1):
    return noised_rows(found, jnp.arange(draws * len(found.x0)), key)


def test_clean_samples_are_the_ends_of_the_trajectories():
    found, sampled = samples()
    np.testing.assert_array_equal(found.x0, sampled.latents[-1])
    np.testing.assert_array_equal(found.reward, np.arange(B))
    np.testing.assert_array_equal(found.advantage['outcome'], -np.arange(B))
    np.testing.assert_array_equal(found.prompt_id, np.arange(B) // 4)
    assert found.mask.all()


def test_a_sample_without_a_reward_leaves_nothing_that_is_not_finite():
    valid = np.arange(B) != 7
    advantage = {'outcome': np.where(valid, 1, np.nan).astype(np.float32)}
    given = np.zeros(B, np.float32), advantage, np.arange(B) // 4
    kept = clean_samples(rollout(7), *given, valid=valid)
    np.testing.assert_array_equal(kept.advantage['outcome'], valid)
    found, _ = samples(nan=7, valid=valid)
    np.testing.assert_array_equal(found.mask, valid)
    np.testing.assert_array_equal(found.x0[7], 0)
    assert found.reward[7] == 0 and np.isfinite(found.x0).all()


def test_noise_is_fresh_and_on_the_path():
    found, _ = samples()
    batch = jax.jit(noised)(found, jax.random.key(3))
    s = np.asarray(batch.s)[:, None, None]
    np.testing.assert_allclose(batch.x, (1 - s) * batch.x0 + s * batch.noise, atol=1e-6)
    np.testing.assert_array_equal(batch.x0, found.x0)
    np.testing.assert_array_equal(batch.reward, found.reward)
    # s uniform in [0, 1), the noise standard normal, both of every sample's own: within five
    # standard errors
    assert 0 <= s.min() < 0.02 and 0.98 < s.max() < 1
    assert abs(s.mean() - 0.5) < 5 / np.sqrt(12 * B)
    noise = np.asarray(batch.noise)
    assert abs(noise.mean()) < 5 / np.sqrt(noise.size)
    assert abs(noise.var() - 1) < 5 * np.sqrt(2 / noise.size)
    assert len(np.unique(s)) == B and len(np.unique(noise)) == noise.size
    assert abs(np.corrcoef(s[:, 0, 0], noise[:, 0, 0])[0, 1]) < 5 / np.sqrt(B)


def test_noise_depends_on_the_key_and_on_the_place_alone():
    found, _ = samples()
    whole = noised(found, jax.random.key(3))
    part = noised(jax.tree.map(lambda a: a[:5], found), jax.random.key(3))
    np.testing.assert_array_equal(part.noise, whole.noise[:5])
    np.testing.assert_array_equal(part.s, whole.s[:5])
    other = noised(found, jax.random.key(4))
    assert (other.s != whole.s).all() and (other.noise != whole.noise).all()


def test_more_draws_of_a_sample():
    found, _ = samples()
    once, batch = (noised(found, jax.random.key(3), draws) for draws in (1, 3))
    for a, b in zip(jax.tree.leaves(batch), jax.tree.leaves(once)):
        assert len(a) == 3 * B
        np.testing.assert_array_equal(a[:B], b)
    np.testing.assert_array_equal(batch.x0, np.tile(found.x0, (3, 1, 1)))
    np.testing.assert_array_equal(batch.prompt_id, np.tile(found.prompt_id, 3))
    assert len(np.unique(batch.s)) == 3 * B
    s = np.asarray(batch.s)[:, None, None]
    np.testing.assert_allclose(batch.x, (1 - s) * batch.x0 + s * batch.noise, atol=1e-6)


def test_velocity_difference():
    v, v_ref = NOISE[:, :3]
    found = velocity_difference(jnp.asarray(v), jnp.asarray(v_ref))
    np.testing.assert_allclose(found, ((v - v_ref) ** 2).mean((1, 2)), rtol=1e-6)
    into_reference = jax.grad(lambda r: velocity_difference(jnp.asarray(v), r).sum())
    np.testing.assert_array_equal(into_reference(jnp.asarray(v_ref)), 0)


def test_loss_sums():
    sums = loss_sums(jnp.float32([1, 2, jnp.inf, 4]), jnp.array([True, True, False, True]))
    assert (float(sums.policy_sum), float(sums.policy_count)) == (7, 3)
    assert not any(sums[2:])
    assert float(sums.merge(sums).policy_sum) == 14


def test_losses_that_cannot_be():
    with pytest.raises(ValueError, match="batch is 'pairs'; expected 'transitions' or 'clean'"):
        Loss(loss_sums, batch='pairs')
    with pytest.raises(ValueError, match=r"needs has \['best'\]; expected roles of"):
        Loss(loss_sums, needs=('ref', 'best'))
    with pytest.raises(ValueError, match='trajectories are of whole groups'):
        Loss(loss_sums, trajectories=True)
    for metrics, name in (
        ({'sums': ('loss',)}, 'loss'),
        ({'maxima': ('share', 'grad_norm')}, 'grad_norm'),
        ({'sums': ('zero_spread',)}, 'zero_spread'),
        ({'sums': ('reward_ocr',)}, 'reward_ocr'),
        ({'sums': ('share',), 'maxima': ('share',)}, 'share'),
    ):
        with pytest.raises(ValueError, match=f'have \'{name}\', .*rename it, such as "own_{name}"'):
            Loss(loss_sums, **metrics)
    with pytest.raises(ValueError, match='weights are of single samples'):
        Loss(loss_sums, weights=best_weights)
