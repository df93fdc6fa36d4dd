"""Several rewards, one advantage: by hand, and what does not change it."""

import jax
import numpy as np
import pytest

from densegrpo_jax.core.advantages import STD_SCOPES, group_advantages
from densegrpo_jax.core.combine import COMBINATIONS, combined_advantages

# One transition, two groups of two. Group std of a: 1, 2; of b: 5, 0.
A = np.array([[0.0, 2.0, 3.0, 7.0]], np.float32)
B = np.array([[10.0, 0.0, 4.0, 4.0]], np.float32)
HALF = {'a': 0.5, 'b': -0.25}


def combine(how, rewards=None, weights=HALF, groups=2, **options):
    return combined_advantages(
        [rewards or {'a': A, 'b': B}],
        weights,
        groups,
        combine=how,
        **{'eps': 0.0, 'clip': None, **options},
    )


def random_rewards():
    rng = np.random.default_rng(0)
    a = rng.standard_normal((3, 12)).astype(np.float32)
    return {'a': a, 'b': (0.5 * a + rng.standard_normal((3, 12))).astype(np.float32)}


def test_sum_by_hand():
    # 0.5 a - 0.25 b = [-2.5, 1, 0.5, 2.5]: group means -0.75 and 1.5, group std 1.75 and 1
    np.testing.assert_allclose(combine('sum').values, [[-1, 1, -1, 1]], atol=1e-6)
    spread = np.std([-2.5, 1, 0.5, 2.5])
    np.testing.assert_allclose(
        combine('sum', std='global').values, np.array([[-1.75, 1.75, -1, 1]]) / spread, rtol=1e-6
    )


def test_advantages_by_hand():
    # A(a) = [-1, 1, -1, 1], A(b) = [1, -1, 0, 0]
    values, flat = combine('advantages')
    np.testing.assert_allclose(values, [[-0.75, 0.75, -0.5, 0.5]], atol=1e-6)
    assert flat.tolist() == [0]  # b does not tell the second group apart, a does
    a, b = np.std(A), np.std(B)
    expected = [[-0.5 / a - 1.25 / b, 0.5 / a + 1.25 / b, -1 / a, 1 / a]]
    np.testing.assert_allclose(combine('advantages', std='global').values, expected, rtol=1e-6)
    np.testing.assert_allclose(
        combine('advantages', clip=0.6).values, [[-0.6, 0.6, -0.5, 0.5]], atol=1e-6
    )


def test_normalised_by_hand():
    np.testing.assert_allclose(combine('normalised').values, [[-1, 1, -1, 1]], atol=1e-6)
    scaled = 0.5 * A[0] / np.std(A) - 0.25 * B[0] / np.std(B)
    means = np.repeat(scaled.reshape(2, 2).mean(1), 2)
    np.testing.assert_allclose(
        combine('normalised', std='global').values[0], (scaled - means) / np.std(scaled), rtol=1e-5
    )


def test_pooled_by_hand():
    # A second step, with group std 3 and 1 of a, 2 and 0 of b: pooled a sqrt(15 / 4), b sqrt(29 /
    # 4).
    rewards = {'a': np.concatenate([A, [[0, 6, 1, 3]]]), 'b': np.concatenate([B, [[4, 0, 1, 1]]])}
    a, b = np.sqrt(15 / 4), np.sqrt(29 / 4)
    added = (
        np.array([[-1, 1, -2, 2], [-3, 3, -1, 1]]) * 0.5 / a
        - np.array([[5, -5, 0, 0], [2, -2, 0, 0]]) * 0.25 / b
    )
    np.testing.assert_allclose(
        combine('advantages', rewards, std='pooled').values, added, rtol=1e-5
    )
    again = added / np.sqrt(np.square(added).mean())
    np.testing.assert_allclose(
        combine('normalised', rewards, std='pooled').values, again, rtol=1e-5
    )


def test_normalised_is_advantages_normalised_again():
    rewards = random_rewards()
    again = group_advantages(
        combine('advantages', rewards, groups=3).values, 3, eps=0.0, clip=None
    ).values
    np.testing.assert_allclose(combine('normalised', rewards, groups=3).values, again, atol=1e-5)


