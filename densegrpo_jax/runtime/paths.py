"""Checks which folders the libraries can work in, and which files can be written."""

import os
import pathlib
import shutil
from collections.abc import Callable, Iterable

from densegrpo_jax.runtime.reading import kind


def folder_problem(folder: str | pathlib.Path) -> str | None:
    """What is wrong with a folder, which need not exist yet, and what to do; None if nothing is."""
    if found := problem(folder):
        return found
    path = pathlib.Path(folder).expanduser().absolute()
    try:
        for place in (path, *path.parents):
            if os.path.lexists(place) and not place.is_dir():
                what = 'a link to nothing' if place.is_symlink() else kind(place)
                return f'{place} is {what}, where a folder is needed; name another'
    except OSError as error:
        return f'{error.strerror}; name another'
    return None


def problem(name: str | pathlib.Path) -> str | None:
    """What is wrong with the name of a folder or file, and what to do; None if nothing is.

    Every character that the file system allows works, except those named here.
    """
    text = str(name)
    if not text.strip():
        return 'it is empty: is a variable of the shell unset? Name a folder, . for this one'
    if '://' in text:  # else a folder of that name would be created, where nobody looks
        return (
            'expected a folder of this machine; mount the bucket (launch/tpu.sh setup --bucket=B '
            'does, at ~/bucket) and name the folder there'
        )
    full = str(pathlib.Path(text).expanduser().absolute())
    if '\\' in full:
        return (
            f'{full} has a backslash, which tensorstore takes for a slash; use a path without one'
        )
    try:
        full.encode()
    except UnicodeEncodeError:
        return f'{ascii(full)} is not UTF-8, which tensorstore needs; use a path that is'
    return None


def output_problem(file: str | pathlib.Path, suffix: str) -> str | None:
    """What is wrong with the name of a file to write, and what to do; None if nothing is. Writes
    nothing.

    Args:
      suffix: that the name must have, as '.png'.
    """
    if found := problem(file):
        return found
    path = pathlib.Path(file).expanduser().absolute()
    if path.is_dir():
        return f'{path} is a folder; name a file in it, as {path / ("name" + suffix)}'
    if path.suffix.lower() != suffix:
        return f'expected a name that ends in {suffix}, as {path.stem}{suffix}'
    if found := folder_problem(path.parent):
        return found
    there = next(folder for folder in path.parents if folder.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        return f'nothing can be written into {there}; name another place'
    return None


def foreign(
    file: str | pathlib.Path, ours: Callable[[pathlib.Path], bool] | None = None
) -> str | None:
    """What is wrong with a file to write, and what to do, if something of that name is there and
    `ours` does not know it as this command's; else None. Without `ours` nothing there is.
    """
    path = pathlib.Path(file).expanduser()
    if os.path.lexists(path) and not (ours and ours(path)):
        return f'{path} is there, and this command did not write it: name another, or move it away'
    return None


def check_places(folder: pathlib.Path, files: Iterable[str], folders: Iterable[str]) -> None:
    """Raises ValueError if one of the names that a command writes in `folder` is there, and is of
    the other kind or a link to nothing.
    """
    for name in (*files, *folders):
        path, wanted = folder / name, 'a file' if name in files else 'a folder'
        fits = path.is_file() if name in files else path.is_dir()
        if os.path.lexists(path) and not fits:
            raise ValueError(
                f'{path} is {kind(path)}, and this command writes {wanted} of that name: move it '
                'away, or name another folder'
            )


def check_room(folder: pathlib.Path, size: float, what: str) -> None:
    """Raises ValueError if `size` bytes of `what`, written into `folder`, would fill its disk."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    free = shutil.disk_usage(there).free
    if size > free:
        raise ValueError(
            f'{what} takes {_bytes(size)} in {folder}, whose disk has {_bytes(free)} left: make '
            'room, or name another folder'
        )


def _bytes(size: float) -> str:
    return f'{size / 2**30:.2f} GiB' if size >= 2**29 else f'{size / 2**20:.2f} MiB'


def writable(path: str | pathlib.Path) -> pathlib.Path:
    """The absolute path of a file to write, which can be made; leaves nothing behind.

    Raises:
      OSError: it cannot; names the folder.
    """
    file = pathlib.Path(path).expanduser().absolute()
    there = next(folder for folder in file.parents if folder.exists())
    trial = there / f'.{file.name}.trial'
    trial.touch()
    trial.unlink(missing_ok=True)  # another process of the run may have been here
    return file
