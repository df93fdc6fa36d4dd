"""Output folders: a command never overwrites its own input, nor what others wrote. Single files:
`paths.foreign`.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import tempfile
import time
from collections.abc import Collection, Iterable

from densegrpo_jax.runtime.agreement import Agreement
from densegrpo_jax.runtime.checkpoint_store import DOCUMENT
from densegrpo_jax.runtime.communicator import Communicator
from densegrpo_jax.runtime.files import LOCK, RECORD, replace_file
from densegrpo_jax.runtime.hosts import Hosts
from densegrpo_jax.runtime.journal import is_journal
from densegrpo_jax.runtime.paths import check_places
from densegrpo_jax.runtime.reading import parse_json, read_text, shown

SHARED_SECONDS = 30.0  # that a network file system may take to show a new file everywhere
SOON_SECONDS = 3.0  # as that, where separate folders are as good and every start waits for them
SHARED = {'text'}  # folders of files that are named by their content: nothing is overwritten there


def claim(
    folder: pathlib.Path,
    files: Collection[str],
    folders: Collection[str] = (),
    *,
    read: Iterable[pathlib.Path] = (),
    closed: Iterable[pathlib.Path] = (),
    hosts: Hosts | None = None,
) -> None:
    """Creates `folder` if needed and marks names in it as ours: this command and later ones may
    write them. Of a folder without marks that holds results of our commands, as a copy of one of an
    earlier version does, everything is ours.

    Args:
      files, folders: names directly in it.
      read: files and folders that the command reads.
      closed: folders of which every file is somebody's own, so that nothing is written anywhere in
        them.
      hosts: the processes that make this call together; None: this process alone.

    Raises:
      ValueError: the command would overwrite what it reads, or one of the names is of another kind
        or of another writer, or `folder` is in what a command of ours wrote. Raised before anything
        is written.
    """
    hosts = hosts or Hosts()
    with Agreement(hosts, 'outputs').alike():
        if hosts.primary:
            _check_above(folder)
            check_places(folder, files, folders)
            _check_inputs(folder, (*files, *folders), read, closed)
            _mark(folder, {*files, *folders})


def _check_above(folder: pathlib.Path) -> None:
    """Raises ValueError if `folder` has no marks yet and is in one that our commands write."""
    if (folder / RECORD).exists():
        return
    place = folder.resolve()
    for above in (above for above in place.parents if (above / RECORD).is_file()):
        name = place.relative_to(above).parts[0]
        if name in parse_json(read_text(above / RECORD), str(above / RECORD), list):
            inside = '' if place == above / name else f'in {above / name}, which is '
            raise ValueError(
                f'{folder} is {inside}part of the results in {above}: name a folder outside it'
            )


def check_shared(folder: pathlib.Path, hosts: Hosts) -> None:
    """Raises ValueError in all processes if one of them does not see in `folder`, which exists,
    what process 0 writes there: each has a folder of its own.
    """
    if hosts.count == 1:
        return
    agreement, made = Agreement(hosts, 'shared'), None
    try:
        with agreement.alike():
            if hosts.primary:
                made = _new_file(folder)
        name = agreement.poll(made and os.path.basename(made))[0]
        with agreement.alike():
            if not _appears(folder / name, SHARED_SECONDS):
                raise ValueError(
                    f'{folder} is not the folder of that name that process 0 writes to: name '
                    'one that all processes of the run share'
                )
    finally:
        if made:
            os.unlink(made)


def is_shared(folder: pathlib.Path, communicator: Communicator) -> bool:
    """Whether all processes of the run see in `folder`, which process 0 makes, what it writes
    there. False as well if it cannot write there, or if a file is seen late: then each process does
    for itself what one could do for all. All must call it; raises as `Communicator.exchange`.
    """
    made = None
    try:
        if communicator.hosts.primary:
            with contextlib.suppress(OSError):
                folder.mkdir(parents=True, exist_ok=True)
                made = _new_file(folder)
        name = communicator.exchange(os.path.basename(made or '').encode())[0].decode()
        seen = bool(name) and _appears(folder / name, SOON_SECONDS)
        return all(map(bool, communicator.exchange(b'seen' if seen else b'')))
    finally:
        if made:
            os.unlink(made)


def _new_file(folder: pathlib.Path) -> str:
    """Makes a file whose name no process has looked for: network file systems keep answers."""
    number, made = tempfile.mkstemp(prefix='.shared_', dir=folder)
    os.close(number)
    return made


def _appears(path: pathlib.Path, seconds: float) -> bool:
    """Whether a file is there within some seconds."""
    until = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() >= until:
            return False
        time.sleep(0.1)
    return True


def _check_inputs(
    folder: pathlib.Path,
    names: Iterable[str],
    read: Iterable[pathlib.Path],
    closed: Iterable[pathlib.Path],
) -> None:
    for other in (other for other in read if other.exists()):
        if folder.exists() and os.path.samefile(folder, other):
            raise ValueError(
                f'the output folder {folder} is {other}, which this command reads and would '
                'overwrite; name another folder'
            )
        within = lambda name: other.resolve().is_relative_to((folder / name).resolve())  # noqa: B023
        if hit := next(filter(within, names), None):
            raise ValueError(
                f'this command reads {other} and would overwrite it, as it writes '
                f'{folder / hit}; name another folder'
            )
    for other in closed:
        if folder.resolve().is_relative_to(other.resolve()):
            raise ValueError(
                f'the output folder {folder} is in {other}, which this command reads; name a '
                'folder outside it'
            )


def _mark(folder: pathlib.Path, names: set[str]) -> None:
    record = folder / RECORD
    if record.exists():
        ours = parse_json(read_text(record), str(record), list)
    else:
        ours = sorted({*os.listdir(folder)} - {LOCK}) if _has_results(folder) else []
    if not all(isinstance(name, str) for name in ours):
        raise ValueError(f'{record} holds {shown(ours)}; expected names of files: remove it')
    strangers = sorted(n for n in names - {*ours, *SHARED} if os.path.lexists(folder / n))
    if strangers:
        raise ValueError(
            f'{folder} holds {", ".join(strangers[:3])}, which this command did not write: name '
            'another folder, or move that away'
        )
    folder.mkdir(parents=True, exist_ok=True)
    if not names <= {*ours}:
        replace_file(record, json.dumps(sorted({*ours, *names})) + '\n')


def _has_results(folder: pathlib.Path) -> bool:
    checkpoints = (folder.glob(f'checkpoints/{steps}/meta/{DOCUMENT}') for steps in ('*', '*/*'))
    return any(map(any, checkpoints)) or any(
        map(is_journal, filter(pathlib.Path.is_file, folder.glob('*.jsonl')))
    )
