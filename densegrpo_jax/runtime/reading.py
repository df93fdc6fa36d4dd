"""Reads text, JSON and tables that people or other tools wrote. Refusals are one line that names
the file, the place and what is expected.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import pathlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

_MARKS = {
    codecs.BOM_UTF8: 'utf-8-sig',
    codecs.BOM_UTF32_LE: 'utf-32',  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: 'utf-32',
    codecs.BOM_UTF16_LE: 'utf-16',
    codecs.BOM_UTF16_BE: 'utf-16',
}
_KINDS = {dict: 'an object', list: 'a list', str: 'text', int: 'a number', float: 'a number'}


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
        value = json.loads(text)
    except json.JSONDecodeError as error:
        place = f'line {error.lineno}, column {error.colno}: {error.msg}'
        raise ValueError(f'{where} is not valid JSON: {place}') from None
    except RecursionError:
        raise ValueError(f'{where} is not usable JSON: brackets nested too deeply') from None
    if not isinstance(value, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        expected = ' or '.join(dict.fromkeys(_KINDS[k] for k in kinds))
        raise ValueError(f'{where} holds {shown(value)}; expected {expected}')
    return value


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


def json_lines(path: str | pathlib.Path, what: str = '') -> Iterator[tuple[int, dict]]:
    """(line number, object) of a file with one JSON object per line; blank lines are skipped.

    Raises:
      As `read_json`; with the line's number.
    """
    # not splitlines: JSON may hold U+2028 and other line separators unescaped
    for number, line in enumerate(read_text(path, what).split('\n'), start=1):
        if line.strip():
            yield number, parse_json(line, f'{path}:{number}')


def read_table(
    path: str | pathlib.Path,
    texts: Collection[str],
    numbers: Collection[str] = (),
    rename: Callable[[Mapping], Mapping] = dict,
) -> list[dict]:
    """The rows of a CSV file with a header.

    Args:
      texts, numbers: columns that it must have; cells of `numbers` become float, empty ones nan.
      rename: applied to every row first; earlier versions had other columns.

    Raises:
      FileNotFoundError, OSError: as in `read_text`.
      ValueError: as in `read_text`; a column is missing, a row is cut off, or a cell is no number.
    """
    rows = []
    table = csv.DictReader(io.StringIO(read_text(path), newline=''))
    wanted = [*texts, *numbers]
    known = rename(dict.fromkeys(table.fieldnames or (), ''))
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
