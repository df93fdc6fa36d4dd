"""What a command writes never takes the place of what it read, nor of what somebody else wrote."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Collection, Iterable

from densegrpo_jax.runtime.files import replace_file
from densegrpo_jax.runtime.reading import parse_json, read_text

RECORD = '.densegrpo.json'  # in an output folder: the names in it that a command of ours wrote


def claim(folder: pathlib.Path, names: Collection[str], read: Iterable[pathlib.Path] = ()) -> None:
    """Makes `folder` if need be and marks `names` in it as ours: they may be written now, and again
    by a later command.

    Args:
      names: files and folders directly in it. read: folders that the command reads.

    Raises:
      ValueError: the folder is one of those, or holds one of the names from somebody else; before
        anything is written.
    """
    for other in read:
        if folder.exists() and other.exists() and os.path.samefile(folder, other):
            raise ValueError(
                f'--out={folder} is {other} itself, which is read here: what is written would take '
                'its place; name another folder'
            )
    record = folder / RECORD
    known = parse_json(read_text(record), str(record), list) if record.exists() else []
    if strangers := sorted(n for n in names if os.path.lexists(folder / n) and n not in known):
        raise ValueError(
            f'--out={folder} holds {", ".join(strangers[:3])}, which this command did not write: '
            'name another folder, or move that away'
        )
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(record, json.dumps(sorted({*known, *names})) + '\n')
