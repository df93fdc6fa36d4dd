"""Names that are not ours, or no longer: removed keys and moved values in records of earlier
versions, and what other tools call our keys.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Always:
    """The one value of a retired key that the code still implements; marked so in messages.

    successor: the key that takes its place, and at which value it is the same. The old key decided
      nothing of a run's weights: runs with any value of it are opened.
    """

    value: object
    successor: str = ''

    def __repr__(self) -> str:
        return f'always {self.value!r}'


# Key -> the value of every run now. A record with that value is of the same run; with another value
# it is of a run that this version cannot make.
RETIRED: Mapping[str, Always] = {
    'credit.completion_solver': Always('euler'),
    'credit.completion_grid': Always('timestep'),
    'calibration.tolerance': Always(0.1, 'calibration.drift (0.2 is as 0.1 was)'),
}

# names in Diffusers, PEFT and peers' scripts -> the last part of ours
ELSEWHERE: Mapping[str, str] = {
    'lr': 'learning_rate',
    'guidance_scale': 'guidance',
    'num_inference_steps': 'steps',
    'num_steps': 'steps',
    'max_train_steps': 'iterations',
    'num_image_per_prompt': 'group',
    'lora_alpha': 'alpha',
    'lora_rank': 'rank',
    'r': 'rank',
}

# Scope of a record -> where earlier versions stored values, and their places today: 'name', or
# 'group.name'. Scopes with groups are those of `identity`.
MOVED: Mapping[str, Mapping[str, str]] = {
    'evaluation': {
        'cfg': 'loss.cfg',
        'steps': 'eval.steps',
        'panel': 'eval.panel',
        'embedding': 'eval.embedding',
    },
    'progress': {'velocity_evals': 'nfe'},
    'metrics': {'train/velocity_evals': 'train/nfe'},
    'curve': {'velocity_evals': 'nfe'},
}


def renamed(scope: str, record: Mapping) -> dict:
    """The record with its values moved to their places in today's records; None that would go into
    a group is dropped.
    """
    found = dict(record)
    for old, new in MOVED.get(scope, {}).items():
        if old in found:
            value, (*groups, name) = found.pop(old), new.split('.')
            if not groups:
                found.setdefault(name, value)
            elif value is not None:
                found[groups[0]] = {**found.get(groups[0], {}), name: value}
    return found
