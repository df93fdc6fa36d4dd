"""Command: shows what the guard against reward hacking changes, on the miniature of shapes.

    python -m experiments.guarded --seeds=0,1,2 --workdir=runs/guarded --out=runs/guarded/report

Trains with a reward that can be hacked (scene.yaml), with one that is what it means (shapes.yaml)
and with one whose gain an unseen score shares (preference.yaml), with a guard that only warns: bit
for bit the runs without one. So a run shows both, the checkpoint with the best trained score, and
the best of those at which no unseen score has fallen. The same command, run again, continues.
Writes the page with the tables into --out, and outcomes.json, so that other cases and seeds join
those already there; text in its notes.md goes at the end of the page. Exit status as
`experiments.reproduce`.
"""

from __future__ import annotations

import json
import math
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags, logging

from densegrpo_jax.config.command_line import define_folder, define_seeds, run_main
from densegrpo_jax.guard.history import History
from densegrpo_jax.runtime.files import replace_file
from densegrpo_jax.runtime.markdown import table
from densegrpo_jax.runtime.reading import read_json, shaped
from densegrpo_jax.runtime.stop import FINISHED, StopRequest
from experiments.reproduction.facts import commit, device
from experiments.reproduction.records import PAGE, check_page, check_results
from experiments.reproduction.sweep import Run, base_digest, check_runs, run_all, status_of

HERE = pathlib.Path(__file__).parent
TITLE = '# What the guard changes'
FILE = 'outcomes.json'  # in --out
CASES = {
    'scene': 'a reward that can be hacked',
    'shapes': 'a reward that is what it means',
    'preference': 'a reward whose gain the shapes share',
}


class Chosen(NamedTuple):
    """A checkpoint: its trained score, and its unseen scores against the start."""

    step: int
    trained: float
    unseen: dict[str, float]  # name -> change


class Outcome(NamedTuple):
    """A finished run.

    Attributes:
      start: the trained score before.
      plain, guarded: the best without and with the rule. Either may be the start, step 0.
      alarms: evaluations with a fallen score. evaluations: that were guarded, without the start.
    """

    start: float
    plain: Chosen
    guarded: Chosen
    alarms: int
    evaluations: int

    @property
    def gain(self) -> float:
        """Of the trained score, without the rule."""
        return self.plain.trained - self.start

    @property
    def kept(self) -> float:
        """The share of `gain` that the guarded checkpoint has; NaN without any."""
        return (self.guarded.trained - self.start) / self.gain if self.gain > 0 else math.nan


def outcome(summary: Mapping[str, Any]) -> Outcome:
    """What a run's summary.json says."""
    rows = {row['step']: row for row in summary['guard']['evaluations']}
    scores = {step: mean for step, mean, _ in summary['evaluations'] if step in rows}

    def best(steps: Sequence[int]) -> Chosen:
        step = max(steps, key=scores.__getitem__)
        changes = {name: change for name, (_, change, *_) in rows[step]['scores'].items()}
        return Chosen(step, scores[step], changes)

    history = History(guarded=[*rows.values()])
    fine = [step for step in scores if history.competes(step)]
    alarms = sum(bool(rows[step]['fallen']) for step in scores)
    return Outcome(scores[0], best([*scores]), best(fine), alarms, len(scores) - 1)


Outcomes = dict[str, dict[str, Outcome]]  # case -> seed -> outcome
_CHOSEN = {'step': int, 'trained': float, 'unseen': {...: float}}
_OUTCOME = {'start': float, 'plain': _CHOSEN, 'guarded': _CHOSEN, 'alarms': int, 'evaluations': int}


def load_outcomes(out: pathlib.Path, bases: Mapping[str, str]) -> Outcomes:
    """Those that earlier commands left in `out`; bases: case -> `base_digest` of this command's.

    Raises:
      ValueError: they are of other settings, or the page has rows that no file keeps.
    """
    path = out / FILE
    if not path.exists():
        if (out / PAGE).exists():
            raise ValueError(
                f'--out={out}: the page there was made without {FILE}, so its rows would be lost; '
                'give another --out, or remove the page and its notes.md'
            )
        return {}
    form = {case: {'base': str, 'seeds': {...: _OUTCOME}} for case in CASES}
    parsed, found = read_json(path), {}
    for case in CASES:
        if case not in parsed:
            continue
        of = shaped(parsed[case], form[case], f'{path}: {case}')
        if of['base'] != bases[case]:
            raise ValueError(
                f'{path} has outcomes of {of["base"]}, and this command is of {bases[case]}: they '
                'cannot be compared; give another --out'
            )
        found[case] = {
            seed: Outcome(**{**o, **{kind: Chosen(**o[kind]) for kind in ('plain', 'guarded')}})
            for seed, o in of['seeds'].items()
        }
    return found


def save_outcomes(out: pathlib.Path, found: Outcomes, bases: Mapping[str, str]) -> None:
    """Writes outcomes.json, whole or not at all."""
    told = lambda o: {**o._asdict(), 'plain': o.plain._asdict(), 'guarded': o.guarded._asdict()}
    rows = {
        case: {'base': bases[case], 'seeds': {seed: told(o) for seed, o in of.items()}}
        for case, of in found.items()
    }
    replace_file(out / FILE, json.dumps(rows, indent=2) + '\n')


