"""The results of all steps in one JSON file, written after every row: a step that was stopped has
all that it measured, and continues with the rows that are missing.

Rows belong to a device, a version of JAX, a size and the code that measured them. Those of others
do not count, and are replaced once their step is measured here.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pathlib
import time
from collections.abc import Mapping

ROOT = pathlib.Path(__file__).resolve().parents[2]
IDENTITY = ('device', 'count', 'jax', 'size', 'code')


def code() -> str:
    """A digest of what is measured and of what measures."""
    digest = hashlib.sha256()
    for folder in ('benchmarks', 'configs', 'densegrpo_jax'):
        for file in sorted((ROOT / folder).rglob('*.py')):
            digest.update(str(file.relative_to(ROOT)).encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def identity(facts: Mapping) -> dict:
    """The facts by which rows belong together."""
    return {key: facts.get(key) for key in IDENTITY}


def read(path: pathlib.Path) -> dict:
    """The file's document: 'facts' of the device, and 'steps' by their names."""
    empty = {'facts': {}, 'steps': {}}
    return json.loads(path.read_text(encoding='utf-8')) if path.is_file() else empty


def results(path: pathlib.Path) -> dict[str, dict]:
    """Name of a step -> what it measured, of the steps that belong to the file's facts."""
    document = read(path)
    own = identity(document['facts'])
    return {name: found for name, found in document['steps'].items() if found['of'] == own}


class Record:
    """A step's rows by their names. `done`: it has measured all that it can here.

    Args:
      facts: new ones of the file, from the step that asks the device; else the file's.
    """

    def __init__(self, path: pathlib.Path, step: str, facts: dict | None = None):
        self._path, self._step, self._began = path, step, time.monotonic()
        document = read(path)
        self.facts: dict = facts or document['facts']
        found = document['steps'].get(step, {})
        if found.get('of') != identity(self.facts):
            found = {}
        self.rows: dict[str, dict] = found.get('rows', {})
        self.done: bool = found.get('done', False)
        self._before = found.get('seconds', 0.0)

    def __contains__(self, name: str) -> bool:
        return name in self.rows

    @property
    def key(self) -> str:
        """A name for what belongs to the rows and is kept elsewhere, such as a run's folder."""
        text = json.dumps(identity(self.facts), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

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
        document = read(self._path)  # steps run one after the other
        document['facts'] = self.facts
        document['steps'][self._step] = {
            'of': identity(self.facts),
            'rows': self.rows,
            'done': self.done,
            'seconds': self._before + time.monotonic() - self._began,
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        beside = self._path.with_suffix('.part')
        beside.write_text(json.dumps(document, indent=1) + '\n', encoding='utf-8')
        os.replace(beside, self._path)


def _shown(value) -> str:
    return f'{value:.4g}' if isinstance(value, float) else str(value)


def arguments(description: str | None, *more: tuple[str, dict]) -> argparse.Namespace:
    """The flags of a step: --record=FILE, --step, its name there, --work=FOLDER for what is not a
    result, --size, and its own.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('--record', type=pathlib.Path, required=True)
    parser.add_argument('--step', required=True)
    parser.add_argument('--work', type=pathlib.Path, required=True)
    parser.add_argument('--size', choices=('full', 'small'), default='full')
    for name, options in more:
        parser.add_argument(name, **options)
    return parser.parse_args()
