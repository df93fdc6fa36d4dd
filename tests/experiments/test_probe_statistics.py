"""Rank correlations, intervals and the bias of a value, on arrays whose answers are known."""

import numpy as np
import pytest
import scipy.stats

from densegrpo_jax.core.dense_reward import dense_reward
from experiments.reproduction import probe_statistics
from experiments.reproduction.probe_statistics import (
    LAMBDAS,
    Method,
    bias_rows,
    bootstrap,
    correlation,
    cost_rows,
    gae,
    group_correlations,
    latent_reward_rows,
)

NAN = np.nan


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    monkeypatch.setattr(probe_statistics, 'DRAWS', 30)


def test_rank_correlation_by_hand():
    tied, reference = np.array([1.0, 2, 2, 3]), np.array([1.0, 30, 2, 400])
    # Ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4 around 2.5: products 2.25 + 0 + 0 + 2.25; squares 4.5 and
    # 5.
    assert correlation(tied, reference) == pytest.approx(4.5 / np.sqrt(4.5 * 5))
    assert correlation(tied, reference) == pytest.approx(
        scipy.stats.spearmanr(tied, reference).statistic
    )
    assert correlation(tied, -tied) == pytest.approx(-1)
    assert correlation(tied, reference, ranks=False) == pytest.approx(
        scipy.stats.pearsonr(tied, reference).statistic
    )
    assert correlation(np.ones(4), reference) == 0  # a prediction without spread
    assert np.isnan(correlation(tied, np.ones(4)))  # nothing to be ordered
    # of the two whole pairs
    assert correlation(np.array([1, NAN, 2, 3]), np.array([5, 1, 6, NAN])) == pytest.approx(1)
    assert np.isnan(correlation(np.array([1, NAN]), np.array([1.0, 2])))


def test_correlations_within_groups():
    predicted = np.array([[1.0, 2, 3], [3, 2, 1], [7, 7, 7], [1, 2, 3]])
    reference = np.array([[0.0, 5, 6], [0, 5, 6], [0, 5, 6], [4, 4, 4]])
    np.testing.assert_allclose(group_correlations(predicted, reference), [1, -1, 0, NAN])


def test_bootstrap_draws_prompts():
    values = np.random.default_rng(0).standard_normal(400)
    low, high = bootstrap(lambda drawn: values[drawn].mean(), 400, 1000)
    error = values.std(ddof=1) / 20
    np.testing.assert_allclose(
        [low, high], values.mean() + 1.96 * error * np.array([-1, 1]), atol=0.2 * error
    )
    np.testing.assert_array_equal(bootstrap(lambda drawn: 3.0, 5, 9), [3, 3])
    assert np.isnan(bootstrap(lambda drawn: NAN, 5, 9)).all()


def test_latent_rewards_by_hand():
    terminal = np.array([[0.0, 1, 2], [4, 4, 4]])
    reversed_in_groups = np.array([[2.0, 1, 0], [5, 5, 5]])
    rows = latent_reward_rows(np.stack([reversed_in_groups, terminal]), np.array([1.0, 0]))
    first, last = rows
    assert (
        first['state'],
        first['s'],
        first['timesteps_left'],
        first['groups'],
        first['samples'],
    ) == (0, 1, 1, 1, 6)
    assert first['reward'] == pytest.approx(3) and first['difference'] == pytest.approx(
        (2 + 0 + 2 + 1 + 1 + 1) / 6
    )
    assert first['group_rank_correlation'] == pytest.approx(-1)  # of the only group with spread
    assert first['rank_correlation'] == pytest.approx(
        scipy.stats.spearmanr([2, 1, 0, 5, 5, 5], [0, 1, 2, 4, 4, 4]).statistic
    )
    assert (
        last['difference'],
        last['rank_correlation'],
        last['group_rank_correlation'],
    ) == pytest.approx((0, 1, 1))
    assert first['reward_low'] == 1 and first['reward_high'] == 5  # either prompt drawn twice


def test_cost_by_hand():
    rng = np.random.default_rng(1)
    whole = rng.standard_normal((4, 6, 5))  # T = 3
    mirrored = np.concatenate([-whole[:-1], whole[-1:]])
    without = np.where(np.arange(4)[:, None, None] == 2, NAN, whole)
    methods = {
        'whole': Method(9, whole),
        'mirrored': Method(5, mirrored),
        'unscored': Method(4, without),
    }
    same, other, partial = cost_rows(methods, 'whole', np.array([True, True, False]), (0, 1, 2))
    for name in ('reward', 'gain', 'group_reward', 'group_gain'):
        assert same[f'{name}_correlation'] == pytest.approx(1) and other[
            f'{name}_correlation'
        ] == pytest.approx(-1)
    assert other['terminal_correlation'] == pytest.approx(-same['terminal_correlation'])
    expected = np.mean(
        [scipy.stats.spearmanr(whole[k].ravel(), whole[3].ravel()).statistic for k in range(3)]
    )
    assert same['terminal_correlation'] == pytest.approx(expected)
    assert (same['calls'], other['calls']) == (9, 5)
    assert partial['group_gain_correlation'] == pytest.approx(1)  # of transition 0 alone
    assert partial['group_gain_correlation_0'] == pytest.approx(1) and np.isnan(
        partial['group_gain_correlation_1']
    )


