"""Checks of a configuration that need neither weights nor devices: each key by the table
(`schema`), then keys against each other.
"""

from __future__ import annotations

from collections.abc import Collection

from densegrpo_jax.config.combinations import check_combinations
from densegrpo_jax.config.key import Key, check_value
from densegrpo_jax.config.schema import TABLE, close_key
from densegrpo_jax.runtime.trackers import names_of


def validate(config) -> None:
    """Checks every key, and keys against each other.

    Raises:
      ValueError: the message names the key, its value and what is expected.
    """
    check_names(config)
    for name, entry in TABLE.items():
        if isinstance(entry, Key):
            check_value(name, entry, config[name])
        else:
            for inner, key in entry.items():
                check_value(f'{name}.{inner}', key, config[name][inner])
    check_combinations(config)
    names_of(config.log.report_to)


def check_names(config) -> None:
    """Raises ValueError unless the configuration has all keys of the table and no other."""
    for name, entry in TABLE.items():
        inner = {} if isinstance(entry, Key) else entry
        absent = [name] if name not in config else []
        absent += [f'{name}.{key}' for key in inner if not absent and key not in config[name]]
        if absent:
            raise ValueError(
                f'the configuration has no key {absent[0]}; start it from '
                'densegrpo_jax.config.schema.default_config()'
            )
        for key in config[name] if inner else ():
            _check_known(key, inner, name)
    for name in config:
        _check_known(name, TABLE, '')


def _check_known(name: str, known: Collection[str], group: str) -> None:
    if name not in known:
        close = close_key(name, group)
        hint = f'; did you mean {close}?' if close else ''
        raise ValueError(f'there is no key {f"{group}." if group else ""}{name}{hint}')
