"""Writes files that are always whole: they have the old or the new content, whatever happens. Also
ensures that a folder has one writer.
"""

import contextlib
import errno
import fcntl
import os
import pathlib
import re
import socket
import time
from collections.abc import Iterable
from typing import NamedTuple

from absl import logging

from densegrpo_jax.runtime.agreement import Agreement
from densegrpo_jax.runtime.hosts import Hosts

# a file in folders that a run writes or wrote to; the system's lock on it counts, not its existence
LOCK = 'lock'
RECORD = '.densegrpo.json'  # lists the names of what our commands wrote in a folder (`outputs`)
TEMPORARY = '.tmp'  # ends the names of files that are being written, or of which a kill left a part
# what LOCK holds; earlier versions named no command
_HOLDER = re.compile(r'process \d+(?: of (?P<command>[\w-]+))? on (?P<machine>.+)')
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
# Seconds to wait for the holder. A process killed on this machine may still be releasing its
# memory. If its machine is gone, a file server waits until the lease has expired.
_PATIENCE_HERE, _PATIENCE_ELSEWHERE = 5.0, 120.0

# tensorstore raises ValueError for every cause; the system's error is in its text.
_SYSTEM_SAID = tuple(
    map(
        os.strerror,
        (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EMFILE, errno.ENFILE),
    )
)


@contextlib.contextmanager
def naming(path: str | os.PathLike):
    """A context in which an error of the system that names no file names this one."""
    try:
        yield
    except OSError as error:
        if error.errno and error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


@contextlib.contextmanager
def replacing(path: pathlib.Path):
    """A binary file to write to, which takes its name in one step: if the process is killed or the
    machine stops, the old or the new file remains. If writing fails, as on a full disk, the old
    file remains, and the OSError names it.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    with naming(path):
        try:
            with open(temporary, 'wb') as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def replace_file(path: pathlib.Path, content: bytes | str) -> None:
    """Writes a whole file, see `replacing`; a str as UTF-8."""
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def move_images(old: pathlib.Path, new: pathlib.Path, names: Iterable[str]) -> None:
    """Moves files of earlier versions from the folder `old` to `new`, unless they are there.

    names: of the files in the folder; a name may have folders.
    """
    for name in names:
        if (old / name).is_file() and not (new / name).exists():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            (old / name).rename(new / name)
    remove_files(old, ())


def remove_files(folder: pathlib.Path, names: Iterable[str]) -> None:
    """Removes these files, then the folders in `folder` that are empty, and `folder` itself if it
    is. Others stay.
    """
    for name in names:
        (folder / name).unlink(missing_ok=True)
    for each in (*folder.glob('*/'), folder):
        with contextlib.suppress(OSError):
            each.rmdir()


@contextlib.contextmanager
def only_writer(folder: pathlib.Path, hosts: Hosts, command: str = ''):
    """A context during which no other run writes to `folder`, which is made if absent; the primary
    process holds FOLDER/lock, which is released however the process ends. A folder in which nothing
    was written is left as it was.

    Args:
      command: the name of this process's, for those who find the lock held; '' = none.

    Raises:
      ValueError: another run writes there; raised in all processes.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    file = None
    with Agreement(hosts, 'lock').alike():
        if hosts.primary:
            left = {LOCK} - {*os.listdir(folder)}  # what goes if nothing else comes
            file = lock(folder, command)
            names = {*os.listdir(folder)}  # another run may have held it
            left |= {RECORD} - names
    if file is None:
        yield
        return
    with file:
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails where there are no locks
                if {*os.listdir(folder)} <= {*names, LOCK, RECORD}:
                    for name in left:
                        (folder / name).unlink(missing_ok=True)
                    for path in made:
                        path.rmdir()


def lock(folder: pathlib.Path, command: str = ''):
    """FOLDER/lock, open; no other process has it until the file is closed. See `only_writer`."""
    here, began = socket.gethostname(), time.monotonic()
    file = open(folder / LOCK, 'a+', encoding='utf-8')  # noqa: SIM115 (closing it gives the lock back)
    waits = False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(folder / LOCK, file):
                break
            file.close()  # the holder has removed it
            folder.mkdir(parents=True, exist_ok=True)
            file = open(folder / LOCK, 'a+', encoding='utf-8')  # noqa: SIM115
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or 'an unnamed process'
            if time.monotonic() - began >= (
                _PATIENCE_HERE if holder.endswith(f' on {here}') else _PATIENCE_ELSEWHERE
            ):
                file.close()
                raise ValueError(
                    f'{folder} is being written to by another run: {holder} holds {file.name}. '
                    'Wait until it has ended, end it, or give '
                    "another --workdir (--out); two runs in one folder would remove each other's "
                    'files'
                ) from None
            if not waits:
                logging.warning('%s is in use by %s; waiting for it to end', folder, holder)
            waits = True
            time.sleep(0.5)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            logging.warning(
                '%s: this file system has no locks (%s); see to it that no second run writes to '
                'that folder',
                folder,
                error,
            )
            break
    file.truncate(0)
    of = f' of {command}' if command else ''
    file.write(f'process {os.getpid()}{of} on {here}\n')
    file.flush()
    return file


def _is_at(path: pathlib.Path, file) -> bool:
    """Whether an open file is the one at this path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


class Holder(NamedTuple):
    """Of a folder's lock (`only_writer`).

    held: whether a process of this machine has it. None: that cannot be told, as the last one that
      wrote to the folder was on another machine.
    command: of that process; '' = it is not known.
    """

    held: bool | None
    command: str = ''


def holder(folder: pathlib.Path) -> Holder:
    """Who holds FOLDER/lock."""
    path = folder / LOCK
    if not path.is_file():
        return Holder(None)
    try:
        with open(path, encoding='utf-8') as file:
            said = _HOLDER.fullmatch(file.read(1000).strip())
            command = (said and said['command']) or ''
            if not said or said['machine'] != socket.gethostname():
                return Holder(None, command)
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # given back with the file
            except BlockingIOError:
                return Holder(True, command)
            return Holder(False, command)
    except (OSError, ValueError):
        return Holder(None)


def may_pass(error: BaseException) -> bool:
    """Whether a read failed because of the machine, not because of the stored bytes."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, OSError):
        return not isinstance(error, FileNotFoundError | PermissionError)
    return isinstance(error, ValueError) and any(said in str(error) for said in _SYSTEM_SAID)
