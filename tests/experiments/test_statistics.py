"""Verdicts from paired differences: intervals against known answers, and what few or contradicting
seeds allow to say.
"""

import math

import numpy as np
import pytest
from scipy import stats

from experiments.reproduction.statistics import (
    FAILS,
    HOLDS,
    NOT_RUN,
    UNDECIDED,
    bootstrap_interval,
    claim_verdict,
    paired,
    student_interval,
    summary,
)


def test_a_run_is_the_mean_of_its_evaluations_after_the_start():
    columns = {'updates': (0, 10, 20), 'score': (0.1, 0.5, 0.7), 'kl': (math.nan, 1.0, 3.0)}
    rows = [dict(zip(columns, row)) for row in zip(*columns.values())]
    assert summary(rows) == pytest.approx(0.6)
    assert summary(rows, 'kl') == 2.0
    assert math.isnan(summary(rows[:1]))


def test_only_shared_finite_seeds_are_paired():
    d = paired(
        {'0': 0.5, '1': 0.9, '2': 0.4, '3': math.nan}, {'0': 0.4, '2': 0.2, '3': 0.1, '9': 0.0}
    )
    assert d.seeds == 2 and d.mean == pytest.approx(0.15)


def test_the_student_interval_is_scipys():
    values = np.array([0.1, 0.3, 0.2, 0.25, 0.05])
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    np.testing.assert_allclose(student_interval(values), expected)


def test_the_bootstrap_interval_is_scipys_up_to_resampling():
    values = np.random.default_rng(3).normal(size=12)
    expected = stats.bootstrap(
        (values,), np.mean, method='percentile', n_resamples=20000, rng=1
    ).confidence_interval
    np.testing.assert_allclose(bootstrap_interval(values), expected, atol=0.02)
    assert bootstrap_interval(values) == bootstrap_interval(values)


def test_the_bootstrap_of_five_seeds_covers_less_than_it_says():
    draws = np.random.default_rng(0).normal(size=(400, 5))
    covered = np.mean(
        [low < 0 < high for low, high in (bootstrap_interval(v, resamples=1000) for v in draws)]
    )
    assert 0.78 < covered < 0.88  # why a verdict asks for Student's interval too


@pytest.mark.parametrize(
    ('differences', 'verdict'),
    [
        ([0.10, 0.12, 0.09, 0.11, 0.10], HOLDS),
        ([-0.10, -0.12, -0.09, -0.11, -0.10], FAILS),
        ([0.10, -0.12, 0.09, 0.11, -0.10], UNDECIDED),
        ([0.10, 0.12], UNDECIDED),  # too few, however clear
        ([0.001, 0.2, 0.3], UNDECIDED),  # the bootstrap alone would say that it holds
        ([], NOT_RUN),
    ],
)
def test_verdicts(differences, verdict):
    d = paired(
        {str(i): x for i, x in enumerate(differences)},
        {str(i): 0.0 for i in range(len(differences))},
    )
    assert d.verdict == verdict


def test_the_undecided_case_is_one_where_the_bootstrap_alone_would_decide():
    assert bootstrap_interval(np.array([0.001, 0.2, 0.3]))[0] > 0


def test_a_claim_is_as_good_as_its_parts():
    assert claim_verdict([HOLDS, HOLDS]) == HOLDS
    assert claim_verdict([HOLDS, UNDECIDED]) == claim_verdict([HOLDS, NOT_RUN]) == UNDECIDED
    assert claim_verdict([HOLDS, FAILS]) == FAILS
    assert claim_verdict([NOT_RUN, NOT_RUN]) == NOT_RUN
