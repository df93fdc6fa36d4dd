"""Reads text, JSON and tables that people or other tools wrote. Refusals are one line that names
the file, the place and what is expected.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import pathlib
import sys
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

_MARKS = {
    codecs.BOM_UTF8: 'utf-8-sig',
    codecs.BOM_UTF32_LE: 'utf-32',  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: 'utf-32',
    codecs.BOM_UTF16_LE: 'utf-16',
    codecs.BOM_UTF16_BE: 'utf-16',
}
_KINDS = {
    dict: 'an object',
    list: 'a list',
    str: 'text',
    int: 'a number',
    float: 'a number',
    bool: 'true or false',
    type(None): 'null',
}
MOST_NESTED = 100  # brackets within brackets: what works with the values calls itself for each


def read_text(path: str | pathlib.Path, what: str = '') -> str:
    """The text of a file, as editors of all systems write it: UTF-8, with or without a byte order
    mark, or UTF-16 or UTF-32 with one. Line ends become newlines.

    Args:
      what: the kind of file, for messages: 'prompt file'.

    Raises:
      FileNotFoundError: as `check_file`.
      OSError: the file cannot be read.
      ValueError: bytes of another encoding, or NUL characters; the message names the line.
    """
    path, name = pathlib.Path(path), f'{what} {path}'.strip()
    check_file(path, name)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    encoding = next((e for mark, e in _MARKS.items() if data.startswith(mark)), 'utf-8')
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b'\n') + 1
        raise ValueError(
            f'{name}, line {line}: byte {data[error.start]:#04x} is not {encoding.upper()}; save '
            'the file as UTF-8'
        ) from None
    text = text.replace('\r\n', '\n').replace('\r', '\n')
    if '\0' in text:
        line = text[: text.index('\0')].count('\n') + 1
        raise ValueError(
            f'{name}, line {line}: a NUL character; this is not text, or UTF-16 without its mark: '
            'save the file as UTF-8'
        )
    return text


def parse_json(text: str, where: str, kind: type | tuple[type, ...] = dict) -> Any:
    """The JSON value of a text.

    Args:
      where: the text's source, for messages. kind: of the top-level value.

    Raises:
      ValueError: not JSON, nested too deeply, or a value of another kind.
    """
    try:
        value = json.loads(text.lstrip('\ufeff'))  # of files that were joined
    except json.JSONDecodeError as error:
        place = f'line {error.lineno}, column {error.colno}: {error.msg}'
        raise ValueError(f'{where} is not valid JSON: {place}') from None
    except RecursionError:
        raise ValueError(f'{where} is not usable JSON: brackets nested too deeply') from None
    except ValueError as error:  # a number of more than 4,300 digits
        raise ValueError(f'{where} is not usable JSON: {error}') from None
    check_depth(value, where)
    if not isinstance(value, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        raise ValueError(f'{where} holds {shown(value)}; expected {_told(kinds)}')
    return value


def check_depth(value: Any, where: str) -> None:
    """Raises ValueError if objects and lists are nested more than `MOST_NESTED` deep."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MOST_NESTED):
        inner = (part.values() if isinstance(part, dict) else part for part in level)
        # by their identity, else YAML's references would multiply them
        level = [*{id(x): x for part in inner for x in part if isinstance(x, dict | list)}.values()]
        if not level:
            return
    raise ValueError(f'{where} is not usable JSON: brackets nested too deeply')


