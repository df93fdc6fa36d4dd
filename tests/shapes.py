"""How tests check the shapes and types that core states; conftest.py puts it in place."""

import inspect
from collections.abc import Callable

from beartype import BeartypeConf, beartype

# An int stands where a float is expected, as everywhere in Python.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def unchecked(fn: Callable) -> Callable:
    """The function as it is outside the tests, to see its own errors for wrong shapes."""
    return inspect.unwrap(fn)
