"""The figure of a calibration: psi, shares of signs, and the gains along every trajectory before
and after (the paper's Fig. 3).
"""

from __future__ import annotations

import pathlib

import numpy as np

from densegrpo_jax.config.method import kernel_named
from densegrpo_jax.core.calibration import count_gains
from densegrpo_jax.core.kernels import ETA

BEFORE, AFTER = '0.55', 'tab:blue'


def draw(document: dict, path: pathlib.Path) -> pathlib.Path:
    """Draws a finished psi document (`calibration`) as one PNG of four panels."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    on = np.flatnonzero(document['geometry']['calibrated'])
    gains = [np.diff(np.array(document[name], float), axis=0)[on] for name in ('before', 'after')]
    steps = len(document['start']) - on  # the paper's t, T ... 1
    figure, ((levels, shares), panels) = plt.subplots(2, 2, figsize=(10, 7.2), dpi=120)
    _levels(levels, document, on, steps)
    _shares(shares, gains, steps)
    most = np.nanmax(np.abs(np.concatenate(gains, axis=1)), initial=0) or 1.0
    for axes, rows, name, color in zip(panels, gains, ('start', 'calibrated'), (BEFORE, AFTER)):
        _polylines(axes, rows, steps, name, color, most)
    for axes in (levels, shares, *panels):
        axes.set_xlabel('step t → t − 1')
        axes.set_xticks(steps)
        axes.set_xlim(steps.max() + 0.5, steps.min() - 0.5)
        axes.spines[['top', 'right']].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
    return path


def _levels(axes, document: dict, on: np.ndarray, steps: np.ndarray) -> None:
    start, psi, history = (
        np.array(document[name])[..., on] for name in ('start', 'psi', 'history')
    )
    for row in history[:-1]:
        axes.plot(steps, row, color=AFTER, linewidth=0.6, alpha=0.2)
    axes.plot(
        steps, history[-1], color=AFTER, linewidth=0.6, alpha=0.4, label='after every iteration'
    )
    rollout = document['settings']['rollout']
    names = {
        'flow_grpo': f'a·sqrt(s/(1−s)), a = {rollout["level"]:g}',
        'constant': f'constant {rollout["level"]:g}',
    }
    axes.plot(
        steps,
        start,
        'o--',
        color=BEFORE,
        label=f'start: {names.get(rollout["noise"], rollout["noise"])}',
    )
    symbol = 'η' if kernel_named(rollout['kernel']).level == ETA else 'ψ'
    axes.plot(steps, psi, 'o-', color=AFTER, linewidth=2, label=f'{symbol}(t), calibrated')
    axes.set_ylim(bottom=0)
    axes.set_ylabel(f'noise level {symbol}(t)')
    end = 'settled' if document['settled'] else 'not settled'
    axes.set_title(f'Noise levels: {len(document["history"])} iterations, {end}')
    axes.legend(frameon=False)


def _shares(axes, gains: list[np.ndarray], steps: np.ndarray) -> None:
    """Bars up: share of positive gains; bars down: share of negative gains. The rest are ties."""
    for rows, name, color, shift in zip(
        gains, ('start', 'calibrated'), (BEFORE, AFTER), (0.19, -0.19)
    ):
        scored = np.maximum(np.isfinite(rows).sum(1), 1)
        up, down = (count / scored for count in count_gains(rows))
        axes.bar(steps + shift, up, 0.34, color=color, label=name)
        axes.bar(steps + shift, -down, 0.34, color=color, alpha=0.6)
        for x, values, sign in ((steps + shift, up, 1), (steps + shift, down, -1)):
            for at, value in zip(x, values):
                axes.annotate(
                    f'{100 * value:.0f}',
                    (at, sign * value),
                    (0, 3 * sign),
                    textcoords='offset points',
                    ha='center',
                    va='bottom' if sign > 0 else 'top',
                    fontsize=7,
                )
    most = max(abs(limit) for limit in axes.get_ylim()) * 1.1
    axes.set_ylim(-most, most)
    axes.set_yticks(ticks := axes.get_yticks(), [f'{abs(100 * tick):.0f}' for tick in ticks])
    axes.set_ylim(-most, most)
    axes.axhline(0, color='black', linewidth=0.8)
    axes.set_ylabel('negative   |   positive gains (%)')
    axes.set_title(f'Signs of the gains, {gains[0].shape[1]} trajectories (rest: ties)')
    axes.legend(frameon=False)


def _polylines(
    axes, rows: np.ndarray, steps: np.ndarray, name: str, color: str, most: float
) -> None:
    for row in rows.T:
        axes.plot(steps, row, color=color, linewidth=0.6, alpha=0.35)
    axes.plot(
        steps,
        np.nanmean(rows, axis=1),
        'o-',
        color='black',
        linewidth=1.5,
        markersize=4,
        label='mean',
    )
    axes.axhline(0, color='black', linewidth=0.8)
    axes.set_ylim(-1.05 * most, 1.05 * most)
    axes.set_ylabel('gain ΔR of the step')
    axes.set_title(f'Gains along every trajectory: {name}')
    axes.legend(frameon=False)
