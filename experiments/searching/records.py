"""The results of searches, a row for every prompt of every case: a CSV, joined with the current
contents of the cases' folders.
"""

from __future__ import annotations

import csv
import io
import math
import pathlib

import numpy as np

from densegrpo_jax.evaluation.evaluator import finite_mean, standard_error
from densegrpo_jax.runtime.files import replace_file
from densegrpo_jax.runtime.reading import json_lines, read_table, shaped
from densegrpo_jax.search.record import FILE, ROW
from experiments.searching.cases import TASKS, Case

COLUMNS = (
    'task', 'policy', 'method', 'budget', 'prompt', 'nfe', 'images', 'seconds',
    'plain', 'best', 'searched', 'final', 'diversity', 'unseen_plain', 'unseen_best',
)  # fmt: skip
TEXT = ('task', 'policy', 'method')
RECORDS = 'prompts.csv'
_READ = ('prompt', 'base', 'best', 'final', 'nfe', 'images', 'seconds', 'diversity')
FORM = {name: ROW[name] for name in _READ}  # of what is read of a search's line


class Records:
    """The results of all cases.

    Attributes:
      rows: Case -> one dict per prompt, in order: COLUMNS, numbers as float.
    """

    def __init__(self):
        self.rows: dict[Case, list[dict]] = {}

    @classmethod
    def load(cls, folder: pathlib.Path) -> Records:
        """The results that `save` wrote to `folder`; empty if there are none."""
        records, path = cls(), folder / RECORDS
        if path.exists():
            numbers = [name for name in COLUMNS if name not in TEXT]
            for row in read_table(path, TEXT, numbers):
                case = Case(row['task'], row['policy'], row['method'], int(row['budget']))
                records.rows.setdefault(case, []).append(row)
        return records

    def add(self, case: Case, folder: pathlib.Path) -> None:
        """Reads a finished case from its folder (`search.record`), replacing earlier rows."""
        metric, unseen = TASKS[case.task].metric, next(iter(TASKS[case.task].panel))
        rows = []
        for number, found in json_lines(folder / FILE):
            if 'prompt' not in found:
                continue
            shaped(found, FORM, f'{folder / FILE}:{number}')
            values = {
                'plain': found['base'].get(metric),
                'best': found['best'].get(metric),
                'searched': found['best']['total'],
                'final': found['final']['total'],
                'unseen_plain': found['base'].get(unseen),
                'unseen_best': found['best'].get(unseen),
                **{k: found[k] for k in ('prompt', 'nfe', 'images', 'seconds', 'diversity')},
            }
            numbers = {k: math.nan if v is None else float(v) for k, v in values.items()}
            rows.append({**case._asdict(), **numbers})
        self.rows[case] = sorted(rows, key=lambda row: row['prompt'])

    def save(self, folder: pathlib.Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        out = io.StringIO()
        table = csv.writer(out, lineterminator='\n')
        table.writerow(COLUMNS)
        for case in sorted(self.rows):
            for row in self.rows[case]:
                cells = (row[c] for c in COLUMNS)
                table.writerow(c if isinstance(c, str) else f'{c:.5g}' for c in cells)
        replace_file(folder / RECORDS, out.getvalue())

    def of(self, case: Case, column: str) -> dict[str, float]:
        """Prompt -> value; empty if the case has not run."""
        return {str(int(row['prompt'])): row[column] for row in self.rows.get(case, ())}

    def mean(self, case: Case, column: str) -> tuple[float, float]:
        """Mean over prompts and its standard error; NaN if nothing has run."""
        values = np.array([*self.of(case, column).values()], float)
        return finite_mean(values), standard_error(values)
