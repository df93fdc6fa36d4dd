"""The part of the page about measurements without training."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from scipy.stats import norm

from densegrpo_jax.runtime.markdown import table
from densegrpo_jax.runtime.reading import read_table
from experiments.reproduction.statistics import FAILS, HOLDS, NOT_RUN, UNDECIDED

KEPT = 0.5  # a rank correlation below this does not keep the ranking

Row = Mapping[str, str]


class Measure(NamedTuple):
    """A figure that needs no training."""

    title: str
    claim: str
    paper: str
    verdict: Callable[[Sequence[Row]], str]
    columns: Mapping[str, str]  # heading -> column, in the order of the table


class Section(NamedTuple):
    """The page's section on one measure."""

    title: str
    claim: str
    paper: str
    verdict: str
    text: str


def read(out: pathlib.Path) -> dict[str, Section]:
    """Name -> section, of all measures; those without a table in `out` are 'not run'.

    Raises:
      ValueError: a table is not one of `experiments.probe`.
    """
    sections = {}
    for name, measure in MEASURES.items():
        path = out / f'fig_{name}.csv'
        if not path.exists():
            sections[name] = Section(*measure[:3], NOT_RUN, '')
            continue
        rows = read_table(path, ())
        try:
            sections[name] = _section(name, measure, rows)
        except (ValueError, LookupError) as error:
            raise ValueError(
                f'{path} is not a table that experiments.probe wrote ({type(error).__name__}: '
                f'{error}); remove it, or measure again'
            ) from None
    return sections


def _section(name: str, measure: Measure, rows: Sequence[Row]) -> Section:
    shown = table(
        list(measure.columns),
        ([_cell(row, column) for column in measure.columns.values()] for row in rows),
    )
    text = (
        f'Claim: {measure.claim}. {_sample(rows[0])}\n'
        '\n'
        f'![{measure.title}](fig_{name}.png)\n'
        '\n'
        f'{shown}'
    )
    return Section(*measure[:3], measure.verdict(rows), text)


def ranking_verdict(rows: Sequence[Row]) -> str:
    """Whether the rank correlation with the terminal reward is at least KEPT at every state before
    the sample itself; an interval below it, widened for the number of states, refutes it.
    """
    states = [row for row in rows if row['timesteps_left'] != '0']
    if any(end < KEPT for end in _ends(states, 'rank_correlation', 'high')):
        return FAILS
    return (
        HOLDS if all(_number(row, 'rank_correlation_low') >= KEPT for row in states) else UNDECIDED
    )


def bias_verdict(rows: Sequence[Row]) -> str:
    """Whether the bias within groups, the only part that affects credit, is 0; an interval that
    excludes 0 at a state, widened for their number, refutes it.
    """
    lows = _ends([row for row in rows if row['state'] != 'all'], 'group_rms_bias', 'low')
    return FAILS if any(low > 0 for low in lows) else UNDECIDED


def cost_verdict(rows: Sequence[Row]) -> str:
    """Whether some method with fewer network evaluations than the first keeps the ranking of its
    gains within groups, by an interval that is widened for their number.
    """
    cheaper = [row for row in rows[1:] if float(row['calls']) < float(rows[0]['calls'])]
    if any(end >= KEPT for end in _ends(cheaper, 'group_gain_correlation', 'low')):
        return HOLDS
    return (
        FAILS
        if cheaper and all(_number(row, 'group_gain_correlation_high') < KEPT for row in cheaper)
        else UNDECIDED
    )


def direction_verdict(rows: Sequence[Row]) -> str:
    """Whether dense credit makes more progress than sparse credit, by intervals that do not
    overlap.
    """
    of = {row['credit']: row for row in rows}
    if _number(of['dense'], 'progress_low') > _number(of['sparse'], 'progress_high'):
        return HOLDS
    return (
        FAILS
        if _number(of['dense'], 'progress_high') < _number(of['sparse'], 'progress_low')
        else UNDECIDED
    )


