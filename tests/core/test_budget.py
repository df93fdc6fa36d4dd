"""AEGPO's choices as this package reconstructs them, by hand."""

import numpy as np
import pytest

from densegrpo_jax.core.budget import entropy_change, smoothed, split_budget, top_steps


def test_the_change_of_entropy():
    policy, base = np.float32([[0.5, 0.4], [0.7, 0.2]]), np.float32([[0.4, 0.5], [0.5, 0.4]])
    np.testing.assert_allclose(entropy_change(policy, base), [0.15, 0.15], rtol=1e-6)
    np.testing.assert_allclose(
        entropy_change(policy, base, relative=True), [(0.25 + 0.4) / 2, (0.2 + 0.5) / 2], rtol=1e-6
    )
    np.testing.assert_array_equal(entropy_change(base, base), 0)


@pytest.mark.parametrize(
    'change, expected',
    [
        ([0.1, 0.4, 0.3, 0.2], [8, 16, 16, 8]),
        ([0.0, 0.0, 0.0, 0.0], [8, 8, 16, 16]),  # ties by place
        ([0.2, 0.1, 0.2, 0.2, 0.2, 0.0], [8, 8, 16, 16, 16, 8]),
    ],
)
def test_budgets(change, expected):
    budget = split_budget(np.array(change), 8, 16)
    assert budget.tolist() == expected and budget.sum() == len(change) * 12
    assert split_budget(np.array(change), 12, 12).tolist() == [12] * len(change)


def test_the_average_over_iterations():
    np.testing.assert_array_equal(smoothed(None, np.array([0.2, 0.4]), 0.9), [0.2, 0.4])
    np.testing.assert_allclose(smoothed([0.2, 0.4], np.array([0.3, 0.2]), 0.9), [0.21, 0.38])
    np.testing.assert_array_equal(smoothed([0.2, 0.4], np.array([0.3, 0.2]), 0.0), [0.3, 0.2])


def test_the_steps_of_the_highest_entropy():
    entropy = np.array([0.9, 0.5, 0.7, 0.7, 0.6, 1.0])
    assert top_steps(entropy, (1, 2, 3, 4), 2).tolist() == [2, 3]
    assert top_steps(entropy, (1, 2, 3, 4), 1).tolist() == [2]  # the earlier of two
    assert top_steps(entropy, range(6), 3).tolist() == [0, 2, 5]
    assert top_steps(entropy, (1, 2, 3, 4), 4).tolist() == [1, 2, 3, 4]


def test_what_cannot_be():
    with pytest.raises(ValueError, match='3 prompts do not split'):
        split_budget(np.zeros(3), 8, 16)
    with pytest.raises(ValueError, match='count is 3; expected 1 to 2'):
        top_steps(np.zeros(4), (0, 1), 3)
