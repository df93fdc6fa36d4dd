"""The page of a reproduction: claim, the paper's figure, ours, verdict, command; then each figure
with its numbers.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from densegrpo_jax.runtime.markdown import table
from experiments.reproduction.drawing import draw_curves
from experiments.reproduction.figures import FIGURES, Comparison, Figure
from experiments.reproduction.probed import Section
from experiments.reproduction.records import Records
from experiments.reproduction.statistics import NOT_RUN, Difference, claim_verdict, paired, summary

TITLE = '# The claims of DenseGRPO, tried here'
COLUMNS = (
    'variant',
    'seeds',
    'before',
    'after',
    'mean after the start',
    'KL at the end',
    'NFE per run',
    'seconds per run',
)
FORMATS = {'score': '{:+.4f}', 'kl': '{:+.2e}'}


def compare(records: Records, comparison: Comparison) -> Difference:
    """The difference of a comparison, over the seeds that both variants have finished."""
    of = lambda variant: {
        seed: summary(rows, comparison.quantity) for seed, rows in records.curves(variant).items()
    }
    return paired(of(comparison.more), of(comparison.less))


def write(
    out: pathlib.Path, records: Records, measured: Mapping[str, Section], wanted: Mapping[str, int]
) -> list[pathlib.Path]:
    """Writes README.md and a PNG per figure that has runs.

    Args:
      out: folder, created if needed; text in its `notes_FIGURE.md` goes under the figure.
      records: finished runs.
      measured: the figures that need no training.
      wanted: variant -> requested number of seeds, to say what has not run.

    Returns:
      The files written.
    """
    out.mkdir(parents=True, exist_ok=True)
    made, rows, sections = [], [], []
    for figure in FIGURES.values():
        differences = {c: compare(records, c) for c in figure.comparisons}
        verdict = claim_verdict([d.verdict for d in differences.values()])
        parts = [f'{c.more} above {c.less}: {d.verdict}' for c, d in differences.items()]
        here = '; '.join(
            [
                f'**{verdict}**',
                *(parts if len({d.verdict for d in differences.values()}) > 1 else []),
            ]
        )
        rows.append(
            [_link(figure.title, verdict), figure.claim, figure.paper, here, _command(figure.name)]
        )
        if verdict != NOT_RUN:
            sections.append(_section(out, figure, records, differences, wanted, made))
    for name, of in measured.items():
        rows.append(
            [_link(of.title, of.verdict), of.claim, of.paper, f'**{of.verdict}**', _command(name)]
        )
        if of.verdict != NOT_RUN:
            sections.append(f'## {of.title}\n\n{of.text}{_notes(out, name)}')
    verdicts = table(['figure', 'claim', 'the paper', 'here', 'command'], rows)
    path = out / 'README.md'
    path.write_text(
        '\n\n'.join([TITLE, _introduction(out, records), verdicts, *sections]) + '\n',
        encoding='utf-8',
    )
    return [path, *made]


def _introduction(out: pathlib.Path, records: Records) -> str:
    note = out / 'notes.md'
    text = [note.read_text(encoding='utf-8').strip()] if note.exists() else []
    if records.runs:
        runs = list(records.runs.values())
        each = lambda field: ', '.join(sorted({str(run[field]) for run in runs}))
        text.append(
            f'{len(runs)} runs on the base configuration {each("base")}, code {each("commit")}, '
            f'{each("device")}; score: {each("score_name")} on held-out prompts. '
            'A comparison is the difference, seed by seed, of the mean of a run over its '
            'evaluations after the start; a claim holds where the 95 % intervals over seeds, by '
            "BCa bootstrap and by Student's t, both exclude 0 for all its parts. "
            '[runs.csv](runs.csv) has the command of every run, '
            '[evaluations.csv](evaluations.csv) the curves.'
        )
    return '\n\n'.join(text) or 'Nothing has run yet.'


def _section(
    out: pathlib.Path,
    figure: Figure,
    records: Records,
    differences: Mapping,
    wanted: Mapping[str, int],
    made: list,
) -> str:
    lines = [f'## {figure.title}', '', f'Claim: {figure.claim}. Paper: {figure.paper}.', '']
    curves = {variant: records.curves(variant) for variant in figure.variants}
    present = {variant: list(runs.values()) for variant, runs in curves.items() if runs}
    # else it would only repeat other figures
    if differences[figure.comparisons[0]].seeds:
        picture = out / f'fig_{figure.name}.png'
        draw_curves(
            present, picture, axes=figure.axes, quantity=figure.quantity, totals=figure.totals
        )
        made.append(picture)
        lines += [f'![{figure.title}]({picture.name})', '']
        lines += [
            table(
                COLUMNS,
                (_row(variant, list(runs.values())) for variant, runs in curves.items() if runs),
            ),
            '',
        ]
    if missing := [variant for variant, runs in curves.items() if not runs]:
        lines += [f'Not run: {", ".join(missing)}.', '']
    short = {
        variant: runs for variant, runs in curves.items() if 0 < len(runs) < wanted.get(variant, 0)
    }
    if fewer := [
        f'{variant} ({len(runs)} of {wanted[variant]})' for variant, runs in short.items()
    ]:
        lines += [f'Fewer seeds than asked for: {", ".join(fewer)}.', '']
    for c, d in differences.items():
        if d.seeds:
            f = FORMATS[c.quantity].format
            interval = lambda name, ends: f'{name} [{f(ends[0])}, {f(ends[1])}]'
            intervals = (
                f'{interval("BCa", d.bootstrap)}, {interval("t", d.student)}, {d.seeds} seeds'
            )
            lines.append(
                f'- {c.more} above {c.less}: {f(d.mean)}, '
                f'{intervals if d.seeds > 1 else "one seed"}: **{d.verdict}**'
            )
    return '\n'.join(lines).rstrip() + _notes(out, figure.name)


def _row(variant: str, runs: Sequence[Sequence[Mapping]]) -> list[str]:
    spread = lambda numbers: (
        f'{np.mean(numbers):.4f}'
        + (f' ± {np.std(numbers, ddof=1):.4f}' if len(numbers) > 1 else '')
    )
    first, last = [run[0] for run in runs], [run[-1] for run in runs]
    kl = np.mean([row['kl'] for row in last])
    return [
        variant,
        str(len(runs)),
        spread([row['score'] for row in first]),
        spread([row['score'] for row in last]),
        spread([summary(run) for run in runs]),
        f'{kl:.2e}' if np.isfinite(kl) else '',
        f'{np.mean([row["nfe"] for row in last]):.0f}',
        f'{np.mean([row["seconds"] for row in last]):.0f}',
    ]


def _notes(out: pathlib.Path, name: str) -> str:
    """The hand-written notes on a figure."""
    path = out / f'notes_{name}.md'
    return f'\n\n{path.read_text(encoding="utf-8").strip()}' if path.exists() else ''


def _command(name: str) -> str:
    return f'`reproduce --figure={name}`'


def _link(title: str, verdict: str) -> str:
    return title if verdict == NOT_RUN else f'[{title}](#{_anchor(title)})'


def _anchor(title: str) -> str:
    return ''.join(c for c in title.lower().replace(' ', '-') if c.isalnum() or c == '-')
