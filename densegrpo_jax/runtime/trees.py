"""Trees of JSON values: made of arrays and numbers, and compared key by key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np


class _Absent:
    """Stands for a missing value."""

    def __repr__(self) -> str:
        return 'absent'


ABSENT = _Absent()


class Difference(NamedTuple):
    """A difference of two trees: a dotted key, and its values there and here, or ABSENT."""

    key: str
    old: object
    new: object


def dotted(tree: object, prefix: str = '') -> dict[str, object]:
    """Dotted key -> value, of a tree of mappings; an empty inner mapping is a value."""
    if not isinstance(tree, Mapping) or (prefix and not tree):
        return {prefix: tree}
    return {
        key: value
        for name, inner in tree.items()
        for key, value in dotted(inner, f'{prefix}.{name}' if prefix else str(name)).items()
    }


def differing(old: Mapping, new: Mapping) -> list[Difference]:
    """The differences of two trees, in the order of the keys."""
    there, here = dotted(old), dotted(new)
    return [
        Difference(key, there.get(key, ABSENT), here.get(key, ABSENT))
        for key in sorted(there.keys() | here.keys())
        if there.get(key, ABSENT) != here.get(key, ABSENT)
    ]


def json_value(value: Any, digits: int | None = None) -> Any:
    """The JSON value of numbers, arrays, mappings and sequences: null where a number is not finite.

    Args:
      digits: floats are rounded to so many decimal places; None: not at all.
    """
    if isinstance(value, Mapping):
        return {str(key): json_value(each, digits) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(each, digits) for each in value]
    if isinstance(value, float | np.floating):
        if not math.isfinite(value):
            return None
        return float(value) if digits is None else round(float(value), digits)
    if hasattr(value, '__array__'):
        return json_value(np.asarray(value).tolist(), digits)
    return value
