"""Whether scores of the same prompts and noise have fallen: a paired test, corrected for the number
of comparisons.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

FEWEST = 8  # prompts of a test
ENOUGH = 0.9  # of the prompts that had a score at the start: with fewer it is missing


class Change(NamedTuple):
    """A score now, and against the start over the prompts that have it in both.

    Attributes:
      mean: of the score now.
      change: mean of now minus start. error: its standard error.
      p: of the paired one-sided test, the larger p of Student's t and of Hall's for skew, whose
        hypothesis is that the score has not fallen; NaN with fewer than FEWEST prompts.
      prompts: of the test.
    """

    mean: float
    change: float
    error: float
    p: float
    prompts: int


def changes(
    start: Mapping[str, np.ndarray],
    now: Mapping[str, np.ndarray],
    texts: Sequence[str] | None = None,
) -> dict[str, Change]:
    """Name -> change, of the scores in both.

    Args:
      start, now: name -> float [N], NaN where a prompt has no score; the same prompts and noise.
      texts: as in `change`.
    """
    both = [name for name in now if name in start]
    return {name: change(start[name], now[name], texts) for name in both}


def missing(start: Mapping[str, np.ndarray], now: Mapping[str, np.ndarray]) -> list[str]:
    """Names of the scores that fewer than ENOUGH of the prompts which had them still have.

    The test knows nothing of the others, and they may be those that lost most: a judge refuses
    pictures that show nothing.
    """
    known = {name: np.isfinite(start[name]) for name in now if name in start}
    still = lambda name: np.isfinite(now[name]) & known[name]
    return [name for name, had in known.items() if still(name).sum() < ENOUGH * had.sum()]


def change(start: np.ndarray, now: np.ndarray, texts: Sequence[str] | None = None) -> Change:
    """The change of a score, from [N] values each.

    With n differences of mean m, standard deviation s and skewness g, and w = m / s: the larger p
    of two tests with n - 1 degrees of freedom. One is t = sqrt(n) w, the other corrects it for skew
    by Hall's monotone cubic (JRSS B 54, 1992): sqrt(n) (w + g w^2 / 3 + g^2 w^3 / 27 + g / (6 n)).
    If few prompts gain much and most lose a little, t alone finds falls that are none. A change
    within float32's rounding of the largest value has p = 1.

    Args:
      texts: of the N prompts; None: all differ. Those of one text count as one, by their mean.
    """
    from scipy.stats import t as student  # half a second, of runs with a guard alone

    start, now = np.asarray(start, np.float64), np.asarray(now, np.float64)
    d = _of_prompts(now - start, texts)
    scored = _of_prompts(now, texts)
    mean = float(scored.mean()) if len(scored) else math.nan
    n = len(d)
    if n < FEWEST:
        return Change(mean, float(d.mean()) if n else math.nan, math.nan, math.nan, n)
    moved, deviation = float(d.mean()), float(d.std(ddof=1))
    error = deviation / math.sqrt(n)
    both = np.isfinite(now - start)
    rounding = (
        4 * np.finfo(np.float32).eps * max(np.abs(start[both]).max(), np.abs(now[both]).max())
    )
    if abs(moved) <= rounding:  # most often not at all
        return Change(mean, moved, error, 1.0, n)
    if error == 0:  # all prompts have changed alike
        return Change(mean, moved, 0.0, 0.0 if moved < 0 else 1.0, n)
    w, skew = moved / deviation, float(((d - moved) ** 3).mean() / deviation**3)
    cubic = w + skew * w**2 / 3 + skew**2 * w**3 / 27 + skew / (6 * n)
    p = max(student.cdf(math.sqrt(n) * x, n - 1) for x in (w, cubic))
    return Change(mean, moved, error, float(p), n)


def _of_prompts(values: np.ndarray, texts: Sequence[str] | None) -> np.ndarray:
    """The values that are numbers; of rows with one text their mean."""
    known = np.isfinite(values)
    if texts is None:
        return values[known]
    rows = np.unique(np.asarray(texts)[known], return_inverse=True)[1]
    return np.bincount(rows, values[known]) / np.bincount(rows)


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
