"""Reads curves of runs at equal cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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


def mean_to(rows: Rows, axis: str, spent: float) -> float:
    """The mean height of the curve from the start to `spent`: its integral, linear between
    evaluations, divided by `spent`. It uses all evaluations, so it is less noisy than the last.
    NaN if the run ended before.
    """
    x = np.array([row[axis] for row in rows], float)
    y = np.array([row['score'] for row in rows], float)
    if spent <= 0 or spent > x[-1] * (1 + 1e-9):
        return float('nan')
    spent = min(spent, x[-1])
    inside = x < spent
    x, y = np.append(x[inside], spent), np.append(y[inside], np.interp(spent, x, y))
    return float(np.trapezoid(y, x) / spent)


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
