"""Output folders: a command never overwrites its own input, nor files that others wrote."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Collection, Iterable

from densegrpo_jax.runtime.files import replace_file
from densegrpo_jax.runtime.reading import parse_json, read_text, shown

RECORD = '.densegrpo.json'  # in an output folder: lists the names that our commands wrote there


def claim(
    folder: pathlib.Path,
    names: Collection[str],
    read: Iterable[pathlib.Path] = (),
    closed: Iterable[pathlib.Path] = (),
) -> None:
    """Creates `folder` if needed and marks `names` in it as ours: this command and later ones may
    write them.

    Args:
      names: files and folders directly in it. read: folders that the command reads. closed: those
        of which every file is somebody's own, so that nothing is written anywhere in them.

    Raises:
      ValueError: the command reads from the folder, or the folder holds one of the names from
        another writer. Raised before anything is written.
    """
    for other in read:
        if folder.exists() and other.exists() and os.path.samefile(folder, other):
            raise ValueError(
                f'--out={folder} is {other}, which this command reads and would overwrite; name '
                'another folder'
            )
    for other in closed:
        if folder.resolve().is_relative_to(other.resolve()):
            raise ValueError(
                f'--out={folder} is in {other}, which this command reads; name a folder outside it'
            )
    record = folder / RECORD
    known = parse_json(read_text(record), str(record), list) if record.exists() else []
    if not all(isinstance(name, str) for name in known):
        raise ValueError(f'{record} holds {shown(known)}; expected names of files: remove it')
    if strangers := sorted(n for n in names if os.path.lexists(folder / n) and n not in known):
        raise ValueError(
            f'--out={folder} holds {", ".join(strangers[:3])}, which this command did not write: '
            'name another folder, or move that away'
        )
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(record, json.dumps(sorted({*known, *names})) + '\n')
