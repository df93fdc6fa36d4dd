"""The pair loss: SDPO's own numbers, gradients against formulas and against PPO, and when the
clamped branch is taken.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densegrpo_jax.core.grpo_loss import grpo_loss
from densegrpo_jax.core.pair_loss import pair_loss, pair_terms
from densegrpo_jax.core.sde_step import sde_step

RNG = np.random.default_rng(0)
M = 12
IDS = np.repeat([0, 1], 6)
ALL = np.ones(M, bool)
ADVANTAGE = RNG.normal(size=M).astype(np.float32)
WEIGHT = np.repeat(np.float32([1, 0.5]), 6)
X, NOISE = RNG.normal(size=(2, M, 3, 4)).astype(np.float32)
POLICY = RNG.normal(size=(4, 4)).astype(np.float32) / 2


@functools.partial(jax.jit, static_argnames=('clip_range', 'pairs'))
def total(log_ratio, advantage, weight=1.0, ids=None, used=None, clip_range=1e-4, pairs='all'):
    m = len(log_ratio)
    ids = np.zeros(m, int) if ids is None else ids
    used = np.ones(m, bool) if used is None else used
    weight = jnp.broadcast_to(weight, m)
    options = {'clip_range': clip_range, 'pairs': pairs}
    return pair_terms(log_ratio, advantage, weight, ids, used, **options).sum()


def test_the_numbers_of_its_source():
    """The loss of its trainer for a pair at five steps: w = .99^k, log-ratios clamped at 1e-4."""
    weight = 0.99 ** np.arange(5)
    first = np.array([0, 5e-5, 3e-4, -3e-4, 2e-4])
    second = np.array([0, -2e-5, -1e-4, 5e-5, 2e-4])
    advantage = np.array([1.5, -0.5, 0.25, 0.25, 0])
    # 2.25, (.99 7e-5 + .5)^2, (.99^2 2e-4 - .25)^2, (-.99^3 3.5e-4 - .25)^2, 0
    expected = [2.25, 0.250069305, 0.0624020, 0.0626699, 0]
    for k in range(5):
        log_ratio = jnp.float32([first[k], second[k]])
        found = total(log_ratio, jnp.float32([advantage[k], 0]), weight[k])
        # a pair counts as 2 transitions
        assert float(found) / 2 == pytest.approx(expected[k], rel=1e-5, abs=1e-7)


@jax.jit
def steps(policy):
    v = jnp.tanh(X @ policy) + 0.3 * X
    return sde_step(v, X, 0.8, 0.6, 0.7, sample=X + 0.3 * NOISE)


OLD = steps(POLICY).log_prob


@functools.partial(jax.jit, static_argnames='pairs')
def loss_at(policy, pairs='all', mask=ALL, advantage=ADVANTAGE):
    options = {'mask': mask, 'weight': WEIGHT, 'clip_range': 1e-4, 'pairs': pairs}
    return pair_loss(steps(policy), OLD, {'outcome': advantage}, IDS, **options)


def test_on_policy_all_pairs_are_ppo_with_centred_advantages():
    centred = (ADVANTAGE.reshape(2, 6) - ADVANTAGE.reshape(2, 6).mean(1, keepdims=True)).reshape(-1)

    def ppo(policy):
        kept = {'mask': ALL, 'weight': 4 * 6 / 5 * WEIGHT, 'clip_range': 1e-4}
        return grpo_loss(steps(policy), OLD, jnp.asarray(centred), **kept).policy_sum

    expected = jax.jit(jax.grad(ppo))(POLICY)
    found = jax.jit(jax.grad(lambda p: loss_at(p).policy_sum))(POLICY)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    sums = loss_at(POLICY)
    assert sums.policy_count == M and sums.clip_sum == 0 and sums.ratio_deviation_max <= 1e-6


def test_on_policy_neighbours_follow_their_formula():
    """-2 w dA (dl_1 - dl_2) for each pair, twice for two transitions."""
    slope = np.asarray(jax.jit(jax.jacobian(lambda p: steps(p).log_prob))(POLICY))
    expected = 0
    for i in range(0, M, 2):
        gap = ADVANTAGE[i] - ADVANTAGE[i + 1]
        expected -= 4 * WEIGHT[i] * gap * (slope[i] - slope[i + 1])
    found = jax.jit(jax.grad(lambda p: loss_at(p, 'neighbours').policy_sum))(POLICY)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_ratios_beyond_the_range_count_by_their_side():
    at = np.float32([0, 0.3, -0.3, 0.1, -0.4, -0.1] * 2)
    old = steps(POLICY).log_prob - at
    options = {'mask': ALL, 'weight': WEIGHT, 'clip_range': 0.2, 'pairs': 'all'}
    loss = jax.jit(lambda step: pair_loss(step, old, {'outcome': ADVANTAGE}, IDS, **options))
    sums = loss(steps(POLICY))
    assert (sums.clip_sum, sums.clip_low_sum) == (6, 4)


def test_a_pair_is_a_group_of_two():
    log_ratio, advantage = RNG.normal(size=(2, 2)).astype(np.float32)
    both = [total(log_ratio, advantage, pairs=pairs) for pairs in ('all', 'neighbours')]
    assert both[0] == both[1] > 0


def test_the_order_within_a_pair_does_not_matter():
    log_ratio, advantage = 1e-3 * RNG.normal(size=4), RNG.normal(size=4)
    log_ratio, advantage = np.float32(log_ratio), np.float32(advantage)
    swapped = [1, 0, 3, 2]
    for pairs in ('all', 'neighbours'):
        a = total(log_ratio, advantage, pairs=pairs)
        b = total(log_ratio[swapped], advantage[swapped], pairs=pairs)
        assert float(a) == pytest.approx(float(b), rel=1e-6)


def test_equal_advantages_on_policy_are_no_loss():
    equal = jnp.full(6, 1.5)
    value, slope = jax.value_and_grad(total)(jnp.zeros(6), equal)
    assert value == 0
    np.testing.assert_array_equal(slope, 0)


def test_clipping_is_pessimistic():
    """Beyond the range in the good direction nothing moves; in the bad one it pulls back; where one
    sample is inside, the other alone is held.
    """
    slope = lambda first, second: jax.grad(total)(
        jnp.float32([first, second]), jnp.float32([1, -1]), clip_range=0.01
    )
    inside = slope(0.005, -0.005)
    np.testing.assert_allclose(inside, [-4 * 1.99, 4 * 1.99], rtol=1e-5)
    np.testing.assert_array_equal(slope(0.02, -0.02), 0)
    pulled = slope(-0.02, 0.02)
    np.testing.assert_allclose(pulled, [-4 * 2.04, 4 * 2.04], rtol=1e-5)
    np.testing.assert_allclose(slope(0.02, 0.005), [0, 4 * 1.995], rtol=1e-5)


def test_samples_that_do_not_count_are_in_no_pair():
    used = np.array([1, 1, 0, 1, 1, 1, 0, 0, 0, 1, 0, 0], bool)
    bad = jnp.where(used, ADVANTAGE, jnp.nan)
    log_ratio = jnp.where(used, np.float32(1e-5) * np.arange(M), jnp.nan)
    found = jax.jit(jax.grad(lambda r: total(r, bad, WEIGHT, IDS, used)))(log_ratio)
    rest = [0, 1, 3, 4, 5]
    alone = jax.jit(jax.grad(lambda r: total(r, ADVANTAGE[rest])))(log_ratio[jnp.array(rest)])
    np.testing.assert_allclose(found[jnp.array(rest)], alone, rtol=1e-5)
    np.testing.assert_array_equal(np.delete(found, rest), 0)
    sums = loss_at(POLICY, mask=used, advantage=bad)
    assert sums.policy_count == used.sum() and np.isfinite(sums.policy_sum)


def test_pairs_have_a_name():
    with pytest.raises(ValueError, match="pairs is 'some'; expected one of"):
        total(jnp.zeros(2), jnp.zeros(2), pairs='some')
