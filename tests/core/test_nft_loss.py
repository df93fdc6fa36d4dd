"""DiffusionNFT's loss against its formula, simple cases, and the schedules of its old policy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densegrpo_jax.core.losses import LOSSES, Loss
from densegrpo_jax.core.nft_loss import nft_terms, optimality
from densegrpo_jax.core.roles import OLD_DECAYS, follow_old, moving_average

RNG = np.random.default_rng(0)
M = 5
V, OLD, X0, NOISE = RNG.normal(size=(4, M, 3, 4)).astype(np.float32)
S = np.float32([0.1, 0.4, 0.6, 0.9, 0.99])
WIDE = S[:, None, None]
X = (1 - WIDE) * X0 + WIDE * NOISE
ADVANTAGE = np.float32([-7, -2.5, 0, 1, 5])


def terms(v, advantage=ADVANTAGE, strength=1.0, old=OLD):
    return nft_terms(v, old, X, jnp.asarray(S), X0, {'outcome': advantage}, strength=strength)


def test_optimality():
    np.testing.assert_allclose(optimality({'outcome': ADVANTAGE}), [0, 0.25, 0.5, 0.6, 1])
    both = {'a': ADVANTAGE, 'b': np.float32([0, 0, 5, 0, 0])}
    np.testing.assert_allclose(optimality(both), [0, 0.25, 1, 0.6, 1])


@pytest.mark.parametrize('strength', [1.0, 0.1])
def test_its_formula(strength):
    expected, slope = np.zeros(M), np.zeros(V.shape)
    for i, r in enumerate([0, 0.25, 0.5, 0.6, 1]):
        if r == 0.5:
            continue  # an advantage of 0 adds nothing
        for share, sign in ((r, 1), (1 - r, -1)):
            mixed = OLD[i] + sign * strength * (V[i] - OLD[i]).astype(np.float64)
            error = X[i] - S[i] * mixed - X0[i]
            size = max(np.abs(error).mean(), 1e-5)
            expected[i] += 5 / strength * share * (error**2).mean() / size
            slope[i] -= 10 * share * sign * S[i] * error / error.size / size
    np.testing.assert_allclose(terms(V, strength=strength), expected, rtol=1e-4)
    found = jax.grad(lambda v: terms(v, strength=strength).sum())(V)
    np.testing.assert_allclose(found, slope, atol=1e-5 * np.abs(slope).max())


def test_at_the_old_policy():
    """No gradient at all for r = 1/2, and for others one that does not depend on b."""
    slope = lambda b: jax.grad(lambda v: terms(v, strength=b).sum())(OLD)
    found = slope(1.0)
    np.testing.assert_array_equal(found[2], 0)
    almost = jax.grad(lambda v: terms(v, np.full(M, 1e-9, np.float32)).sum())(OLD)
    np.testing.assert_allclose(almost, 0, atol=1e-7)
    np.testing.assert_allclose(slope(0.1), found, atol=1e-5 * np.abs(found).max())
    error = X - WIDE * OLD - X0
    size = np.abs(error).mean((1, 2), keepdims=True)
    r = np.float32([0, 0.25, 0.5, 0.6, 1])[:, None, None]
    expected = -10 * (2 * r - 1) * WIDE * error / size / 12
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_array_equal(np.sign(found[0]), np.sign(error[0]))  # away from a bad sample


def test_a_perfect_prediction_divides_by_the_floor():
    exact = NOISE - X0  # the error is rounding
    found, slope = jax.value_and_grad(lambda v: terms(v, old=exact).sum())(exact)
    assert found < 1e-6 and np.abs(slope).max() < 1


def test_no_gradient_flows_into_the_old_policy():
    slope = jax.grad(lambda old: terms(V, old=old).sum())(jnp.asarray(OLD))
    np.testing.assert_array_equal(slope, 0)


def test_schedules_of_the_old_policy():
    of = lambda name: [float(OLD_DECAYS[name](jnp.int32(k))) for k in (0, 1, 100, 499, 501, 10_000)]
    assert of('none') == [0] * 6
    np.testing.assert_allclose(of('rising'), [0, 0.001, 0.1, 0.499, 0.5, 0.5], rtol=1e-6)
    np.testing.assert_allclose(of('late'), [0, 0, 0.1875, 0.999, 0.999, 0.999], rtol=1e-6)
    assert float(OLD_DECAYS['late'](jnp.int32(75))) == 0
    policy, old = {'a': jnp.float32([3, 1e-7])}, {'a': jnp.float32([1, 1 / 3])}
    found = follow_old(old, policy, jnp.int32(100), old_decay='late')
    np.testing.assert_allclose(found['a'], 0.1875 * old['a'] + 0.8125 * policy['a'], rtol=1e-6)
    newest = follow_old(old, policy, jnp.int32(9), old_decay='none')
    np.testing.assert_array_equal(newest['a'], policy['a'])
    frozen = moving_average(lambda step: 1.0)(old, policy, jnp.int32(9))
    np.testing.assert_array_equal(frozen['a'], old['a'])


def test_the_samples_are_those_of_the_old_policy():
    assert LOSSES['nft'].sampler == 'old' and LOSSES['grpo'].sampler == 'policy'
    with pytest.raises(ValueError, match="sampler is 'best'; expected one of"):
        Loss(LOSSES['nft'].fn, batch='clean', sampler='best')
    with pytest.raises(ValueError, match="sampler is 'ref'"):
        Loss(LOSSES['nft'].fn, batch='clean', sampler='ref')
