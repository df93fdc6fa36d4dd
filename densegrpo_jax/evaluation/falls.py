"""Whether scores of the same prompts and noise have fallen: a paired test, corrected for the number
of comparisons.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np


class Change(NamedTuple):
    """A score now, and against the start over the prompts that have it in both.

    Attributes:
      mean: of the score now.
      change: mean of now minus start. error: its standard error.
      p: of the one-sided paired t test whose hypothesis is that the score has not fallen; NaN with
        fewer than two prompts.
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

    t = mean(d) / (std(d) / sqrt(n)) of the n differences d, with n - 1 degrees of freedom.
    """
    from scipy.stats import t as student  # half a second, of runs with a guard alone

    now = np.asarray(now, np.float64)
    d = now - np.asarray(start, np.float64)
    d, scored = d[np.isfinite(d)], now[np.isfinite(now)]
    mean = float(scored.mean()) if len(scored) else math.nan
    if len(d) < 2:
        return Change(mean, float(d.mean()) if len(d) else math.nan, math.nan, math.nan)
    moved, error = float(d.mean()), float(d.std(ddof=1) / math.sqrt(len(d)))
    if error == 0:  # all prompts have changed alike, most often not at all
        return Change(mean, moved, 0.0, 0.0 if moved < 0 else 1.0)
    return Change(mean, moved, error, float(student.cdf(moved / error, len(d) - 1)))


def fallen(found: Mapping[str, Change], level: float, evaluations: int) -> list[str]:
    """Names of the scores that have fallen.

    A score has fallen if p < level / (scores x evaluations): Bonferroni's correction, with which
    `level` bounds the chance that any score counts as fallen at any of the run's evaluations
    although none has fallen.

    Args:
      evaluations: planned in the whole run.
    """
    comparisons = max(1, len(found) * evaluations)
    return [name for name, c in found.items() if c.p < level / comparisons]
