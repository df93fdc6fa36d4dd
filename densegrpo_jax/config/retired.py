"""Entries in records of earlier versions that today's do not write: removed keys, and values that
were stored elsewhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Always:
    """The one value of a retired key that the code still implements; marked so in messages."""

    value: object

    def __repr__(self) -> str:
        return f'always {self.value!r}'


# Key -> the value of every run now. A record with that value is of the same run; with another value
# it is of a run that this version cannot make.
RETIRED: Mapping[str, Always] = {
    'credit.completion_solver': Always('euler'),
    'credit.completion_grid': Always('timestep'),
}

# Scope of a record -> where earlier versions stored values, and their keys.
MOVED: Mapping[str, Mapping[str, str]] = {
    'evaluation': {
        'cfg': 'loss.cfg',
        'steps': 'eval.steps',
        'panel': 'eval.panel',
        'embedding': 'eval.embedding',
    },
    'search': {'eval steps': 'eval.steps', 'panel': 'eval.panel'},
}


def renamed(scope: str, record: Mapping) -> dict:
    """The record with its values moved to their places in today's records; None is dropped."""
    found = dict(record)
    for old, new in MOVED.get(scope, {}).items():
        if old in found:
            value, (group, name) = found.pop(old), new.split('.')
            if value is not None:
                found[group] = {**found.get(group, {}), name: value}
    return found
