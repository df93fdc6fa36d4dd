"""Flags whose values are checked when they are parsed: numbers in a range, files to write."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Callable
from typing import Any

from absl import flags

from densegrpo_jax.runtime import paths

# flags defined here belong to the calling command, whose --help lists them
flags.disclaim_key_flags()


def define_whole(name: str, default: int, help_string: str, low: int, high: int) -> None:
    """A flag for a whole number, low <= x <= high."""
    flags.DEFINE_integer(name, default, help_string)
    _check(name, lambda x: low <= x <= high, f'expected a whole number from {low} to {high}')


def define_real(
    name: str,
    default: float | None,
    help_string: str,
    *,
    above: float = -math.inf,
    high: float = math.inf,
) -> None:
    """A flag for a finite number, above < x <= high; None if optional."""
    flags.DEFINE_float(name, default, help_string)
    ends = [f'above {above:g}'] * (above > -math.inf) + [f'at most {high:g}'] * (high < math.inf)
    expected = ' '.join(['expected a finite number', ' and '.join(ends)]).strip()
    _check(name, lambda x: math.isfinite(x) and above < x <= high, expected)


def define_output(
    name: str,
    default: str | None,
    help_string: str,
    suffix: str,
    ours: Callable[[pathlib.Path], bool] | None = None,
) -> None:
    """A flag for a file that the command writes; None if optional. What can be known of it now is
    checked now, not after the work: its suffix, whether it is a folder, whether one can be made
    for it, and whether it holds what this command did not write.

    ours: whether a file that is there is the command's; None: it checks that itself.
    """
    flags.DEFINE_string(name, default, help_string)

    def problem(value: str) -> str | None:
        return paths.output_problem(value, suffix) or (ours and paths.foreign(value, ours))

    refuse(name, problem)


def refuse(name: str, problem: Callable[[Any], str | None]) -> None:
    """Makes it an error to give the flag `name` a value with a problem, which the message says."""

    def check(value: Any) -> bool:
        if value is not None and (found := problem(value)):
            raise flags.ValidationError(found)
        return True

    flags.register_validator(name, check)


def _check(name: str, met: Callable[[float], bool], expected: str) -> None:
    refuse(name, lambda value: None if met(value) else f'{expected}, not {value}')
