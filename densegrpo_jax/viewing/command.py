"""The command that started a run, as its folder keeps it, and the one that goes on with it."""

from __future__ import annotations

import pathlib
import re
import shlex
from collections.abc import Iterator, Sequence

from densegrpo_jax.runtime.reading import read_text

COMMAND = 'command.txt'  # in a run's folder
COMMAND_IN = '# in '  # before the folder of the command, in its last line
LONGEST = 10_000  # characters of a command that is shown


def read_command(workdir: pathlib.Path) -> tuple[str, str]:
    """The command that started the run, and its current folder; '' for what is not on record."""
    try:
        text = read_text(workdir / COMMAND).strip()
    except (OSError, ValueError):
        return '', ''
    command, _, last = text.rpartition('\n')
    if command and last.startswith(COMMAND_IN):
        return command[:LONGEST].strip(), last.removeprefix(COMMAND_IN)
    return text[:LONGEST], ''


def continuing(workdir: pathlib.Path, flags: Sequence[str]) -> str:
    """The command that goes on with a run: by its own configuration, whose keys may be newer than
    those of its first command, and with that command's other flags. Paths in a configuration may be
    relative, so it changes to the folder where the run was started.

    flags: to add.
    """
    folder = workdir.resolve()
    recorded, place = read_command(workdir)
    try:
        given = list(_flags(shlex.split(recorded)[2:]))
    except ValueError:  # a quote is not closed
        given = []
    if any(name == 'flagfile' for name, _ in given):  # it may name a configuration itself
        whole = shlex.join([*shlex.split(recorded), *flags])
    else:
        own = f'--config={folder}/config.json', f'--workdir={folder}'
        kept = [word for name, words in given if not _is_own(name) for word in words]
        whole = shlex.join(['densegrpo', 'train', *own, *kept, *flags])
    return f'cd {shlex.quote(place)} && {whole}' if place else whole


def _is_own(name: str) -> bool:
    """Whether a flag says what the run's folder says."""
    return name in ('config', 'workdir') or re.match(r'(no)?config\.', name) is not None


def _flags(words: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """(name, words) of every flag; its value may be a word of its own."""
    found: list[list[str]] = []
    for word in words:
        if re.match(r'--?[A-Za-z]', word):
            found.append([word])
        elif found:
            found[-1].append(word)
    for flag in found:
        yield flag[0].lstrip('-').partition('=')[0], flag