def page(found: Mapping[str, Mapping[str, Outcome]], command: str, notes: str = '') -> str:
    """The page: a table per case, a row per seed; then the notes."""
    text = [TITLE, f'    {command}']
    text.append(
        'Per run: the checkpoint with the best trained score of all, and the best of those at '
        'which no unseen score had fallen (docs/guard.md); either may be the start, update 0. '
        'Changes of unseen scores are against the start, on the same prompts and noise.'
    )
    for case, of in found.items():
        if not of:
            continue
        names = [*next(iter(of.values())).plain.unseen]
        rows = []
        for seed, o in of.items():
            rows.append([seed, 'start', '0', f'{o.start:.4f}', *('' for _ in names), ''])
            for kind, chosen in (('best of all', o.plain), ('guarded', o.guarded)):
                told = [str(chosen.step), f'{chosen.trained:.4f}']
                told += [f'{chosen.unseen[name]:+.4f}' for name in names]
                alarms = f'{o.alarms} of {o.evaluations}' if chosen is o.plain else ''
                rows.append([seed, kind, *told, alarms])
        head = ['seed', 'checkpoint', 'update', 'trained score', *names, 'evaluations with a fall']
        text += [f'## `{case}`: {CASES[case]}', table(head, rows), _in_short(of, names)]
    return '\n\n'.join([*text, *([notes] if notes else [])]) + '\n'


def _in_short(of: Mapping[str, Outcome], names: Sequence[str]) -> str:
    """The price and the gain: over all seeds, and over those in which the rule chooses another
    checkpoint, as the others would hide both.
    """
    everyone = [*of.values()]
    other = [o for o in everyone if o.guarded.step != o.plain.step]
    told = [_compared(everyone, names, f'mean of {len(everyone)} seed(s)')]
    if 0 < len(other) < len(everyone):
        told.append(_compared(other, names, f'Of the {len(other)} in which they differ'))
    if start := sum(o.guarded.step == 0 for o in everyone):
        told.append(f'In {start} the guard leaves none but the start.')
    return 'The guarded checkpoint against the best of all: ' + ' '.join(told)


def _compared(of: Sequence[Outcome], names: Sequence[str], which: str) -> str:
    mean = statistics.fmean
    change = mean(o.guarded.trained - o.plain.trained for o in of)
    share = [o.kept for o in of if not math.isnan(o.kept)]
    kept = f' ({mean(share):.0%} of the gain kept)' if share else ''
    unseen = ', '.join(
        f'{name} {mean(o.guarded.unseen[name] - o.plain.unseen[name] for o in of):+.4f}'
        for name in names
    )
    return f'{which}: trained score {change:+.4f}{kept}; unseen: {unseen}.'


def main(flag, extra: Sequence[str]) -> int:
    workdir, out = pathlib.Path(flag.workdir), pathlib.Path(flag.out)
    cases = flag.cases if flag.cases != ['all'] else [*CASES]
    if unknown := [case for case in cases if case not in CASES]:
        raise ValueError(f'--cases={unknown[0]} is not known; choose from {", ".join(CASES)}')
    of = lambda case, seed: Run(
        str(HERE / f'{case}.yaml'),
        case,
        (),
        seed,
        workdir / case / seed,
        workdir / 'text',
        tuple(extra),
    )
    runs = [of(case, seed) for seed in flag.seeds for case in cases]
    check_page(out, TITLE)
    bases = {case: base_digest(str(HERE / f'{case}.yaml'), extra) for case in CASES}
    found = load_outcomes(out, bases)
    if flag.run:
        check_runs(runs)
    else:
        check_results(bool(found) or any(run.finished for run in runs), workdir, out)
    workdir.mkdir(parents=True, exist_ok=True)

    def work(stop: StopRequest) -> int:
        facts = {'base': 'guarded', 'device': device(), 'commit': commit()}
        return 1 if run_all(runs, 1, stop, facts) else FINISHED

    status = status_of(work) if flag.run else FINISHED
    for each in runs:
        if each.finished:
            summary = read_json(each.folder / 'summary.json')
            found.setdefault(each.variant, {})[each.seed] = outcome(summary)
    found = {
        case: dict(sorted(found[case].items(), key=lambda row: int(row[0])))
        for case in CASES
        if case in found
    }
    out.mkdir(parents=True, exist_ok=True)
    seeds = sorted({seed for of in found.values() for seed in of}, key=int)
    shown = f'python -m experiments.guarded --cases={",".join(found)} --seeds={",".join(seeds)}'
    shown += f' --out={flag.out}' + (f' -- {" ".join(extra)}' if extra else '')
    notes = out / 'notes.md'
    text = notes.read_text(encoding='utf-8').strip() if notes.exists() else ''
    save_outcomes(out, found, bases)
    replace_file(out / PAGE, page(found, shown, text))
    logging.info('made %s', out / PAGE)
    return status


if __name__ == '__main__':
    define_seeds(3)
    flags.DEFINE_list('cases', ['all'], f'Which of {", ".join(CASES)}.')
    define_folder('workdir', 'runs/guarded', 'Where the runs go.')
    define_folder('out', 'runs/guarded/report', 'Folder for the page.')
    flags.DEFINE_bool('run', True, 'Run missing trainings; false: only write the page.')
    run_main(main, extra=True)
