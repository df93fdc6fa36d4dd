import jax
import numpy as np
import pytest

from densegrpo_jax.core.advantages import CENTRES, STD_SCOPES, group_advantages, group_ids_of

# One transition, two groups of three.
STEP = np.array([[1.0, 2.0, 3.0, 0.0, 0.0, 4.0]], np.float32)


def test_hand_computed_group_std():
    values, zero = group_advantages(STEP, 2, eps=0.0)
    a, b = np.sqrt(2 / 3), np.sqrt(32 / 9)
    np.testing.assert_allclose(
        values, [[-1 / a, 0, 1 / a, -4 / 3 / b, -4 / 3 / b, 8 / 3 / b]], rtol=1e-6
    )
    assert zero.tolist() == [0]


def test_hand_computed_global_std():
    values, _ = group_advantages(STEP, 2, std='global', eps=1e-4)
    std = np.sqrt(np.mean((STEP - STEP.mean()) ** 2))  # around the batch mean, population
    np.testing.assert_allclose(
        values, np.array([[-1, 0, 1, -4 / 3, -4 / 3, 8 / 3]]) / (std + 1e-4), rtol=1e-6
    )


def test_hand_computed_pooled_std():
    # Group means 2, 4/3 and 4, 10: squares 2, 32/3 and 8 + 18 over 12 rewards. Where the steps lie
    # is nobody's merit.
    steps = np.concatenate([STEP, [[4, 2, 6, 7, 10, 13]]]).astype(np.float32)
    std = np.sqrt((2 + 32 / 3 + 8 + 18) / 12)
    centred = np.array([[-1, 0, 1, -4 / 3, -4 / 3, 8 / 3], [0, -2, 2, -3, 0, 3]])
    values, zero = group_advantages(steps, 2, std='pooled', eps=0.0)
    np.testing.assert_allclose(values, centred / std, rtol=1e-6)
    np.testing.assert_allclose(np.square(values).mean(), 1, rtol=1e-6)
    assert zero.tolist() == [0, 0]
    shifted, _ = group_advantages(steps + np.float32([[0], [64]]), 2, std='pooled', eps=0.0)
    np.testing.assert_allclose(shifted, values, atol=1e-5)


def test_hand_computed_joint_centre():
    """Groups of two over two transitions: 1, 3, 5, 7 around 4 and 0, 0, 2, 6 around 2."""
    steps = np.float32([[1, 3, 0, 0], [5, 7, 2, 6]])
    centred = np.array([[-3, -1, -2, -2], [1, 3, 0, 4]])
    for std, scale in (('joint', [5**0.5, 5**0.5, 6**0.5, 6**0.5]), ('pooled', 5.5**0.5)):
        values, zero = group_advantages(steps, 2, std=std, centre='joint', eps=0.0)
        np.testing.assert_allclose(values, centred / scale, rtol=1e-6)
        assert zero.tolist() == [0, 0]  # the first transition's rewards of the second group differ
    # each group as one set of rewards of one transition, as the paper has it
    for group in (steps[:, :2], steps[:, 2:]):
        alone, _ = group_advantages(group, 1, std='joint', centre='joint')
        as_one, _ = group_advantages(group.reshape(1, 4), 1)
        np.testing.assert_allclose(alone.reshape(1, 4), as_one, rtol=1e-6)


def test_joint_centre_leaves_out_what_is_not_in_use_and_a_group_without_spread():
    steps = np.float32([[np.nan] * 6, [1, 2, 9, 4, 4, 4], [3, 6, 9, 4, 4, 4]])
    values, zero = group_advantages(
        steps,
        2,
        std='joint',
        centre='joint',
        eps=0.0,
        steps=np.array([False, True, True]),
        valid=np.array([True, True, False, True, True, True]),
    )
    scale = 3.5**0.5  # of 1, 2, 3, 6 around 3
    np.testing.assert_allclose(values[1:, :2], np.array([[-2, -1], [0, 3]]) / scale, rtol=1e-6)
    np.testing.assert_array_equal(values[0], 0)
    np.testing.assert_array_equal(values[:, 2:], 0)
    assert zero.tolist() == [0, 1, 1]


def test_the_centre_makes_no_difference_where_all_transitions_share_a_reward():
    steps = np.repeat(np.random.default_rng(1).random((1, 8), np.float32), 5, 0)
    for std in ('pooled', 'joint'):
        by_step, joint = (
            group_advantages(steps, 2, std=std, centre=centre).values for centre in CENTRES
        )
        np.testing.assert_allclose(joint, by_step, rtol=2e-5, atol=1e-6)


def test_pooled_std_keeps_a_step_that_hardly_varies_small():
    steps = np.concatenate([STEP, 1e-3 * STEP])
    small = {
        std: np.abs(group_advantages(steps, 2, std=std).values[1]).max()
        for std in ('group', 'global', 'pooled')
    }
    assert small['group'] > 1 and small['global'] > 1 and small['pooled'] < 5e-3


def test_epsilon_is_added_outside_the_root():
    values, _ = group_advantages(np.array([[0.0, 0.02]]), 1, eps=0.01)
    np.testing.assert_allclose(values, [[-0.5, 0.5]], rtol=1e-5)


