"""From runs with seeds to verdicts: paired differences, intervals over seeds, and the verdicts that
they support.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from densegrpo_jax.runtime.markdown import table

HOLDS, FAILS, UNDECIDED, NOT_RUN = 'holds', 'does not hold', 'undecided', 'not run'
MIN_SEEDS = 3


class Difference(NamedTuple):
    """A paired difference over seeds."""

    mean: float
    bootstrap: tuple[float, float]  # 95 % interval, bias-corrected and accelerated (BCa)
    student: tuple[float, float]  # 95 % interval of Student's t
    seeds: int

    @property
    def verdict(self) -> str:
        """HOLDS if both intervals lie above 0, FAILS if both lie below, UNDECIDED otherwise or with
        fewer than MIN_SEEDS seeds.

        Both are required, because the bootstrap of so few values is too narrow: with five seeds it
        covers the true mean of normal values in 84 % of cases, not in 95 %.
        """
        if not self.seeds:
            return NOT_RUN
        if self.seeds < MIN_SEEDS:
            return UNDECIDED
        if min(self.bootstrap[0], self.student[0]) > 0:
            return HOLDS
        return FAILS if max(self.bootstrap[1], self.student[1]) < 0 else UNDECIDED


def summary(evaluations: Sequence[Mapping[str, float]], quantity: str = 'score') -> float:
    """A run in one number: the mean of `quantity` over its evaluations after the start.

    It measures the height of the whole curve and is less noisy than its last point.
    """
    after = [row[quantity] for row in evaluations if row['updates'] > 0]
    return float(np.mean(after)) if after else math.nan


def paired(more: Mapping[str, float], less: Mapping[str, float]) -> Difference:
    """`more` - `less` over the seeds that both have; NaN without any."""
    seeds = sorted(
        seed
        for seed in set(more) & set(less)
        if math.isfinite(more[seed]) and math.isfinite(less[seed])
    )
    if not seeds:
        return Difference(math.nan, (math.nan, math.nan), (math.nan, math.nan), 0)
    high, low = (np.array([of[seed] for seed in seeds]) for of in (more, less))
    values = high - low
    return Difference(
        float(values.mean()), bootstrap_interval(values), student_interval(high, low), len(seeds)
    )


def bootstrap_interval(values: np.ndarray, resamples: int = 10000) -> tuple[float, float]:
    """95 % BCa bootstrap interval of the mean of [N] values (Efron, 1987, by scipy); the same for
    the same values. Equal values have no spread to resample: the interval is that value.
    """
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    low, high = stats.bootstrap(
        (values,), np.mean, confidence_level=0.95, n_resamples=resamples, method='BCa', rng=0
    ).confidence_interval
    return float(low), float(high)


def student_interval(more: np.ndarray, less: np.ndarray) -> tuple[float, float]:
    """95 % interval by Student's t of the mean of `more` - `less`, both [N] and paired; infinite
    for N = 1.
    """
    if len(more) < 2:
        return -math.inf, math.inf
    low, high = stats.ttest_rel(more, less).confidence_interval(0.95)
    return float(low), float(high)


def claim_verdict(verdicts: Sequence[str]) -> str:
    """The verdict on a claim with several parts: it holds if all hold, fails if one fails, and is
    not run if none has run.
    """
    if FAILS in verdicts:
        return FAILS
    if all(v == NOT_RUN for v in verdicts):
        return NOT_RUN
    return HOLDS if all(v == HOLDS for v in verdicts) else UNDECIDED


class Claim(NamedTuple):
    """What a paper claims, in words and as comparisons, all of which must hold."""

    source: str
    text: str
    parts: tuple[Any, ...]


def claims_table(
    claims: Sequence[Claim],
    compare: Callable[[Any], Difference],
    told: Callable[[Any, Difference], str],
) -> str:
    """A row per claim with its verdict and the differences that have run.

    Args:
      compare: of a part. told: a part's difference in words.
    """
    rows = []
    for claim in claims:
        found = [(part, compare(part)) for part in claim.parts]
        verdict = claim_verdict([difference.verdict for _, difference in found])
        parts = '; '.join(told(*each) for each in found if each[1].verdict != NOT_RUN)
        rows.append((claim.source, claim.text, f'**{verdict}**', parts))
    return table(('source', 'claim', 'here', 'differences'), rows)
