"""Curves of several runs against their cost."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.reproduction.statistics import summary

LABELS = {
    'updates': 'updates',
    'nfe': 'NFE (millions)',
    'work': 'NFE and updates (millions)',
    'images': 'scored images (thousands)',
    'seconds': 'seconds in iterations',
}
SCALES = {'nfe': 1e-6, 'work': 1e-6, 'images': 1e-3}
QUANTITIES = {'score': 'held-out score', 'kl': 'KL from the base, per element (training samples)'}
INSIDE = 5  # curves whose legend has room in a panel


def subplots(*grid: int, **options):
    """pyplot's, in a process without a display."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    return plt.subplots(*grid, **options)


def save(figure, path: pathlib.Path) -> None:
    """Writes a figure of `subplots` and closes it."""
    import matplotlib.pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


def draw_curves(
    curves: Mapping[str, Sequence[Sequence[Mapping]]],
    path: pathlib.Path,
    *,
    axes: Sequence[str] = ('updates', 'nfe', 'seconds'),
    quantity: str = 'score',
    totals: bool = False,
) -> None:
    """One panel per axis: the mean over seeds with the range of the seeds shaded, thin lines per
    seed.

    Args:
      curves: label -> runs -> evaluations (rows of `records.EVALUATION`).
      path: PNG.
      axes: keys of LABELS.
      quantity: a key of QUANTITIES; rows in which it is NaN are left out.
      totals: adds a panel: a run in one number (`statistics.summary`), mean and standard deviation
        over seeds, against its network evaluations.
    """
    columns = len(axes) + totals
    figure, panels = subplots(
        1,
        columns,
        figsize=(1 + 4.6 * columns, 4),
        dpi=110,
        sharey=not totals,
        squeeze=False,
        layout='constrained',
    )
    for panel, cost in zip(panels[0], axes):
        for i, (label, runs) in enumerate(curves.items()):
            runs = [[row for row in run if np.isfinite(row[quantity])] for run in runs]
            shared = min(map(len, runs))
            x = np.array(
                [[row[cost] * SCALES.get(cost, 1.0) for row in run[:shared]] for run in runs]
            )
            y = np.array([[row[quantity] for row in run[:shared]] for run in runs])
            for xs, ys in zip(x, y):
                panel.plot(xs, ys, color=f'C{i}', linewidth=0.6, alpha=0.35)
            text = f'{label} ({len(runs)} seed{"s" * (len(runs) > 1)})'
            panel.plot(
                x.mean(0),
                y.mean(0),
                color=f'C{i}',
                linewidth=2,
                marker='o',
                markersize=3,
                label=text,
            )
            panel.fill_between(
                x.mean(0), y.min(0), y.max(0), color=f'C{i}', alpha=0.12, linewidth=0
            )
        panel.set_xlabel(LABELS[cost])
        panel.grid(alpha=0.3)
    if totals:
        for i, runs in enumerate(curves.values()):
            calls, values = (
                np.mean([run[-1]['nfe'] for run in runs]),
                [summary(run, quantity) for run in runs],
            )
            spread = np.std(values, ddof=1) if len(values) > 1 else 0
            panels[0][-1].errorbar(
                calls * SCALES['nfe'], np.mean(values), spread, fmt='o', color=f'C{i}', capsize=3
            )
        panels[0][-1].set_xlabel(f'{LABELS["nfe"]} of a run')
        panels[0][-1].set_ylabel('mean of the curve after the start')
        panels[0][-1].grid(alpha=0.3)
    panels[0][0].set_ylabel(QUANTITIES[quantity])
    if len(curves) > INSIDE:  # in the panel the legend would hide curves
        figure.legend(*panels[0][0].get_legend_handles_labels(), loc='outside right', fontsize=8)
    else:
        panels[0][0].legend(frameon=False, fontsize=8)
    save(figure, path)
