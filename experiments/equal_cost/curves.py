"""Reads curves of runs at equal cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

Rows = Sequence[Mapping[str, float]]  # evaluations of a run, in order

AXES = ('nfe', 'work', 'images', 'seconds')


def with_costs(rows: Rows, images: float, updating: float) -> list[dict]:
    """The rows, with the number of images scored so far as 'images', and the network evaluations of
    sampling and of updates as 'work'.

    Args:
      images: that an update scores. updating: evaluations that an update counts as.
    """
    return [
        {**row, 'images': row['updates'] * images, 'work': row['nfe'] + row['updates'] * updating}
        for row in rows
    ]


def score_at(rows: Rows, axis: str, spent: float) -> float:
    """The score of a run that has spent `spent` on `axis`, linear between its evaluations; NaN if
    the run ended before.
    """
    x = np.array([row[axis] for row in rows])
    y = np.array([row['score'] for row in rows])
    return float(np.interp(spent, x, y)) if spent <= x[-1] * (1 + 1e-9) else float('nan')


def mean_to(rows: Rows, axis: str, spent: float, at: Sequence[float] | None = None) -> float:
    """The mean height of the curve from the start to `spent`: its integral, linear between
    evaluations, divided by `spent`. It uses all evaluations, so it is less noisy than the last.
    NaN if the run ended before. at: of the curve through its values there instead, see
    `fewest_points`.
    """
    x = np.array([row[axis] for row in rows], float)
    y = np.array([row['score'] for row in rows], float)
    if spent <= 0 or spent > x[-1] * (1 + 1e-9):
        return float('nan')
    spent = min(spent, x[-1])
    own = x if at is None else np.array(at, float)
    grid = np.append(own[own < spent], spent)
    return float(np.trapezoid(np.interp(grid, x, y), grid) / spent)


def fewest_points(runs: Iterable[Rows], axis: str, spent: float) -> list[float]:
    """Where the run with the fewest evaluations up to `spent` has them. Learning curves are
    concave, so one that is read at fewer points lies lower: curves are compared on these.
    """
    grids = [[row[axis] for row in run if row[axis] < spent] for run in runs]
    return min(grids, key=len, default=[])


def spent_until(rows: Rows, axis: str, score: float) -> float:
    """What a run had spent on `axis` when its curve first reached `score`, linear between
    evaluations; infinite if it never did.
    """
    before = None
    for row in rows:
        if row['score'] >= score:
            if before is None:
                return float(row[axis])
            share = (score - before['score']) / (row['score'] - before['score'])
            return float(before[axis] + share * (row[axis] - before[axis]))
        before = row
    return float('inf')
