"""The records of a sweep's runs: two small CSV files, joined with the current contents of the runs'
folders.
"""

from __future__ import annotations

import csv
import io
import math
import pathlib
from collections.abc import Sequence

from densegrpo_jax.config.retired import renamed
from densegrpo_jax.runtime.files import replace_file
from densegrpo_jax.runtime.paths import foreign
from densegrpo_jax.runtime.reading import json_lines, read_json, read_table, read_text, shaped

EVALUATION = (
    'variant',
    'seed',
    'updates',
    'nfe',
    'seconds',
    'score',
    'standard_error',
    'kl',
    'reward',
)
RUN = (
    'variant',
    'seed',
    'base',
    'updates',
    'score_name',
    'device',
    'side_by_side',
    'commit',
    'command',
    'own_code',  # only in tables of runs that name code of a user's own
)
PAGE = 'README.md'  # in the folder of the results
RUN_FILE = 'run.json'  # in a run's folder: its row of RUN, without the values known at the end

Key = tuple[str, str]  # variant, seed


def check_results(found: bool, workdir: object, out: object) -> None:
    """Raises ValueError if nothing was found to draw, before an empty page replaces a full one."""
    if not found:
        raise ValueError(
            f'--norun: there are no results in --workdir={workdir} nor --out={out}; name the '
            'folder of finished runs, or leave --norun out'
        )


def check_page(out: pathlib.Path, mark: str, files: Sequence[str] = ()) -> None:
    """Raises ValueError if the page OUT/README.md would take the place of something else.

    Args:
      mark: words of every page of this command.
      files: further files that it writes; beside a page of it, or its tables, they are its own.
    """
    page = out / PAGE
    ours = lambda path: path.is_file() and mark in read_text(path)
    if problem := foreign(page, ours):
        raise ValueError(f'--out={out}: {problem}')
    if not page.exists() and not (out / 'runs.csv').exists():
        for name in files:
            if problem := foreign(out / name):
                raise ValueError(f'--out={out}: {problem}')


class Records:
    """Finished runs and their evaluations.

    Attributes:
      runs: (variant, seed) -> its row of RUN.
      evaluations: (variant, seed) -> rows of EVALUATION, numbers as float.
    """

    def __init__(self):
        self.runs: dict[Key, dict] = {}
        self.evaluations: dict[Key, list[dict]] = {}

    @classmethod
    def load(cls, folder: pathlib.Path) -> Records:
        """The records that `save` wrote to `folder`; empty if there are none.

        Raises:
          FileNotFoundError: one of the two tables is missing.
          ValueError: one is of another form, or a run has no evaluations.
        """
        records, tables = cls(), [folder / 'runs.csv', folder / 'evaluations.csv']
        if not any(path.exists() for path in tables):
            return records
        runs = read_table(tables[0], RUN[:-1])
        records.runs = {(row['variant'], row['seed']): row for row in runs}
        rename = lambda row: renamed('curve', row)
        for row in read_table(tables[1], EVALUATION[:2], EVALUATION[2:], rename):
            records.evaluations.setdefault((row['variant'], row['seed']), []).append(row)
        if alone := [' '.join(key) for key in records.runs if key not in records.evaluations]:
            raise ValueError(
                f'{tables[1]} has no evaluations of {", ".join(alone)}, which {tables[0]} lists'
            )
        return records

    def save(self, folder: pathlib.Path) -> None:
        """Writes runs.csv and evaluations.csv, whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        rows = [row for key in self.runs for row in self.evaluations[key]]
        own = any(row.get('own_code') for row in self.runs.values())
        for name, fields, content in (
            ('evaluations.csv', EVALUATION, rows),
            ('runs.csv', RUN if own else RUN[:-1], self.runs.values()),
        ):
            text = io.StringIO()
            table = csv.DictWriter(text, fields, extrasaction='ignore', lineterminator='\n')
            table.writeheader()
            table.writerows(content)
            replace_file(folder / name, text.getvalue())

    def check_base(self, base: str, out: object) -> None:
        """Raises ValueError if the runs, kept in the folder `out`, have another base."""
        if others := {row['base'] for row in self.runs.values()} - {base}:
            raise ValueError(
                f'--out={out} has results of the base configuration {", ".join(others)}, and this '
                f'one is {base}: they cannot be compared; give another --out'
            )

    def add(self, workdir: pathlib.Path) -> None:
        """Takes in a finished run's folder.

        Raises:
          ValueError: its base configuration differs from that of the runs already here.
        """
        run, summary = (read_json(workdir / name) for name in (RUN_FILE, 'summary.json'))
        shaped(run, dict.fromkeys(('variant', 'seed', 'base'), str), str(workdir / RUN_FILE))
        shaped(summary, {'updates': int, 'score': str}, str(workdir / 'summary.json'))
        others = {row['base'] for row in self.runs.values()} - {run['base']}
        if others:
            raise ValueError(
                f'{workdir} has the base configuration {run["base"]}, but the results so far have '
                f'{", ".join(others)}: '
                'they cannot be compared; give the new ones another --out'
            )
        key = run['variant'], run['seed']
        self.runs[key] = run | {'updates': summary['updates'], 'score_name': summary['score']}
        self.evaluations[key] = [
            {'variant': key[0], 'seed': key[1], **row}
            for row in read_evaluations(workdir / 'metrics.jsonl', summary['score'])
        ]

    def seeds(self, variant: str) -> list[str]:
        """Seeds of the finished runs of a variant, in numerical order."""
        return sorted((seed for name, seed in self.runs if name == variant), key=int)

    def curves(self, variant: str) -> dict[str, list[dict]]:
        """seed -> evaluations."""
        return {seed: self.evaluations[variant, seed] for seed in self.seeds(variant)}


def read_evaluations(path: pathlib.Path, score: str) -> list[dict]:
    """The evaluations in a run's metrics.jsonl.

    Args:
      score: name of the score, as in `eval/{score}`.

    Returns:
      Rows of EVALUATION without variant and seed: cost so far (nfe: network evaluations
      of all samples; seconds in iterations), the score with its standard error, and kl and reward
      of the training samples as means over the updates since the last evaluation.
    """
    rows, spent, since = (
        [],
        {'train/nfe': 0.0, 'train/seconds': 0.0},
        {'train/kl': [], 'train/reward': []},
    )
    number = float | None
    of_step = {'step': int, f'eval/{score}': number, 'eval/standard_error': number}
    for line, parsed in json_lines(path):
        row = renamed('metrics', parsed)
        spent |= {name: row[name] for name in spent if row.get(name) is not None}
        for name, values in since.items():
            values += [row[name]] if row.get(name) is not None else []
        if f'eval/{score}' in row:
            shaped(row, of_step, f'{path}:{line}')
            rows.append(
                {
                    'updates': row['step'],
                    'nfe': spent['train/nfe'],
                    'seconds': round(spent['train/seconds'], 2),
                    'score': row[f'eval/{score}'],
                    'standard_error': row['eval/standard_error'],
                    'kl': _mean(since['train/kl']),
                    'reward': _mean(since['train/reward']),
                }
            )
            since = {name: [] for name in since}
    return rows


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers) if numbers else math.nan
