"""Whether scores of the same prompts and noise have fallen: a paired test, corrected for the number
of comparisons.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

FEWEST = 8  # prompts of a test


class Change(NamedTuple):
    """A score now, and against the start over the prompts that have it in both.

    Attributes:
      mean: of the score now.
      change: mean of now minus start. error: its standard error.
      p: of the paired one-sided test, the larger p of Student's t and of Hall's for skew, whose
        hypothesis is that the score has not fallen; NaN with fewer than FEWEST prompts.
    """

    mean: float
    change: float
    error: float
    p: float


def changes(start: Mapping[str, np.ndarray], now: Mapping[str, np.ndarray]) -> dict[str, Change]:
    """Name -> change, of the scores in both.

    Args:
      start, now: name -> float [N], NaN where a prompt has no score; the same prompts and noise.
    """
    return {name: change(start[name], values) for name, values in now.items() if name in start}


def change(start: np.ndarray, now: np.ndarray) -> Change:
    """The change of a score, from [N] values each.

    With n differences of mean m, standard deviation s and skewness g, and w = m / s: the larger p
    of two tests with n - 1 degrees of freedom. One is t = sqrt(n) w, the other corrects it for skew
    by Hall's monotone cubic (JRSS B 54, 1992): sqrt(n) (w + g w^2 / 3 + g^2 w^3 / 27 + g / (6 n)).
    If few prompts gain much and most lose a little, t alone finds falls that are none.
    """
    from scipy.stats import t as student  # half a second, of runs with a guard alone

    now = np.asarray(now, np.float64)
    d = now - np.asarray(start, np.float64)
    d, scored = d[np.isfinite(d)], now[np.isfinite(now)]
    mean = float(scored.mean()) if len(scored) else math.nan
    n = len(d)
    if n < FEWEST:
        return Change(mean, float(d.mean()) if n else math.nan, math.nan, math.nan)
    moved, deviation = float(d.mean()), float(d.std(ddof=1))
    error = deviation / math.sqrt(n)
    if error == 0:  # all prompts have changed alike, most often not at all
        return Change(mean, moved, 0.0, 0.0 if moved < 0 else 1.0)
    w, skew = moved / deviation, float(((d - moved) ** 3).mean() / deviation**3)
    cubic = w + skew * w**2 / 3 + skew**2 * w**3 / 27 + skew / (6 * n)
    p = max(student.cdf(math.sqrt(n) * x, n - 1) for x in (w, cubic))
    return Change(mean, moved, error, float(p))


def fallen(found: Mapping[str, Change], level: float, evaluations: int) -> list[str]:
    """Names of the scores that have fallen.

    A score has fallen if p < level / (scores x evaluations): Bonferroni's correction, with which
    `level` bounds the chance that any score counts as fallen at any of the run's evaluations
    although none has fallen, as far as the test's own errors are right so far out in its tail.

    Args:
      evaluations: planned in the whole run. Each time that a run continues with another number, it
        spends at most `level` once more.
    """
    comparisons = max(1, len(found) * evaluations)
    return [name for name, c in found.items() if c.p < level / comparisons]
