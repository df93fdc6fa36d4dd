"""The results of a step as a JSON file, written after every row: a step that was stopped has all
that it measured, and continues with the rows that are missing.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import time


class Record:
    """Rows by their names. `done`: the step has measured all that it can."""

    def __init__(self, path: pathlib.Path):
        self._path, self._began = path, time.monotonic()
        found = json.loads(path.read_text(encoding='utf-8')) if path.is_file() else {}
        self.rows: dict[str, dict] = found.get('rows', {})
        self.done: bool = found.get('done', False)
        self.facts: dict = found.get('facts', {})
        self._before = found.get('seconds', 0.0)

    def __contains__(self, name: str) -> bool:
        return name in self.rows

    def add(self, name: str, **row) -> None:
        """Keeps and prints a row."""
        self.rows[name] = row
        shown = '  '.join(f'{key} {_shown(value)}' for key, value in row.items())
        print(f'  {name:38s} {shown}', flush=True)
        self.save()

    def finish(self) -> None:
        """Marks the step as complete."""
        self.done = True
        self.save()

    def save(self) -> None:
        """Writes the file; a reader sees the old one or the new one."""
        seconds = self._before + time.monotonic() - self._began
        document = dict(rows=self.rows, done=self.done, facts=self.facts, seconds=seconds)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        beside = self._path.with_suffix('.part')
        beside.write_text(json.dumps(document, indent=1) + '\n', encoding='utf-8')
        os.replace(beside, self._path)


def _shown(value) -> str:
    return f'{value:.4g}' if isinstance(value, float) else str(value)


def arguments(description: str | None, *more: tuple[str, dict]) -> argparse.Namespace:
    """The flags of a step: --record=FILE, --size, and its own."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('--record', type=pathlib.Path, required=True)
    parser.add_argument('--size', choices=('full', 'small'), default='full')
    for name, options in more:
        parser.add_argument(name, **options)
    return parser.parse_args()
