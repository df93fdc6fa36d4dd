"""One figure for each table of `probe`; bands and bars are the tables' 95 % intervals over
prompts.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from experiments.reproduction.drawing import save, subplots
from experiments.reproduction.probe_statistics import LAMBDAS


def draw_latent_rewards(rows: Sequence[dict], path: pathlib.Path) -> None:
    """The paper's Fig. 8 from `latent_rewards`: level and order of the predicted rewards against
    the remaining timesteps.
    """
    figure, (level, order) = _panels(2)
    x = [row['timesteps_left'] for row in rows]
    _line(level, x, rows, 'reward', 'C0', 'mean predicted reward $R_t$')
    _line(level, x, rows, 'difference', 'C1', 'mean $|R_t - R_0|$')
    _line(order, x, rows, 'rank_correlation', 'C0', 'all samples')
    _line(order, x, rows, 'group_rank_correlation', 'C2', 'within a group')
    _finish(level, 'reward of the completion', 'timesteps left $t$', 'reward', rows)
    _finish(
        order,
        'rank correlation with the terminal reward',
        'timesteps left $t$',
        'Spearman correlation',
        rows,
    )
    for axes in (level, order):
        axes.set_xticks(x)
        axes.invert_xaxis()  # as sampled: from noise to the image
    save(figure, path)


def draw_bias(rows: Sequence[dict], path: pathlib.Path) -> None:
    """From `bias`: the mean bias, its size compared with the gains, and its effect on GAE."""
    states, (whole,) = (
        [row for row in rows if row['state'] != 'all'],
        [row for row in rows if row['state'] == 'all'],
    )
    figure, (mean, size, credit) = _panels(3)
    x = [row['timesteps_left'] for row in states]
    _line(mean, x, states, 'bias', 'C0', '$E[R_0|x_t] - R_t$')
    mean.axhline(0, color='0.4', linewidth=1)
    _finish(mean, 'mean bias of the ODE as a value', 'timesteps left $t$', 'reward', states)
    _line(size, x, states, 'continuation_std', 'C3', 'one continuation around $E[R_0|x_t]$')
    _line(size, x, states, 'rms_bias', 'C0', 'ODE around $E[R_0|x_t]$ (root mean square)')
    _line(size, x, states, 'group_rms_bias', 'C9', 'the same within a group')
    _line(size, x, states, 'gain_std', 'C2', 'spread of the gain within a group', style='s--')
    _finish(size, 'error of a value, and the gains', 'timesteps left $t$', 'reward', states)
    for axes in (mean, size):
        axes.set_xticks(x)
        axes.invert_xaxis()
    for i, row in enumerate(states):
        y = [row[f'advantage_correlation_{lam:g}'] for lam in LAMBDAS]
        credit.plot(
            LAMBDAS,
            y,
            '.-',
            color=_shade(i, len(states)),
            linewidth=1,
            label=f't = {row["timesteps_left"]}',
        )
    names = [f'advantage_correlation_{lam:g}' for lam in LAMBDAS]
    _band(credit, LAMBDAS, whole, names, 'C3', 'mean over t')
    credit.axhline(
        whole['advantage_correlation_sparse'],
        color='0.4',
        linestyle=':',
        label='terminal reward alone (mean over t)',
    )
    _finish(
        credit,
        'GAE(λ) and the true advantage, as measured',
        'λ',
        'correlation within groups',
        states,
    )
    save(figure, path)


def draw_cost(rows: Sequence[dict], path: pathlib.Path) -> None:
    """From `cost`: rank correlations within groups, of gains and of rewards, against network
    evaluations.
    """
    figure, panels = _panels(3)
    titles = {
        'group_gain_correlation': 'gains, with those of complete ODEs',
        'group_reward_correlation': 'latent rewards, with those of complete ODEs',
        'group_terminal_correlation': 'latent rewards, with the terminal reward',
    }
    calls = [row['calls'] for row in rows]
    width = 0.02 * (max(calls) - min(calls) or 1)
    for axes, (name, title) in zip(panels, titles.items()):
        for i, row in enumerate(rows):
            # Methods of equal cost stand side by side.
            x = row['calls'] + width * (
                calls[:i].count(row['calls']) - (calls.count(row['calls']) - 1) / 2
            )
            y, low, high = (row[f'{name}{end}'] for end in ('', '_low', '_high'))
            marker = 'osD^vP*X<>h'[i % 11]  # eleven: with ten colours no pair comes twice
            axes.errorbar(
                x,
                y,
                [[max(y - low, 0)], [max(high - y, 0)]],
                fmt=marker,
                color=f'C{i % 10}',
                label=row['method'],
                capsize=2,
            )
        _finish(
            axes,
            title,
            'NFE per sample',
            'mean rank correlation within a group',
            rows,
            legend=False,
        )
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside right center', frameon=False, fontsize=8)
    save(figure, path)


def draw_direction(rows: Sequence[dict], path: pathlib.Path) -> None:
    """The effect of noise and bias on every rule's gradient, from the best rule to the worst."""
    rows = sorted(rows, key=lambda row: row['progress'])
    figure, panels = _panels(3)
    titles = (
        'alignment with the policy gradient',
        'with its own expectation (noise)',
        'of the expectations (bias)',
    )
    for axes, name, title in zip(panels, ('progress', 'alignment', 'bias'), titles):
        for y, row in enumerate(rows):
            _interval_bar(axes, y, row, name)
        axes.set_yticks(
            range(len(rows)),
            [row['credit'] for row in rows] if axes is panels[0] else [''] * len(rows),
        )
        axes.axvline(0, color='0.4', linewidth=0.8)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel('cosine')
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(f'{rows[0]["batches"]} updates of {rows[0]["samples"]} samples')
    save(figure, path)


def _interval_bar(axes, y: int, row: dict, name: str) -> None:
    value = row[name]
    axes.errorbar(
        value,
        y,
        xerr=[[value - row[f'{name}_low']], [row[f'{name}_high'] - value]],
        fmt='o',
        color='tab:blue',
        markersize=4,
        capsize=2,
    )


def _panels(count: int):
    return subplots(1, count, figsize=(5.2 * count, 4.2), dpi=120, layout='constrained')


def _line(axes, x, rows, name: str, colour: str, label: str, style: str = 'o-') -> None:
    axes.plot(x, [row[name] for row in rows], style, color=colour, markersize=4, label=label)
    axes.fill_between(
        x,
        [row[f'{name}_low'] for row in rows],
        [row[f'{name}_high'] for row in rows],
        color=colour,
        alpha=0.15,
        linewidth=0,
    )


def _band(axes, x, row: dict, names: Sequence[str], colour: str, label: str) -> None:
    axes.plot(
        x,
        [row[name] for name in names],
        'o-',
        color=colour,
        linewidth=2.5,
        markersize=4,
        label=label,
    )
    axes.fill_between(
        x,
        [row[f'{n}_low'] for n in names],
        [row[f'{n}_high'] for n in names],
        color=colour,
        alpha=0.15,
        linewidth=0,
    )


def _shade(i: int, count: int) -> str:
    return str(0.25 + 0.5 * i / max(count - 1, 1))


def _finish(axes, title: str, x: str, y: str, rows: Sequence[dict], *, legend: bool = True) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(f'{x}      ({rows[0]["prompts"]} prompts, {rows[0]["samples"]} samples)')
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    if legend:
        axes.legend(frameon=False, fontsize=8)