@pytest.mark.parametrize('std', STD_SCOPES)
def test_a_single_reward(std):
    """All three agree: exactly where this is stated, up to eps or the weight elsewhere. A reward of
    weight 0 is as good as absent.
    """
    rewards = random_rewards()
    plain = group_advantages(rewards['a'], 3, std=std, clip=1.5)
    for how in COMBINATIONS:
        for weights in ({'a': 1.0}, {'a': 1.0, 'b': 0.0}):
            got = combined_advantages(
                [{n: rewards[n] for n in weights}], weights, 3, combine=how, std=std, clip=1.5
            )
            np.testing.assert_allclose(
                got.values, plain.values, rtol=1e-3 if how == 'normalised' else 0, atol=0
            )
            np.testing.assert_array_equal(got.zero_spread, plain.zero_spread)
    tripled = {
        how: combine(how, {'a': rewards['a']}, {'a': 3.0}, 3, std=std).values
        for how in COMBINATIONS
    }
    single = group_advantages(rewards['a'], 3, std=std, eps=0.0, clip=None).values
    for how, factor in zip(COMBINATIONS, (1, 1, 3)):
        np.testing.assert_allclose(tripled[how], factor * single, rtol=1e-5)


@pytest.mark.parametrize('std', STD_SCOPES)
def test_only_the_sum_depends_on_a_reward_s_scale(std):
    rewards = random_rewards()
    scaled = {'a': rewards['a'], 'b': 1000 * rewards['b'] + 5}
    change = {}
    for how in COMBINATIONS:
        before, after = (
            combined_advantages([r], HALF, 3, combine=how, std=std).values
            for r in (rewards, scaled)
        )
        change[how] = float(np.abs(before - after).max())
    assert change['sum'] > 0.5 and change['normalised'] < 2e-3 and change['advantages'] < 2e-3


@pytest.mark.parametrize('how', COMBINATIONS)
def test_weights_are_respected(how):
    """The more a reward weighs, the more the advantages go with it."""
    rewards = random_rewards()
    agree = []
    for weight in (-1.0, 0.0, 0.5, 2.0):
        values = combine(how, rewards, {'a': 1.0, 'b': weight}, 3).values
        agree.append(
            float(np.corrcoef(values[0], group_advantages(rewards['b'], 3).values[0])[0, 1])
        )
    assert agree == sorted(agree) and agree[-1] - agree[0] > 0.5


@pytest.mark.parametrize('how', COMBINATIONS)
@pytest.mark.parametrize('std', STD_SCOPES)
def test_flat_groups_invalid_samples_and_untrained_steps(how, std):
    """Rounding in a flat group is not blown up, NaN of what is not in use goes nowhere, and jit
    changes nothing.
    """
    rng = np.random.default_rng(1)
    rewards = {name: (1e-3 * rng.standard_normal((2, 8))).astype(np.float32) for name in 'ab'}
    for r in rewards.values():
        r[:, 4:] = 0.7 + np.float32([0, 1, -1, 0]) * np.float32(6e-8)
        r[0] = np.nan
        r[1, 0] = np.nan
    call = lambda r: combined_advantages(
        [r], HALF, 2, combine=how, std=std, steps=np.array([False, True]), valid=np.arange(8) > 0
    )
    values, flat = call(rewards)
    assert flat.tolist() == [0, 1]
    np.testing.assert_array_equal(values[0], 0)
    np.testing.assert_array_equal(values[1, [0, 4, 5, 6, 7]], 0)
    # of a batch's std they are little
    assert np.isfinite(values).all() and np.abs(values[1, 1:4]).max() > 1e-4
    np.testing.assert_allclose(jax.jit(call)(rewards).values, values, atol=1e-5)


def test_bad_arguments():
    with pytest.raises(ValueError, match="'average'"):
        combine('average')
    with pytest.raises(ValueError, match=r"non-zero weight among \['a'\]"):
        combine('sum', {'a': A}, {'a': 0.0})
