"""The commands that started a run, as its folder keeps them, and the one that goes on with it."""

from __future__ import annotations

import pathlib
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from densegrpo_jax.runtime.reading import read_text
from densegrpo_jax.viewing.folder import inside, real

COMMAND = 'command.txt'  # in a run's folder: the first one, by a recipe
NEWEST = 'newest_command.txt'  # its flags may be others: another device, other processes
_RECORDED = re.compile(
    r'(?P<command>.+?)(\n# one of (?P<processes>\d{1,6}) processes)?(\n# in (?P<folder>[^\n]*))?',
    re.DOTALL,
)
TRAIN = ('densegrpo', 'train')  # the words of the installed command
# what `python -m` may name, and the number of words that follow before the flags
_MODULES = {'densegrpo_jax.main': 0, 'densegrpo_jax': 1}
OF_SEVERAL = ('coordinator', 'num_processes', 'process_id')  # flags of one of several processes


class Recorded(NamedTuple):
    """A command on record; '' for what is not.

    folder: its current one. processes: that were started so.
    """

    command: str = ''
    folder: str = ''
    processes: int = 1


def record(recorded: Recorded) -> str:
    """The text of a command's file."""
    lines = [recorded.command]
    if recorded.processes > 1:
        lines.append(f'# one of {recorded.processes} processes')
    if recorded.folder and '\n' not in recorded.folder:
        lines.append(f'# in {recorded.folder}')
    return '\n'.join(lines) + '\n'


def started_by(words: Sequence[str], flags: Sequence[str]) -> list[str]:
    """A training's command with its program as it was called, in a form that `continuing` reads.

    Args:
      words: all of the process (`sys.orig_argv`). flags: those of the training among them.
    """
    program = words[: max(len(words) - len(flags), 0)]
    ours = program and len(program) == _of_python(program)
    return [*(program if ours else TRAIN), *flags]


def _of_python(words: Sequence[str]) -> int:
    """How many words of a command name its program, if it is `python -m` with a module of ours."""
    found = (
        at + 1 + _MODULES[module]
        for at, (option, module) in enumerate(zip(words, words[1:]), 1)
        if option == '-m' and module in _MODULES
    )
    return 0 if tuple(words[:2]) == TRAIN else next(found, 0)


def read_command(folder: pathlib.Path, name: str = COMMAND) -> Recorded:
    """What `record` wrote. folder: its real path."""
    path = inside(folder, name)
    try:
        found = _RECORDED.fullmatch(read_text(path).strip()) if path else None
    except (OSError, ValueError):
        return Recorded()
    if not found:
        return Recorded()
    return Recorded(found['command'], found['folder'] or '', int(found['processes'] or 1))


def continuing(workdir: pathlib.Path, flags: Sequence[str]) -> str:
    """The command that goes on with a run: by its own configuration, whose keys may be newer than
    those of its commands, and with the program and the other flags of the newest one. Paths in a
    configuration may be relative, so it changes to the folder where the run was started. '' for a
    run of several processes: one of them alone would wait for the others.

    flags: to add.
    """
    folder = real(workdir)
    newest = read_command(folder, NEWEST)
    recorded, place, processes = newest if newest.command else read_command(folder)
    try:
        words = shlex.split(recorded)
    except ValueError:  # a quote is not closed
        words = []
    length = _of_python(words)
    program, given = words[:length] or TRAIN, list(_flags(words[length or len(TRAIN) :]))
    if processes > 1 or any(name in OF_SEVERAL for name, _ in given):
        return ''
    if any(name == 'flagfile' for name, _ in given):  # it may name a configuration itself
        whole = shlex.join([*words, *flags])
    else:
        own = f'--config={folder}/config.json', f'--workdir={folder}'
        kept = [
            word
            for name, words in given
            # of one process, --distributed=on was for its launcher, as Slurm
            if not _is_own(name)
            and not (name == 'distributed' and words[-1].rpartition('=')[2] == 'on')
            for word in words
        ]
        whole = shlex.join([*program, *own, *kept, *flags])
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
