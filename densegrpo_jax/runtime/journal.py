"""A file to which a long task appends its results, one JSON object a line."""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Collection, Mapping, Sequence

from densegrpo_jax.runtime.files import naming, replace_file
from densegrpo_jax.runtime.reading import check_file, parse_json, shaped

_SETTINGS = b'{"settings": '


def rows_left(path: pathlib.Path, form: Collection[str]) -> list[dict]:
    """The objects with these keys in a file that may be damaged, or no Journal at all."""
    rows = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        with contextlib.suppress(ValueError):
            row = parse_json(line.decode(), 'the line')
            rows += [row] if set(form) <= row.keys() else []
    return rows


def is_journal(path: pathlib.Path) -> bool:
    """Whether a file is a Journal that begins with settings, perhaps a damaged one."""
    with open(path, 'rb') as file:
        return file.read(len(_SETTINGS)) == _SETTINGS


class Journal:
    """The objects in the file so far, and those that are added. A last line that a stopped process
    left incomplete is dropped.

    Attributes:
      rows: the objects, oldest first.

    Args:
      path: the file; its folder exists. restart: forget what it holds.
      forms: of each kind of line; a line has all keys of one, and, if that is a mapping, values of
        its types (`reading.shaped`). (): any.
      remedy: what to do about a damaged one.

    Raises:
      ValueError: a line is not a JSON object of such a form; the message names its number.
    """

    def __init__(
        self,
        path: pathlib.Path,
        *,
        restart: bool = False,
        forms: Sequence[Collection[str]] = (),
        remedy: str = 'start anew with --restart',
    ):
        self._path, self._forms, self._remedy = path, forms, remedy
        if restart:
            path.unlink(missing_ok=True)
        if path.exists():
            check_file(path)
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith(b'\n')]
        self.rows = [self._parsed(line, number) for number, line in enumerate(whole, start=1)]
        if whole != lines:
            replace_file(path, b''.join(whole))

    def append(self, row: Mapping) -> None:
        """Adds an object of finite numbers."""
        text = json.dumps(row, allow_nan=False)
        with naming(self._path), open(self._path, 'a', encoding='utf-8') as file:
            file.write(text + '\n')
        self.rows.append(json.loads(text))

    def _parsed(self, line: bytes, number: int) -> dict:
        try:
            row = parse_json(line.decode(), 'the line')
            form = next((form for form in self._forms if {*form} <= {..., *row}), None)
            if self._forms and form is None:
                raise ValueError(f'it holds {", ".join(row) or "nothing"}')
            if isinstance(form, Mapping):
                shaped(row, form, 'the line')
        except ValueError as error:
            raise ValueError(
                f'{self._path}:{number} is damaged ({error}); {self._remedy}, or remove that line'
            ) from None
        return row