def walk(error=0.0, offset=0.0, prompts=1500, samples=5, continuations=4, steps=3):
    """Values that walk by N(0, 1) at every transition, and completions that err by N(offset,
    error^2) in every state but the last.

    Returns what `bias_rows` takes: V, continuations, grid, states.
    """
    rng, shape = np.random.default_rng(0), (prompts, samples)
    value = np.cumsum(rng.standard_normal((steps + 1, *shape)), axis=0)
    completed = value + offset + error * rng.standard_normal(value.shape)
    completed[-1] = value[-1]
    left = np.sqrt(steps - np.arange(steps + 1.0))[:, None, None, None]
    continued = value[..., None] + left * rng.standard_normal((*value.shape, continuations))
    return completed, continued, np.linspace(1, 0, steps + 1), range(steps)


def test_bias_of_a_known_walk():
    rows = bias_rows(*walk(error=0.5, offset=-0.3))
    assert [row['state'] for row in rows] == [0, 1, 2, 'all']
    for k, row in enumerate(rows[:3]):
        assert row['bias'] == pytest.approx(0.3, abs=4 * row['standard_error'] + 1e-9)
        assert row['standard_error'] == pytest.approx(np.sqrt((0.25 + (3 - k) / 4) / 7500), rel=0.1)
        assert row['bias_low'] < row['bias'] < row['bias_high']
        assert row['rms_bias'] == pytest.approx(np.hypot(0.3, 0.5), abs=0.04)
        assert row['group_rms_bias'] == pytest.approx(0.5, abs=0.04)
        assert row['continuation_std'] == pytest.approx(np.sqrt(3 - k), rel=0.03)
        # The gain is a step of the walk and the difference of two errors; the last state has none.
        assert row['gain_std'] == pytest.approx(np.sqrt(1 + 0.25 * (2 if k < 2 else 1)), rel=0.03)
        assert row['bias_to_gain'] == pytest.approx(row['group_rms_bias'] / row['gain_std'])
        # A has variance 1; as measured, also that of two means over 4 continuations, of 3 - k and 2
        # - k steps each.
        reliability = 1 / np.sqrt(1 + (5 - 2 * k) / 4)
        assert row['advantage_reliability'] == pytest.approx(reliability, abs=0.03)
        for lam, expected in ((0, 1 / row['gain_std']), (1, 1 / np.sqrt(3 - k + 0.25))):
            assert row[f'advantage_correlation_{lam}'] == pytest.approx(
                expected * reliability, abs=0.03
            )
        # A^0 errs by the completions' errors; A^1 by one of them and the steps after the first.
        assert row['advantage_error_0'] == pytest.approx(0.25 * (2 if k < 2 else 1), abs=0.06)
        assert row['advantage_error_1'] == pytest.approx(2 - k + 0.25, abs=0.15)
    assert rows[0]['value_correlation'] > rows[0]['continuation_correlation'] + 0.1
    assert rows[3]['bias'] is None and set(rows[3]) == set(rows[0])
    means = np.mean(
        [[row[f'advantage_correlation_{lam:g}'] for lam in LAMBDAS] for row in rows[:3]], axis=0
    )
    np.testing.assert_allclose(
        [rows[3][f'advantage_correlation_{lam:g}'] for lam in LAMBDAS], means
    )
    assert np.isnan(rows[2]['best_lambda'])  # in the last transition there is nothing to add


def test_gae_is_the_credit_rule():
    values = np.random.default_rng(0).standard_normal((5, 2, 3)).astype(np.float32)
    for lam in (0, 0.3, 1):
        expected = dense_reward(values.reshape(5, 6), 'gae', gae_lambda=lam)
        np.testing.assert_allclose(gae(values, lam).reshape(4, 6), expected, atol=1e-6)


def test_the_best_lambda_follows_the_error_of_the_completions():
    exact = bias_rows(*walk(offset=0.4))  # an offset cancels
    assert exact[0]['best_lambda'] == exact[3]['best_lambda'] == 0
    assert exact[0]['rms_bias'] == pytest.approx(0.4, abs=0.06) and exact[0]['group_rms_bias'] < 0.2
    assert exact[0]['advantage_correlation_0'] == pytest.approx(
        exact[0]['advantage_reliability'], abs=0.03
    )
    some, bad = bias_rows(*walk(error=0.5)), bias_rows(*walk(error=5.0))
    assert 0 < some[0]['best_lambda'] < 1 and bad[0]['best_lambda'] == 1
    # R_T alone has the whole walk's luck in it, and no completion's error.
    assert bad[0]['advantage_correlation_sparse'] > bad[0]['advantage_correlation_1']


def test_scores_that_are_missing_are_left_out():
    values, continued, sigmas, states = walk(error=0.5, prompts=300)
    values[0, :50, 0], continued[1, 60:90, 1, 2], continued[0, 100:110, 3] = NAN, NAN, NAN
    found, expected = (
        bias_rows(values, continued, sigmas, states)[0],
        bias_rows(*walk(error=0.5, prompts=300))[0],
    )
    for key in (
        'bias',
        'rms_bias',
        'continuation_std',
        'advantage_correlation_0',
        'advantage_error_1',
        'value_correlation',
    ):
        assert found[key] == pytest.approx(expected[key], abs=0.15) and found[key] != expected[key]
    with pytest.raises(ValueError, match='at least 3'):
        bias_rows(values, continued[..., :2], sigmas, states)
