"""The page of the searches: claims with verdicts, then for each task the score against the budget,
paired differences, diversity, and scores that the search did not use.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Sequence

import numpy as np

from densegrpo_jax.runtime.markdown import table
from experiments.equal_cost.curves import spent_until
from experiments.reproduction.drawing import save, subplots
from experiments.reproduction.statistics import NOT_RUN, Difference, claims_table, paired
from experiments.searching.cases import (
    BASE,
    BUDGETS,
    CLAIMS,
    METHODS,
    ON_POLICY,
    SMALL,
    TASKS,
    Case,
    Comparison,
)
from experiments.searching.records import Records

TITLE = '# What a search buys'
REFERENCE = 'best_of_n'


def compare(records: Records, c: Comparison, policy: str = BASE) -> Difference:
    """The difference in the task's metric of the best image, prompt by prompt."""
    of = lambda method: records.of(Case(c.task, policy, method, c.budget), 'best')
    return paired(of(c.more), of(c.less))


def write(out: pathlib.Path, records: Records, facts: str) -> list[pathlib.Path]:
    """Writes README.md and a PNG per task that has run; hand-written text in `notes.md` there goes
    into the page.

    Args:
      facts: the origin of the results, one line.

    Returns:
      The files written.
    """
    out.mkdir(parents=True, exist_ok=True)
    path, notes = out / 'README.md', out / 'notes.md'
    tasks = [name for name in TASKS if any(case.task == name for case in records.rows)]
    pictures = [_draw(out / f'{name}.png', records, name) for name in tasks]
    text = [
        TITLE,
        *([notes.read_text(encoding='utf-8').strip()] if notes.exists() else []),
        'Each method spends a budget of network evaluations (NFE) on each prompt. The score is '
        'that of the best image, chosen by what was searched for. Intervals are over prompts, and '
        'differences are between the same prompts. A claim holds where the 95 % intervals by '
        "BCa bootstrap and by Student's t both exclude 0 for all its parts. "
        '[prompts.csv](prompts.csv) has every prompt.',
        facts,
        '## Claims',
        _claims(records),
        *(part for name in tasks for part in _task(records, name)),
        *_training(records),
    ]
    path.write_text('\n\n'.join(text) + '\n', encoding='utf-8')
    return [path, *pictures]


def _claims(records: Records) -> str:
    told = lambda part, difference: (
        f'{part.more} − {part.less} at {part.budget} ({part.task}): {_interval(difference)}'
    )
    return claims_table(CLAIMS, lambda part: compare(records, part), told)


def _task(records: Records, name: str) -> list[str]:
    """The section of a task."""
    task = TASKS[name]
    unseen = next(iter(task.panel))
    case = lambda method, budget: Case(name, BASE, method, budget)
    best = [
        (method, *(_cell(records.mean(case(method, n), 'best')) for n in BUDGETS))
        for method in METHODS
    ]
    against = [
        (
            method,
            *(_interval(compare(records, Comparison(name, method, REFERENCE, n))) for n in BUDGETS),
        )
        for method in METHODS
        if method != REFERENCE
    ]
    columns = ('nfe', 'images', 'seconds', 'searched', 'final', 'diversity', 'unseen_best')
    largest = max(BUDGETS)
    cost = [
        (method, *(_cell(records.mean(case(method, largest), c), error=False) for c in columns))
        for method in METHODS
        if case(method, largest) in records.rows
    ]
    plain = _cell(records.mean(case(REFERENCE, largest), 'plain'))
    unseen_plain = _cell(records.mean(case(REFERENCE, largest), 'unseen_plain'))
    heads = (*(f'{n} NFE' for n in BUDGETS),)
    return [
        f'## {task.title}',
        f'`{task.metric}` of the best image. One image by the plain ODE has {plain}.',
        f'![{task.title}]({name}.png)',
        table(('method', *heads), best),
        f'The same, less that of `{REFERENCE}`, with the 95 % interval by BCa:',
        table(('method', *heads), against),
        f'At {largest} NFE: what was spent on a prompt, the mean score of the final set, its '
        f'diversity, and `{unseen}` of the best image, which nothing was chosen by (the plain '
        f'image has {unseen_plain}):',
        table(('method', *columns[:-1], unseen), cost),
    ]


