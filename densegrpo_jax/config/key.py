"""One configuration key: its default, type, range or choices, a line of help, and what it decides.

The tables (`model_keys`, `method_keys` and the other `*_keys`) are written with the functions
below; `schema` joins them.
"""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import math
import numbers
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from densegrpo_jax.runtime.reading import shown

# What a key decides: the results; speed, memory or place; or the display.
SCIENCE, MACHINE, DISPLAY = 'science', 'machine', 'display'

# No run needs as many samples, steps or files as this; a typing error may ask for them, and would
# keep a run busy for ever.
MANY = 1_000_000


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of the configuration.

    Attributes:
      default: its type is the key's type.
      help: one line.
      kind: SCIENCE, MACHINE or DISPLAY.
      low, high: bounds of a number.
      above, below: `low` (`high`) itself is out of range.
      also: values outside the bounds that are allowed.
      choices: the names that a str may be. It may be a registry: names added to it later count.
      own: whether the value may also be 'package.module:object', the user's own object.
      item: type of a tuple's entries.
      length: least number of a tuple's entries.
      longest: of a text for people: one line of at most so many printable characters.
    """

    default: Any
    help: str
    kind: str = SCIENCE
    low: float | None = None
    high: float | None = None
    above: bool = False
    below: bool = False
    also: tuple[int, ...] = ()
    choices: Collection[str] | None = None
    own: bool = False
    item: type = str
    length: int = 0
    longest: int | None = None

    @property
    def type(self) -> str:
        """Name of the type."""
        kind = type(self.default)
        if kind is tuple:
            return f'tuple of {self.item.__name__}'
        return 'rewards' if isinstance(self.default, Mapping) else kind.__name__

    @property
    def range(self) -> str:
        """The allowed values in mathematical notation; '' if the type says it all."""
        if self.choices is not None:
            names = ', '.join(repr(name) for name in sorted(self.choices))
            return f"{names}, or 'package.module:object'" if self.own else names
        if type(self.default) not in (int, float) or (self.low, self.high) == (None, None):
            return ''
        parts = [
            *([] if self.low is None else [_short(self.low), '<' if self.above else '≤']),
            'x',
            *([] if self.high is None else ['<' if self.below else '≤', _short(self.high)]),
        ]
        return ' '.join(parts) + ''.join(f', or {value}' for value in self.also)

    @property
    def expected(self) -> str:
        """The allowed values, in words."""
        kind = type(self.default)
        if self.choices is not None:
            return f'one of {self.range}'
        if kind is bool:
            return 'True or False'
        if kind is str and self.longest is not None:
            return f'one line of at most {self.longest} printable characters'
        if kind is str:
            return 'a text'
        if kind is tuple:
            entries = {str: 'texts', int: 'whole numbers, none below 0'}[self.item]
            return f'a tuple of {entries}' + (f', at least {self.length}' if self.length else '')
        if kind not in (int, float):
            return 'rewards with their options'
        words = 'a whole number' if kind is int else 'a finite number'
        bounds = []
        if self.low is not None:
            bounds.append(f'{"above" if self.above else "at least"} {_short(self.low)}')
        if self.high is not None:
            bounds.append(f'{"below" if self.below else "at most"} {_short(self.high)}')
        bound = ' and '.join(bounds)
        return ' '.join(filter(None, (words, bound))) + ''.join(f', or {v}' for v in self.also)

    def accepts(self, value: object) -> bool:
        """Whether a value has the type and lies in the range; True is not a number."""
        kind = type(self.default)
        if kind is bool:
            return isinstance(value, bool)
        if kind in (int, float):
            return self._is_number(value)
        if kind is str:
            return (
                isinstance(value, str)
                and (self.choices is None or value in self.choices or (self.own and ':' in value))
                and (self.longest is None or (len(value) <= self.longest and value.isprintable()))
            )
        if kind is tuple:
            return (
                isinstance(value, tuple | list)
                and len(value) >= self.length
                and all(map(self._is_item, value))
            )
        return isinstance(value, Mapping) or hasattr(value, 'to_dict')

    def _is_number(self, value: object) -> bool:
        whole = numbers.Integral if isinstance(self.default, int) else numbers.Real
        if isinstance(value, bool) or not isinstance(value, whole):
            return False
        if value in self.also:
            return True
        try:
            x = float(value)
        except OverflowError:
            return False
        return (
            math.isfinite(x)
            and (self.low is None or (x > self.low if self.above else x >= self.low))
            and (self.high is None or (x < self.high if self.below else x <= self.high))
        )

    def _is_item(self, value: object) -> bool:
        if self.item is str:
            return isinstance(value, str)
        return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def check_value(name: str, key: Key, value: object) -> None:
    """Raises ValueError if the value does not have the key's type or is out of its range."""
    if key.accepts(value):
        return
    hint = '.'
    if key.choices is not None and isinstance(value, str):
        if close := difflib.get_close_matches(value, key.choices, 1):
            hint = f'; did you mean {close[0]!r}?'
    raise ValueError(f'{name}={shown(value, 80)}: expected {key.expected}{hint} {name}: {key.help}')


class Selection(NamedTuple):
    """Keys, as patterns of their dotted names, except those in `but`."""

    keys: tuple[str, ...] = ('*',)
    but: tuple[str, ...] = ()

    def __contains__(self, key: object) -> bool:
        like = lambda patterns: any(fnmatch.fnmatchcase(str(key), of) for of in patterns)
        return like(self.keys) and not like(self.but)


def whole(
    default: int,
    help: str,
    low: int = 1,
    high: int = MANY,
    kind: str = SCIENCE,
    also: tuple[int, ...] = (),
) -> Key:
    """A whole number."""
    return Key(default, help, kind, low=low, high=high, also=also)


def number(
    default: float,
    help: str,
    low: float | None = None,
    high: float | None = None,
    *,
    above: bool = False,
    below: bool = False,
) -> Key:
    """A finite number."""
    return Key(default, help, low=low, high=high, above=above, below=below)


def positive(default: float, help: str, high: float | None = None) -> Key:
    """A finite number above 0."""
    return number(default, help, 0, high, above=True)


def switch(default: bool, help: str, kind: str = SCIENCE) -> Key:
    """True or False."""
    return Key(default, help, kind)


def text(default: str, help: str, kind: str = SCIENCE) -> Key:
    """Any text: a path, a name."""
    return Key(default, help, kind)


def line(default: str, help: str, longest: int = 200) -> Key:
    """One line for people, which pages, logs and file names may hold."""
    return Key(default, help, DISPLAY, longest=longest)


def choice(default: str, help: str, choices: Collection[str], kind: str = SCIENCE) -> Key:
    """One of some names."""
    return Key(default, help, kind, choices=choices)


def part(default: str, help: str, choices: Collection[str]) -> Key:
    """One of some names, or the import path of the user's own object, which `method` finds."""
    return Key(default, help, choices=choices, own=True)


def _short(value: float) -> str:
    return f'{value:g}' if value != int(value) else str(int(value))
