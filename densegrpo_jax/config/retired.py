"""What records of earlier versions hold that today's do not write: keys that are gone, and values
that stood elsewhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Always:
    """The one value of a retired key that the code still goes by; shown as such."""

    value: object

    def __repr__(self) -> str:
        return f'always {self.value!r}'


# Key -> what every run does now. A record with that value is of the same run; with another one it
# is of a run that this version cannot make.
RETIRED: Mapping[str, Always] = {
    'credit.completion_solver': Always('euler'),
    'credit.completion_grid': Always('timestep'),
}

# What a record is of -> where earlier versions kept values, and their keys.
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
    """The record with values where today's records have them; one of None said nothing."""
    found = dict(record)
    for old, new in MOVED.get(scope, {}).items():
        if old in found:
            value, (group, name) = found.pop(old), new.split('.')
            if value is not None:
                found[group] = {**found.get(group, {}), name: value}
    return found