def finite(value: Any) -> bool:
    """Whether a parsed value is a finite number, of a size that a float can have."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) <= sys.float_info.max


def shaped(value: Any, form: Any, where: str) -> Any:
    """The parts of a parsed value that `form` declares.

    Args:
      form: a type or several (`int | None`; whole numbers are floats too), [form] for a list, or
        {key: form}, where the key `...` stands for all others. A key that may be absent has None
        among its types.
      where: the value's source, for messages.

    Raises:
      ValueError: a part is absent, of another type or not finite; the message names it.
    """
    if isinstance(form, list) and isinstance(value, list):
        return [shaped(part, form[0], f'{where}[{i}]') for i, part in enumerate(value)]
    if isinstance(form, dict) and isinstance(value, dict):
        keys = {**form, **value} if ... in form else form
        return {
            key: shaped(value.get(key), form.get(key, form.get(...)), f'{where}: {key}')
            for key in keys
            if key is not ...
        }
    kinds = (type(form),) if isinstance(form, dict | list) else typing.get_args(form) or (form,)
    fits = type(value) in kinds
    if type(value) in (int, float):
        fits = finite(value) and (fits or float in kinds)
    if not fits:
        raise ValueError(f'{where} is {shown(value)}; expected {_told(kinds)}')
    return value


def _told(kinds: Collection[type]) -> str:
    return ' or '.join(dict.fromkeys(_KINDS[kind] for kind in kinds))


def read_json(
    path: str | pathlib.Path, holds: str = '', kind: type | tuple[type, ...] = dict
) -> Any:
    """The JSON value of a file.

    Args:
      holds: what the folder should be, for the message about a missing file.

    Raises:
      FileNotFoundError: no such file.
      OSError: the file cannot be read.
      ValueError: as in `read_text` and `parse_json`.
    """
    path = pathlib.Path(path)
    check_file(path, holds=holds)
    return parse_json(read_text(path), str(path), kind)


def json_lines(path: str | pathlib.Path) -> Iterator[tuple[int, dict]]:
    """(line number, object) of a file with one JSON object per line; blank lines are skipped.

    Raises:
      As `read_json`; with the line's number.
    """
    # not splitlines: JSON may hold U+2028 and other line separators unescaped
    for number, line in enumerate(read_text(path).split('\n'), start=1):
        if line.strip():
            yield number, parse_json(line, f'{path}:{number}')


def read_table(
    path: str | pathlib.Path,
    texts: Collection[str],
    numbers: Collection[str] | None = (),
    rename: Callable[[Mapping], Mapping] = dict,
) -> list[dict]:
    """The rows of a CSV file with a header.

    Args:
      texts, numbers: columns that it must have; cells of `numbers` become float, empty ones nan.
        None: all columns but `texts`.
      rename: applied to every row first; earlier versions had other columns.

    Raises:
      FileNotFoundError, OSError: as in `read_text`.
      ValueError: as in `read_text`; a column is missing, a row is cut off, or a cell is no number.
    """
    table = csv.DictReader(io.StringIO(read_text(path), newline=''))
    try:
        return _rows(table, path, texts, numbers, rename)
    except csv.Error as error:  # a cell of more than 128 KiB
        raise ValueError(f'{path}, line {table.line_num}: not CSV: {error}') from None


def _rows(
    table: csv.DictReader,
    path: str | pathlib.Path,
    texts: Collection[str],
    numbers: Collection[str] | None,
    rename: Callable[[Mapping], Mapping],
) -> list[dict]:
    rows = []
    known = rename(dict.fromkeys(table.fieldnames or (), ''))
    if numbers is None:
        numbers = [name for name in known if name not in texts]
    wanted = [*texts, *numbers]
    if absent := [name for name in wanted if name not in known]:
        raise ValueError(
            f'{path} has no column {", ".join(absent)}, but {", ".join(known) or "no header"}: it '
            'is not a table that this command wrote'
        )
    for row in table:
        found = dict(rename(row))
        where = f'{path}, line {table.line_num}'
        if None in found.values() or None in found:
            raise ValueError(f'{where} does not have {len(known)} cells')
        for name in numbers:
            try:
                found[name] = float(found[name] or 'nan')
            except ValueError:
                raise ValueError(f'{where}: {name}={found[name]!r} is not a number') from None
        rows.append(found)
    return rows


def check_file(path: pathlib.Path, name: str = '', holds: str = '') -> None:
    """Call it before a file is opened: a pipe may never begin, and a device never end.

    Args: as `missing`; name: '' = the path.

    Raises:
      FileNotFoundError: there is no such file, or something else of that name.
    """
    if not path.is_file():
        raise missing(path, name or str(path), holds)


def missing(path: pathlib.Path, name: str, holds: str = '') -> FileNotFoundError:
    """The error for a file that is not there.

    Args:
      name: of the file, for the message. holds: what was expected.
    """
    if path.is_symlink() and not path.exists():
        found = f'{name} is a link to {path.readlink()}, which does not exist: fetch it again'
    elif path.exists():
        found = f'{name} is {kind(path)}, where a file is needed'
        found += ': write its content to one' if kind(path) == 'a pipe' else ''
    else:
        found = f'{name} does not exist'
    return FileNotFoundError(found + (f'; expected {holds}' if holds else ''))


def kind(path: pathlib.Path) -> str:
    """What there is of a name that is in use, for messages."""
    tests = {
        'a file': path.is_file,
        'a folder': path.is_dir,
        'a pipe': path.is_fifo,
        'a socket': path.is_socket,
        'a broken link': lambda: not path.exists(),
    }
    return next((name for name, holds in tests.items() if holds()), 'a device')


def shown(value: Any, length: int = 40) -> str:
    """A value for messages, shortened."""
    text = repr(value)
    return text if len(text) <= length else f'{text[: length - 3]}...'
