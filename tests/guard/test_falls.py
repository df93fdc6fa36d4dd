"""When a score counts as fallen."""

import math

import numpy as np
import pytest
import scipy.stats

from densegrpo_jax.guard.falls import Change, change, changes, fallen, missing


def test_a_change_is_a_paired_test_of_the_prompts_that_have_both():
    rng = np.random.default_rng(0)
    start, now = rng.standard_normal(20), rng.standard_normal(20) - 0.3
    start[3], now[5] = math.nan, math.nan
    both = np.isfinite(start) & np.isfinite(now)
    found = change(start, now)
    d = (now - start)[both]
    plain = scipy.stats.ttest_rel(now[both], start[both], alternative='less')
    s, n = d.std(ddof=1), len(d)
    skew, w = ((d - d.mean()) ** 3).mean() / s**3, d.mean() / s
    # (1 + skew w / 3)^3 = 1 + skew (w + skew w^2 / 3 + skew^2 w^3 / 27)
    hall = ((1 + skew * w / 3) ** 3 - 1) / skew + skew / (6 * n)
    corrected = scipy.stats.t.cdf(np.sqrt(n) * hall, n - 1)
    assert found.p == pytest.approx(max(plain.pvalue, corrected), rel=1e-9)
    assert found.change == pytest.approx((now - start)[both].mean())
    assert found.error == pytest.approx(scipy.stats.sem((now - start)[both]))
    assert found.mean == pytest.approx(np.nanmean(now)) and found.prompts == 18


@pytest.mark.parametrize(
    ('start', 'now', 'p'),
    [
        (range(8), np.arange(8.0), 1.0),  # nothing has moved
        (range(8), np.arange(8.0) - 0.5, 0.0),  # all have fallen alike
        (range(8), np.arange(8.0) + 0.5, 1.0),
        (np.full(32, 0.7), np.full(32, 0.7 - 1.2e-7), 1.0),  # a saturated score, rounded otherwise
        (np.tile([1.0, -1.0], 16), np.tile([1.0, -1.0], 16) - 1.2e-7, 1.0),  # of mean 0
        (np.full(32, 7e-6), np.full(32, 6e-6), 0.0),
        (range(7), np.arange(7.0) - 0.5, math.nan),  # few prompts tell nothing
        ([math.nan] * 9, [0.0] * 9, math.nan),
    ],
)
def test_changes_without_spread(start, now, p):
    assert change(np.array(start, float), np.array(now)).p == pytest.approx(p, nan_ok=True)


def test_rows_of_one_text_count_as_one_prompt():
    rng = np.random.default_rng(4)
    start, now = rng.standard_normal((2, 12))
    found = change(start, now)
    twice = change(np.tile(start, 2), np.tile(now, 2), [f'prompt {i}' for i in range(12)] * 2)
    assert twice == pytest.approx(found) and twice.prompts == 12
    few = change(np.zeros(20), np.arange(20.0), ['a', 'b'] * 10)
    assert few.prompts == 2 and few[:2] == (9.5, 9.5) and math.isnan(few.p)


def test_a_score_that_many_prompts_have_lost_is_missing():
    start, now = np.full(40, math.nan), np.full(40, math.nan)
    start[:30] = now[3:] = 0.0
    now = {'a': now, 'b': np.where(np.arange(40) == 29, math.nan, now), 'c': now * math.nan}
    never = np.full(40, math.nan)
    assert missing({'a': start, 'b': start, 'c': never}, now) == ['b']


def test_a_fall_is_judged_against_all_comparisons_of_the_run():
    of = lambda p: Change(0, -1, 1, p, 9)
    found = {'a': of(0.004), 'b': of(0.006), 'c': of(0.9)}
    # 0.05 / (3 scores x 3 evaluations) = 0.0056
    assert fallen(found, 0.05, 3) == ['a']
    assert fallen(found, 0.05, 1) == ['a', 'b']
    assert fallen(found | {'d': of(math.nan)}, 0.05, 3) == ['a']


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


def test_skew_is_no_fall():
    """Most prompts lose a little and few gain much, with a mean of 0: the t test alone is wrong
    several times as often as it says.
    """
    d, level = np.random.default_rng(2).exponential(size=(6000, 32)) - 1, 0.002
    found = scipy.stats.ttest_1samp(d, 0, axis=1, alternative='less').pvalue < level
    alone, both = found.sum(), sum(change(np.zeros(32), row).p < level for row in d)
    assert alone > 6 * level * 6000 and both < 3 * level * 6000


def test_a_large_fall_is_found_whatever_its_skew():
    rng = np.random.default_rng(3)
    for draw in (rng.exponential, lambda size: -rng.exponential(size=size)):
        assert change(np.zeros(32), draw(size=32) - 30).p < 1e-10
