"""When a score counts as fallen."""

import math

import numpy as np
import pytest
import scipy.stats

from densegrpo_jax.evaluation.falls import Change, change, changes, fallen


def test_a_change_is_scipys_paired_test_of_the_prompts_that_have_both():
    rng = np.random.default_rng(0)
    start, now = rng.standard_normal(20), rng.standard_normal(20) - 0.3
    start[3], now[5] = math.nan, math.nan
    both = np.isfinite(start) & np.isfinite(now)
    found = change(start, now)
    want = scipy.stats.ttest_rel(now[both], start[both], alternative='less')
    assert found.p == pytest.approx(want.pvalue, rel=1e-12)
    assert found.change == pytest.approx((now - start)[both].mean())
    assert found.error == pytest.approx(scipy.stats.sem((now - start)[both]))
    assert found.mean == pytest.approx(np.nanmean(now))


@pytest.mark.parametrize(
    ('start', 'now', 'p'),
    [
        ([1.0, 2.0], [1.0, 2.0], 1.0),  # nothing has moved
        ([1.0, 2.0], [0.5, 1.5], 0.0),  # all have fallen alike
        ([1.0, 2.0], [1.5, 2.5], 1.0),
        ([1.0], [0.0], math.nan),  # one prompt tells nothing
        ([math.nan, math.nan], [0.0, 1.0], math.nan),
    ],
)
def test_changes_without_spread(start, now, p):
    assert change(np.array(start), np.array(now)).p == pytest.approx(p, nan_ok=True)


def test_a_fall_is_judged_against_all_comparisons_of_the_run():
    found = {'a': Change(0, -1, 1, 0.004), 'b': Change(0, -1, 1, 0.006), 'c': Change(0, 1, 1, 0.9)}
    # 0.05 / (3 scores x 3 evaluations) = 0.0056
    assert fallen(found, 0.05, 3) == ['a']
    assert fallen(found, 0.05, 1) == ['a', 'b']
    assert fallen(found | {'d': Change(0, 0, 0, math.nan)}, 0.05, 3) == ['a']


def test_the_level_bounds_false_alarms_of_whole_runs():
    """400 runs in which nothing falls: six evaluations, four scores, 16 prompts each."""
    rng, alarms = np.random.default_rng(1), 0
    for _ in range(400):
        start = {name: rng.standard_normal(16) for name in 'abcd'}
        drift = {name: np.cumsum(rng.standard_normal((6, 16)), axis=0) for name in 'abcd'}
        alarms += any(
            fallen(changes(start, {n: start[n] + drift[n][t] for n in start}), 0.2, 6)
            for t in range(6)
        )
    assert 0.02 < alarms / 400 <= 0.2