def test_clip():
    step = np.zeros((1, 50), np.float32)
    step[0, 7] = 1
    assert float(group_advantages(step, 1, clip=None).values.max()) == pytest.approx(7, rel=1e-2)
    clipped = group_advantages(step, 1, clip=5.0).values
    assert clipped.max() == 5 and clipped.min() > -1


def test_each_transition_is_normalised_on_its_own():
    steps = np.concatenate([STEP, 100 * STEP[:, ::-1], np.zeros_like(STEP)])
    values, zero = group_advantages(steps, 2)
    for k in range(3):
        alone, zero_alone = group_advantages(steps[k : k + 1], 2)
        np.testing.assert_array_equal(values[k], alone[0])
        assert zero[k] == zero_alone[0]
    assert zero.tolist() == [0, 0, 2]


@pytest.mark.parametrize('std', STD_SCOPES)
def test_zero_spread_groups_are_zero_and_counted(std):
    # 0.1 three times has a float32 mean that need not be 0.1; equal gains may differ by rounding.
    steps = np.array(
        [[0.1, 0.1, 0.1, 0.0, 1.0, 0.5], [0.3, 0.3 + 5e-8, 0.3, 0.7, 0.7, 0.7]], np.float32
    )
    values, zero = group_advantages(steps, 2, std=std, eps=0.0)
    assert zero.tolist() == [1, 2]
    np.testing.assert_array_equal(values[0, :3], 0)
    np.testing.assert_array_equal(values[1], 0)
    assert np.abs(values[0, [3, 4]]).min() > 0.5


def test_group_ids_replace_prompt_major_order():
    order = np.array([3, 0, 5, 1, 4, 2])
    expected, _ = group_advantages(STEP, 2)
    values, _ = group_advantages(STEP[:, order], 2, group_ids=order // 3)
    np.testing.assert_allclose(values, expected[:, order], atol=1e-6)


@pytest.mark.parametrize('std', STD_SCOPES)
def test_groups_may_have_different_sizes(std):
    ids = group_ids_of([2, 4, 1])
    assert ids.tolist() == [0, 0, 1, 1, 1, 1, 2]
    steps = np.random.default_rng(0).standard_normal((3, 7)).astype(np.float32)
    values, zero = group_advantages(steps, 3, std=std, eps=0.0, clip=None, group_ids=ids)
    groups = [steps[:, :2], steps[:, 2:6], steps[:, 6:]]
    centred = [g - g.mean(1, keepdims=True) for g in groups]
    scale = {
        'group': [np.maximum(g.std(1, keepdims=True), 1e-9) for g in groups],
        'global': [steps.std(1, keepdims=True)] * 3,
        'pooled': [np.sqrt(np.mean(np.concatenate(centred, 1) ** 2))] * 3,
        'joint': [np.maximum(np.sqrt(np.mean(c**2)), 1e-9) for c in centred],
    }[std]
    expected = np.concatenate([c / s for c, s in zip(centred, scale)], 1)
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)
    assert zero.tolist() == [1, 1, 1]  # a single sample differs from nobody
    for sizes in ([], [2, 0]):
        with pytest.raises(ValueError, match='at least 1'):
            group_ids_of(sizes)


def test_untrained_steps_and_invalid_samples_leave_the_statistics():
    steps = np.array([[np.nan] * 6, [1, 2, 3, 5, 5, np.nan]], np.float32)
    valid = np.array([True, True, True, True, True, False])
    for std in STD_SCOPES:
        values, zero = group_advantages(
            steps, 2, std=std, eps=0.0, steps=np.array([False, True]), valid=valid
        )
        assert np.isfinite(values).all() and zero.tolist() == [0, 1]
        np.testing.assert_array_equal(values[0], 0)
        scale = {
            'group': np.sqrt(2 / 3),
            'global': np.std([1, 2, 3, 5, 5]),
            'pooled': np.sqrt(2 / 5),
            'joint': np.sqrt(2 / 3),
        }[std]
        np.testing.assert_allclose(values[1], np.array([-1, 0, 1, 0, 0, 0]) / scale, rtol=1e-6)
    _, zero = group_advantages(
        steps[1:], 2, valid=np.array([True, True, True, False, False, False])
    )
    assert zero.tolist() == [0]  # a group without a valid sample is no group


@pytest.mark.parametrize('std', STD_SCOPES)
def test_jit_equals_no_jit(std):
    steps = np.random.default_rng(0).standard_normal((4, 12)).astype(np.float32)
    plain = group_advantages(steps, 3, std=std)
    jitted = jax.jit(lambda r: group_advantages(r, 3, std=std))(steps)
    np.testing.assert_allclose(jitted.values, plain.values, atol=1e-6)
    np.testing.assert_array_equal(jitted.zero_spread, plain.zero_spread)


def test_bad_arguments():
    with pytest.raises(ValueError, match='4 equal groups'):
        group_advantages(STEP, 4)
    with pytest.raises(ValueError, match='batch'):
        group_advantages(STEP, 2, std='batch')
    with pytest.raises(ValueError, match="centre is 'mean'"):
        group_advantages(STEP, 2, centre='mean')
    for std in ('group', 'global'):
        with pytest.raises(ValueError, match="use std 'joint'.* or 'pooled'"):
            group_advantages(STEP, 2, std=std, centre='joint')
