"""Arguments that would be read in another way than they were meant: empty, or given twice."""

from __future__ import annotations

import os
import pathlib
import sys
from collections.abc import Collection, Iterator, Sequence

from absl import flags

from densegrpo_jax.runtime.reading import read_text

# of a key without a value: as empty, it may be a variable of the shell that is unset
NONE = 'none'


def check_given(args: Sequence[str], may_lack: Collection[str] = ()) -> None:
    """Call it when the flags are parsed.

    Args:
      may_lack: flags of keys that may be without a value, which `NONE` says.

    Raises:
      ValueError: a flag is given as empty, as an unset variable of the shell makes it, or a flag
        that takes one value has two. Of keys of a configuration the last value counts, so that a
        script's own can be overridden; a line says so.
    """
    values: dict[str, list[str]] = {}
    for name, value in given_flags(args):
        if not value.strip() and not _is_choice(name, value):
            lacks = f'; --{name}={NONE} unsets what a recipe sets' if name in may_lack else ''
            raise ValueError(
                f'--{name}= is empty: is a variable of the shell unset? Give a value, or leave it '
                f'out{lacks}'
            )
        if not isinstance(flags.FLAGS[name], flags.MultiFlag):
            values.setdefault(name, []).append(value)
    for name, given in values.items():
        if len(set(given)) == 1:
            continue
        shown = ', then '.join(dict.fromkeys(map(repr, given)))
        if '.' not in name:
            raise ValueError(f'--{name} is given more than once, {shown}: leave all but one out')
        print(f'note: --{name} is given more than once, {shown}: the last counts', file=sys.stderr)


def check_flag_files(args: Sequence[str], within: tuple[pathlib.Path, ...] = ()) -> None:
    """Raises ValueError or OSError if a file of --flagfile is no text, or names itself. The library
    opens anything, more than once: a pipe is empty then, or never begins.

    Args:
      within: the files that hold `args`.
    """
    for given, following in zip(args, [*args[1:], '']):
        flag, equals, name = given.strip().partition('=')
        if flag in ('--flagfile', '-flagfile'):
            path = pathlib.Path((name if equals else following).strip()).expanduser()
            if path in within:
                raise ValueError(f'--flagfile={path} names itself')
            # without a name: the library's own error
            if str(path) not in ('.', os.devnull):
                lines = read_text(path, '--flagfile').split('\n')
                check_flag_files(lines, (*within, path))


def _is_choice(name: str, value: str) -> bool:
    flag = flags.FLAGS[name]
    return isinstance(flag, flags.EnumFlag) and value in flag.parser.enum_values


def given_flags(args: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(name, value) of the flags, without those of flag files."""
    rest = list(args[1:])
    while rest and (arg := rest.pop(0)) != '--':
        name, equals, value = arg.lstrip('-').partition('=')
        if not arg.startswith('-') or name == 'flagfile':
            continue
        switch = name.removeprefix('no')
        if name not in flags.FLAGS and switch in flags.FLAGS:
            yield switch, 'false'
        elif name in flags.FLAGS and flags.FLAGS[name].boolean and not equals:
            yield name, 'true'
        elif name in flags.FLAGS:
            yield name, value if equals else rest.pop(0) if rest else ''