def _ends(rows: Sequence[Row], column: str, side: str) -> list[float]:
    """The ends of the rows' intervals, 'low' or 'high', of which one alone may decide: widened, as
    if normal, so that all of them hold together with 95 % (Bonferroni).
    """
    wider = norm.ppf(1 - 0.025 / max(len(rows), 1)) / norm.ppf(0.975)
    ends = ((_number(row, column), _number(row, f'{column}_{side}')) for row in rows)
    return [value + (end - value) * wider for value, end in ends]


def _number(row: Row, column: str) -> float:
    return float(row[column]) if row.get(column) else math.nan


def _sample(row: Row) -> str:
    if 'batches' in row:
        return (
            f'{row["batches"]} updates of {row["samples"]} samples; intervals: jackknife over the '
            'updates, 95 %.'
        )
    return (
        f'{row["samples"]} trajectories of {row["prompts"]} training prompts; intervals: bootstrap '
        'over prompts, 95 %.'
    )


def _cell(row: Row, column: str) -> str:
    """A value, with its interval if it has one."""
    value = row.get(column, '')
    if value == 'nan':  # nothing to measure, or too little
        return ''
    if f'{column}_low' in row and value:
        return (
            f'{float(value):.3f} [{_number(row, column + "_low"):.3f}, '
            f'{_number(row, column + "_high"):.3f}]'
        )
    try:
        return value if value.lstrip('-').isdigit() else f'{float(value):.3f}'
    except ValueError:
        return value


MEASURES: Mapping[str, Measure] = {
    '8': Measure(
        'Accuracy of latent rewards',
        'the latent rewards keep the ranking of the samples at all t (rank correlation of at '
        f'least {KEPT} with the terminal reward)',
        'Fig. 8: predicted rewards stay close to the terminal ones and keep the ranking',
        ranking_verdict,
        {
            't': 'timesteps_left',
            's': 's',
            'mean R_t': 'reward',
            'mean distance to R_0': 'difference',
            'rank correlation': 'rank_correlation',
            'within groups': 'group_rank_correlation',
        },
    ),
    'bias': Measure(
        'The completion as a value',
        'the reward of the completion is the value of the state under the noisy policy, so that '
        'lambda = 0 has no bias',
        'not in the paper',
        bias_verdict,
        {
            'state': 'state',
            'R_t': 'value',
            'E[R_0 given x_t]': 'expected',
            'bias': 'bias',
            'rms bias within groups': 'group_rms_bias',
            'std of a continuation': 'continuation_std',
            'std of the gain': 'gain_std',
            'correlation with the true advantage, lambda = 0': 'advantage_correlation_0',
            '0.5': 'advantage_correlation_0.5',
            '1': 'advantage_correlation_1',
            'terminal reward': 'advantage_correlation_sparse',
            'best lambda': 'best_lambda',
        },
    ),
    'cost': Measure(
        'Cheaper completions',
        'fewer evaluations than n = t can keep the ranking of the gains within a group (rank '
        f'correlation of at least {KEPT})',
        'not in the paper; its Fig. 6c trains with n = 1 and 2',
        cost_verdict,
        {
            'method': 'method',
            'NFE per sample': 'calls',
            'gains within groups': 'group_gain_correlation',
            'gains': 'gain_correlation',
            'latent rewards': 'reward_correlation',
            'with the terminal reward': 'terminal_correlation',
        },
    ),
    'direction': Measure(
        'Direction of the gradients',
        "one update's gradient by dense credit points nearer to the policy gradient of the "
        'terminal reward than one by sparse credit',
        'not in the paper',
        direction_verdict,
        {
            'credit': 'credit',
            'cosine with the policy gradient': 'progress',
            'with its own expectation (noise)': 'alignment',
            'of the expectations (bias)': 'bias',
        },
    ),
}
