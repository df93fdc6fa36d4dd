"""Trees of JSON values, compared key by key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class _Absent:
    """What stands for a value that is not there."""

    def __repr__(self) -> str:
        return 'absent'


ABSENT = _Absent()


class Difference(NamedTuple):
    """Of two trees: a dotted key, and its values there and here; ABSENT where there is none."""

    key: str
    old: object
    new: object


def dotted(tree: object, prefix: str = '') -> dict[str, object]:
    """Dotted key -> value, of a tree of mappings; an empty one inside it is a value."""
    if not isinstance(tree, Mapping) or (prefix and not tree):
        return {prefix: tree}
    return {
        key: value
        for name, inner in tree.items()
        for key, value in dotted(inner, f'{prefix}.{name}' if prefix else str(name)).items()
    }


def differing(old: Mapping, new: Mapping) -> list[Difference]:
    """Where two trees differ, in the order of the keys."""
    there, here = dotted(old), dotted(new)
    return [
        Difference(key, there.get(key, ABSENT), here.get(key, ABSENT))
        for key in sorted(there.keys() | here.keys())
        if there.get(key, ABSENT) != here.get(key, ABSENT)
    ]