def _training(records: Records) -> list[str]:
    """Search of the base against a trained policy, and on top of it."""
    task = 'ocr'
    after = lambda method, budget: Case(task, 'trained', method, budget)
    trained = records.mean(after(REFERENCE, max(BUDGETS)), 'plain')
    if not np.isfinite(trained[0]):
        return []
    rows = [
        (method, *(_cell(records.mean(after(method, n), 'best')) for n in BUDGETS))
        for method in ON_POLICY
    ]
    curve = [
        (n, records.mean(Case(task, BASE, REFERENCE, n), 'best')[0]) for n in (*SMALL, *BUDGETS)
    ]
    crossing = crossing_point(curve, trained[0])
    met = 'no budget tried reaches it' if crossing is None else f'about {crossing:.0f} NFE reach it'
    steps = ', '.join(f'{score:.3f} at {n}' for n, score in curve if np.isfinite(score))
    return [
        '## Search against training',
        f'One image of the trained policy (six evaluations, plain ODE) has {_cell(trained)}. '
        f'`{REFERENCE}` of the base has {steps}: {met}.',
        'Search on top of the trained policy:',
        table(('method', *(f'{n} NFE' for n in BUDGETS)), rows),
    ]


def crossing_point(curve: Sequence[tuple[float, float]], level: float) -> float | None:
    """The x at which a rising curve [(x, y)] first reaches the level, interpolated linearly in log
    x; None if it does not.
    """
    rows = [{'log': math.log(x), 'score': y} for x, y in curve if np.isfinite(y)]
    reached = spent_until(rows, 'log', level)
    return None if math.isinf(reached) else math.exp(reached)


def _draw(path: pathlib.Path, records: Records, task: str) -> pathlib.Path:
    """The metric against the evaluations spent, and against the diversity of the final set."""
    figure, (left, right) = subplots(1, 2, figsize=(11, 4.2), dpi=110)
    for i, method in enumerate(METHODS):
        look = dict(color=f'C{i % 10}', linestyle='-' if i < 10 else '--', marker='o', markersize=4)
        points, spread = [], []
        for budget in (*(SMALL if method == REFERENCE else ()), *BUDGETS):
            case = Case(task, BASE, method, budget)
            if case in records.rows:
                of = lambda column, case=case: records.mean(case, column)
                points.append((of('nfe')[0], *of('best')))
                spread.append((of('diversity')[0], of('best')[0]))
        if points:
            x, y, error = zip(*points)
            left.errorbar(x, y, error, capsize=2, linewidth=1.2, label=method, **look)
            right.plot(*zip(*spread), linewidth=0.8, **look)
    left.set(xscale='log', xlabel='network evaluations a prompt')
    ticks = (*SMALL, *BUDGETS)
    left.set_xticks(ticks, [str(n) for n in ticks], minor=False)
    left.minorticks_off()
    left.set_ylabel(f'{TASKS[task].metric} of the best image')
    right.set(xlabel='diversity of the final set', ylabel=f'{TASKS[task].metric} of the best image')
    left.legend(frameon=False, fontsize=7, ncols=2)
    for panel in (left, right):
        panel.grid(alpha=0.3)
    figure.tight_layout()
    save(figure, path)
    return path


def _cell(value: tuple[float, float], *, error: bool = True) -> str:
    mean, spread = value
    if not np.isfinite(mean):
        return '-'
    return f'{mean:.3f} ± {spread:.3f}' if error and np.isfinite(spread) else f'{mean:.4g}'


def _interval(d: Difference) -> str:
    if not d.seeds:
        return '-'
    low, high = d.bootstrap
    mark = '' if d.verdict in ('undecided', NOT_RUN) else ' *'
    return f'{d.mean:+.3f} [{low:+.3f}, {high:+.3f}]{mark}'
