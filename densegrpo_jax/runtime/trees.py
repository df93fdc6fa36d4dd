"""Trees of JSON values, compared key by key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


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
