"""Pairs of variants: whether their runs differ, and whether a signal orders them alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from densegrpo_jax.preflight.signal import Interval

LEVEL = 0.05


class Test(NamedTuple):
    """Of a pair: its p, and whether the signal orders it as the means of its runs are."""

    p: float
    right: bool


class Ordered(NamedTuple):
    """Pairs of variants, by Welch's t test of their runs.

    Attributes:
      pairs: all that were tested.
      decided: whose runs differ at LEVEL, each test for itself: chance alone gives LEVEL of all
        pairs. right: those of them that the signal orders alike.
      sure, sure_right: the same with Holm's correction for the number of tests.
    """

    pairs: int
    decided: int
    right: int
    sure: int
    sure_right: int


def ordered(signal: Mapping[str, Interval], runs: Mapping[str, Sequence[float]]) -> Ordered:
    """How far the signal orders pairs of variants as their runs do."""
    return count(tests(signal, runs))


def tests(signal: Mapping[str, Interval], runs: Mapping[str, Sequence[float]]) -> list[Test]:
    """Of every pair of the variants in `signal`."""
    found, names = [], [*signal]
    for i, one in enumerate(names):
        for other in names[:i]:
            p = stats.ttest_ind(runs[one], runs[other], equal_var=False).pvalue
            better = np.mean(runs[one]) > np.mean(runs[other])
            p = 1.0 if np.isnan(p) else p  # of one run each: nothing is told
            found.append(Test(float(p), bool(better == (signal[one].value > signal[other].value))))
    return found


def count(tests: Sequence[Test]) -> Ordered:
    """What tests of one setting, or of several, say."""
    tests = sorted(tests)
    alike = lambda found: (len(found), sum(right for _, right in found))
    bounds = [LEVEL / (len(tests) - i) for i in range(len(tests))]
    passed = next((i for i, (p, _) in enumerate(tests) if p >= bounds[i]), len(tests))
    return Ordered(len(tests), *alike([t for t in tests if t.p < LEVEL]), *alike(tests[:passed]))
