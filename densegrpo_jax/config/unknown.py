"""A key of the command line that a configuration does not have, and the one that may be meant."""

from __future__ import annotations

import difflib
import inspect

from ml_collections import ConfigDict, config_dict

from densegrpo_jax.config.retired import ELSEWHERE, RETIRED
from densegrpo_jax.rewards.build import resolve

# groups of rewards; a configuration names only the options that it sets
REWARDS = ('config.reward', 'config.eval.panel')


def check_key(config: ConfigDict, key: str, given: str) -> None:
    """Raises ValueError if `config` has no such key. Adds an option of a reward that the
    configuration does not set.
    """
    group, path = config, 'config'
    for name in key.split('.'):
        if not isinstance(group, ConfigDict):
            raise ValueError(f'{given}: {path} is a value ({group!r}), not a group of keys')
        known = dict(group.items())
        if path.rpartition('.')[0] in REWARDS:
            known = {**_options(group.get('kind', path.rpartition('.')[2])), **known}
        if name not in known:
            meant = ELSEWHERE.get(name, name)
            close = difflib.get_close_matches(meant, known, 1)
            close += [
                f'{other}.{meant}'
                for other, inner in config.items()
                if isinstance(inner, ConfigDict) and meant in inner
            ]
            close += _of_the_table(config, name, path.partition('.')[2])
            here = lambda key: key.removeprefix(f'{path}.'.removeprefix('config.'))
            listed = ' or '.join(map(repr, dict.fromkeys(map(here, close))))
            way_out = f'did you mean {listed}? ' if close else ''
            way_out += (
                'rewards are chosen in the file or together, --config.reward="{...}"; '
                if path in REWARDS
                else ''
            )
            if (gone := RETIRED.get(f'{path}.{name}'.removeprefix('config.'))) is not None:
                way_out = (
                    f'{gone.successor} takes its place; '
                    if gone.successor
                    else f'it was removed, every run has {gone.value!r} now: leave it out; '
                )
            raise ValueError(
                f'{given}: {path} has no key {name!r}; {way_out}its keys: {", ".join(known)}'
            )
        if name not in group:
            group[name] = known[name]
        group, path = group[name], f'{path}.{name}'


def _of_the_table(config: ConfigDict, name: str, group: str) -> list[str]:
    """The key that may be meant; none if the configuration is not made from the table."""
    from densegrpo_jax.config.schema import TABLE, close_key  # imports jax

    close = close_key(name, group) if set(TABLE) <= set(config) else None
    return [close] if close else []


def _options(kind: str) -> dict:
    """Option -> default of a reward's class; any type if the default does not tell it."""
    options = {'weight': 1.0}
    for name, parameter in inspect.signature(resolve(kind)).parameters.items():
        if not name.startswith('make_'):  # options for tests
            any_type = parameter.default is None or parameter.default is parameter.empty
            options[name] = config_dict.placeholder(object) if any_type else parameter.default
    return options
