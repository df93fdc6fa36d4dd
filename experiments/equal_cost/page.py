"""The page of the table: what may be concluded, rates, tables at equal cost, curves, verdicts."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from densegrpo_jax.runtime.markdown import table
from experiments.equal_cost.curves import (
    AXES,
    Rows,
    fewest_points,
    mean_to,
    score_at,
    spent_until,
    with_costs,
)
from experiments.equal_cost.measures import Measures
from experiments.equal_cost.sweep import RATE_SEED, Entry, best_rates, rates
from experiments.equal_cost.variants import CLAIMS, DENSE, SPARSE, VARIANTS, Comparison
from experiments.reproduction.drawing import draw_curves
from experiments.reproduction.records import Records
from experiments.reproduction.statistics import NOT_RUN, Difference, claims_table, paired

TITLE = '# Methods at equal cost'
CARD = pathlib.Path(__file__).with_name('card.md')  # what may be concluded from a miniature
MEASURED = '@'  # in a quantity: SCORE@STEPS of the measures
NONE = Measures({})
NAMES = {
    'nfe': 'network evaluations of sampling',
    'work': 'work',
    'images': 'scored images',
    'seconds': 'seconds of this machine',
    'updates': 'updates',
}
# Panels of the curves, each beside dense and sparse credit; a control is with its method.
FAMILIES = {
    'credit': (SPARSE, 'flow_grpo_weighted', 'coca', 'coca_weighted', 'sdpo'),
    'gains': (DENSE, 'stepwise', 'tp_grpo', 'tp_grpo_code', 'gae'),
    'losses': ('guard', 'lire', 'nft', 'winners', 'flow_cps'),
    'branches': ('g2rpo', 'e_grpo', 'temp_flow', 'branch'),
    'steps': ('dance', 'mix', 'aegpo', 'euphonium', 'd2_align'),
}


class Curves(NamedTuple):
    """The finished runs of the table.

    Attributes:
      of: variant -> seed -> evaluations with all costs.
      budgets: axis -> what all variants of all seeds have spent at least.
    """

    of: Mapping[str, Mapping[str, Rows]]
    budgets: Mapping[str, float]


def collect(records: Records, found: Sequence[Entry]) -> Curves:
    """The runs of `found`, without the searches of learning rates."""
    of = {
        entry.name: {
            seed: with_costs(rows, entry.images, entry.updating)
            for seed, rows in records.curves(entry.name).items()
            if seed != RATE_SEED
        }
        for entry in found
    }
    of = {name: runs for name, runs in of.items() if runs}
    ends = [runs[seed][-1] for runs in of.values() for seed in runs]
    axes = (*AXES, 'updates')
    return Curves(of, {axis: min((end[axis] for end in ends), default=0.0) for axis in axes})


def axes_of(records: Records) -> list[str]:
    """The costs that compare: seconds only if all runs had one device, each for itself."""
    places = {(run['device'], str(run['side_by_side'])) for run in records.runs.values()}
    alone = len(places) == 1 and all(together == '1' for _, together in places)
    return [axis for axis in AXES if axis != 'seconds' or alone]


def difference(curves: Curves, comparison: Comparison, measures: Measures) -> Difference:
    """A comparison over the seeds that both variants have: of measures at the end of the runs, or
    of the mean heights of the curves up to what both have spent on an axis, both read where the one
    with fewer evaluations has them.
    """
    if MEASURED in comparison.quantity:
        more, less = (
            measures.seeds(name, comparison.quantity) for name in (comparison.more, comparison.less)
        )
        return paired(more, less)
    pair = [curves.of.get(name, {}) for name in (comparison.more, comparison.less)]
    axis, runs = comparison.quantity, [run for each in pair for run in each.values()]
    spent = min((run[-1][axis] for run in runs), default=0.0)
    if not all(_evaluated(run, axis, spent) for run in runs):
        return paired({}, {})
    at = fewest_points(runs, axis, spent)
    more, less = ({s: mean_to(run, axis, spent, at) for s, run in of.items()} for of in pair)
    return paired(more, less)


def _evaluated(run: Rows, axis: str, spent: float) -> bool:
    """Whether the curve was evaluated up to there after its start."""
    return len(run) > 1 and run[1][axis] <= spent


def write(
    out: pathlib.Path,
    records: Records,
    measures: Measures,
    found: Sequence[Entry],
    refused: Mapping[str, str],
    budget: float,
    command: str,
) -> list[pathlib.Path]:
    """Writes README.md and the curves' pictures; text in OUT/notes.md goes on the page.

    Args:
      budget: network evaluations of the samples of a run.
      refused: variants that the configuration cannot train, with the reason.

    Returns:
      The files written.
    """
    out.mkdir(parents=True, exist_ok=True)
    curves, searched = collect(records, found), rates(records, budget)
    page, made = [TITLE, f'    {command}'], []
    page.append(CARD.read_text(encoding='utf-8').strip())
    notes = out / 'notes.md'
    page += [notes.read_text(encoding='utf-8').strip()] if notes.exists() else []
    page.append(_introduction(records, budget))
    if curves.of:
        axes = axes_of(records)
        for axis in axes:
            page += [f'## At equal {NAMES[axis]}', _table(curves, axis)]
        if 'seconds' not in axes:
            page.append(
                'Seconds are not compared: they are of several devices, or of runs side by side.'
            )
        made = _draw(out, curves, axes)
        page += ['## Curves', *(f'![{path.stem}]({path.name})' for path in made)]
        page += ['## Claims', _claims(curves, measures)]
        page += ['## At the end of the runs', _measured(curves, measures)]
    page += ['## Learning rates', _rates(searched, found)]
    if refused:
        page += ['## Left out', '\n'.join(f'- `{name}`: {why}' for name, why in refused.items())]
    path = out / 'README.md'
    path.write_text('\n\n'.join(page) + '\n', encoding='utf-8')
    return [path, *made]


def _introduction(records: Records, budget: float) -> str:
    if not records.runs:
        return 'Nothing has run yet.'
    each = lambda field: ', '.join(sorted({str(run[field]) for run in records.runs.values()}))
    return (
        f'{len(records.runs)} runs on {each("base")}, code {each("commit")}, {each("device")}. A '
        f'run ends when it has spent {budget:,.0f} network evaluations of sampling, those of 60 '
        'updates with dense credit. Work also has those of the updates, an estimate: a row counts '
        '3 where all weights are trained and 2 with adapters, one more where the forward pass is '
        'repeated, and one more for every other policy that the loss reads there; a gradient of a '
        'process reward counts 2. Every method '
        'has the learning rate, of three, whose curve was the highest on seed '
        f'{RATE_SEED}, which is in no table; a control has that of its method. What is made before '
        'a training, such as a process reward, is in no budget and no cost; the table of learning '
        'rates says beside each method what it took. '
        'A difference is that of the mean heights of '
        'two curves up to the same cost, both read where the one with fewer evaluations has them, '
        "seed by seed, with the 95 % interval of Student's t; it holds if that interval and the "
        'BCa bootstrap exclude 0. The rate stays the same over a '
        'run, so that a curve may be cut anywhere; the score is that of the moving average of the '
        'weights. [runs.csv](runs.csv) has the command of every run, '
        '[evaluations.csv](evaluations.csv) the curves.'
    )


def _table(curves: Curves, axis: str) -> str:
    """A row per variant, the highest first, at what all runs have spent."""
    spent = curves.budgets[axis]
    target = [score_at(run, axis, run[-1][axis]) for run in curves.of.get(DENSE, {}).values()]
    rows, late = [], []
    for name, runs in curves.of.items():
        if not all(_evaluated(run, axis, spent) for run in runs.values()):
            late.append(name)
            continue
        scores = [score_at(run, axis, spent) for run in runs.values()]
        heights = [mean_to(run, axis, spent) for run in runs.values()]
        row = [f'`{name}`', str(len(runs)), _spread(scores), _spread(heights)]
        for other in (DENSE, SPARSE):
            row.append(
                ''
                if name == other
                else _told(difference(curves, Comparison(name, other, axis), NONE))
            )
        if target:
            reached = [spent_until(run, axis, float(np.mean(target))) for run in runs.values()]
            share = [r / spent for r in reached]
            row.append(
                f'{np.median(share):.2f}' if np.isfinite(np.median(share)) else 'not reached'
            )
        rows.append((np.mean(heights), row))
    head = ['method', 'seeds', f'score at {spent:,.0f}', 'mean height to there']
    head += [f'against `{other}`' for other in (DENSE, SPARSE)]
    head += [f'reached the end of `{DENSE}` after, in parts of {spent:,.0f}'] if target else []
    found = table(head, [row for _, row in sorted(rows, key=lambda entry: -entry[0])])
    told = ', '.join(f'`{name}`' for name in late)
    return found + (f'\n\nEvaluated only after that cost: {told}.' if late else '')


def _measured(curves: Curves, measures: Measures) -> str:
    """A row per variant: the means over its seeds, with their standard deviation."""
    names = sorted({n for (v, _), of in measures.of.items() if v in curves.of for n in of})
    if not names:
        return 'Not measured yet.'
    rows = []
    for variant in curves.of:
        values = [list(measures.seeds(variant, name).values()) for name in names]
        if any(values):
            rows.append([f'`{variant}`', *(_spread(of) if of else '' for of in values)])
    text = (
        'A name is SCORE@STEPS: the held-out score with so many steps of the ODE; diversity over '
        'two images of a prompt, KL from the base along the noisy trajectories of the recipe.'
    )
    return f'{text}\n\n{table(["method", *names], rows)}'


def _claims(curves: Curves, measures: Measures) -> str:
    told = lambda part, d: f'{part.more} − {part.less}, {_where(part.quantity)}: {_told(d)}'
    return claims_table(CLAIMS, lambda part: difference(curves, part, measures), told)


def _rates(searched: Mapping[str, Mapping[float, float]], found: Sequence[Entry]) -> str:
    chosen, rows = best_rates(searched), []
    for entry in found:
        if of := searched.get(entry.name):
            tried = ', '.join(f'{entry.learning_rate * r:g}: {of[r]:.4f}' for r in sorted(of))
            best = chosen.get(entry.name)
            counts = entry.cost.nfe, entry.update, entry.cost.images
            cost = [*(f'{count:g}' for count in counts), str(entry.updates)]
            cost += [f'{count:,.0f}' for count in entry.before]
            used = f'{entry.learning_rate * best:g}' if best else 'not all tried'
            rows.append([f'`{entry.name}`', *cost, tried, used])
    head = ['method', 'NFE of a sample', 'of its update', 'images of a sample', 'updates']
    head += ['NFE before the training', 'images before it']
    return table([*head, 'rate: mean height of the curve', 'used'], rows)


def _draw(out: pathlib.Path, curves: Curves, axes: Sequence[str]) -> list[pathlib.Path]:
    made = []
    for family, names in FAMILIES.items():
        shown = [
            name for name in curves.of if name in (DENSE, SPARSE) or VARIANTS[name].method in names
        ]
        if any(VARIANTS[name].method in names for name in shown):
            path = out / f'curves_{family}.png'
            runs = {name: list(curves.of[name].values()) for name in shown}
            draw_curves(runs, path, axes=axes)
            made.append(path)
    return made


def _where(quantity: str) -> str:
    return quantity if MEASURED in quantity else f'at equal {NAMES[quantity]}'


def _spread(values: Sequence[float]) -> str:
    spread = f' ± {np.std(values, ddof=1):.4f}' if len(values) > 1 else ''
    return f'{np.mean(values):.4f}{spread}'


def _told(d: Difference) -> str:
    if d.verdict == NOT_RUN:
        return NOT_RUN
    interval = f' [{d.student[0]:+.4f}, {d.student[1]:+.4f}]' if d.seeds > 1 else ', one seed'
    return f'{d.mean:+.4f}{interval}'
