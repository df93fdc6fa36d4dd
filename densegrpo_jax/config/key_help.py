"""The keys of the configuration as --help shows them, from the table."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Iterator, Mapping, Sequence

from densegrpo_jax.config.key import Key
from densegrpo_jax.config.schema import KEYS, TABLE, close_key

WIDTH = 80
GROUPS = tuple(name for name, entry in TABLE.items() if isinstance(entry, Mapping))


def keys_text(names: Sequence[str] = ()) -> str:
    """Name, default, values and help of keys.

    Args:
      names: groups or keys; none: all.

    Raises:
      ValueError: there is no such group or key.
    """
    if unknown := [name for name in names if name not in TABLE and name not in KEYS]:
        raise ValueError(f'--help {unknown[0]}: there is no such group or key{_meant(unknown[0])}')
    chosen = {name: KEYS[name] if name in KEYS else TABLE[name] for name in names or TABLE}
    lines, after_group = [], False
    for name, entry in chosen.items():
        if after_group and isinstance(entry, Key):
            lines.append('')  # it is not of the group above
        lines += _lines(name, entry)
        after_group = not isinstance(entry, Key)
    return '\n'.join(lines)


def hint() -> str:
    """How to see the keys."""
    groups = textwrap.fill(', '.join(TABLE), WIDTH, initial_indent='  ', subsequent_indent='  ')
    return f'Keys are set with --config.KEY=VALUE; --help GROUP lists a group of them:\n{groups}'


def _meant(name: str) -> str:
    close = difflib.get_close_matches(name, TABLE, 1)
    close = close or [found for found in [close_key(*name.split('.')[::-1][:2])] if found]
    hint = f'did you mean {close[0]!r}?' if close else f'groups: {", ".join(GROUPS)}'
    return f'; {hint}'


def _lines(name: str, entry: Key | Mapping[str, Key]) -> Iterator[str]:
    if isinstance(entry, Key):
        yield from _one(name, entry)
        return
    yield f'\n{name}:'
    for inner, key in entry.items():
        yield from _one(f'{name}.{inner}', key)


def _one(name: str, key: Key) -> Iterator[str]:
    wrap = lambda text, first: textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent='      ', break_on_hyphens=False
    )
    values = f'{key.type}, {key.range}' if key.range and key.choices is None else ''
    yield from wrap(f'{name}={key.default!r}  ({values or key.range or key.type})', '  ')
    yield from wrap(key.help, '      ')
