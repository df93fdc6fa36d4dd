"""Prompts from tables: CSV and Parquet files, one prompt per row. The other columns of a row are
its prompt's metadata.
"""

from __future__ import annotations

import csv
import io
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from absl import logging

from densegrpo_jax.data.geneval import check_metadata
from densegrpo_jax.data.prompts import Prompt, PromptSet, check_text, ocr_prompt
from densegrpo_jax.runtime.reading import missing, parse_json, read_text, shown

COLUMN = 'prompt'  # unless the name says another
# FILE.csv, FILE.parquet, or either with :COLUMN
FILE = re.compile(r'(?P<path>.+\.(?P<kind>csv|parquet))(?::(?P<column>[^:]+))?', re.IGNORECASE)
# A table with these columns holds GenEval prompts, whose metadata is checked (`data.geneval`).
GENEVAL = ('tag', 'include')
NEEDS = "needs pyarrow: pip install 'densegrpo_jax[parquet]', or pip install pyarrow"


class Table(NamedTuple):
    """A table whose rows can be read once.

    name: for messages. columns: all of them. rows: (place for messages, column -> value), without
    the empty cells. unread: columns that the rows leave out, and what they hold.
    """

    name: str
    columns: list[str]
    rows: Iterator[tuple[str, dict[str, Any]]]
    unread: Mapping[str, str] = {}


def file_prompts(path: str, column: str = '', *, quoted_target: bool) -> PromptSet:
    """The prompts of a .csv or .parquet file, see `table_prompts`.

    Raises:
      FileNotFoundError: no such file.
      ModuleNotFoundError: a Parquet file, without pyarrow.
      ValueError: the file is not such a table, or as `table_prompts`.
    """
    parquet = path.lower().endswith('.parquet')
    table = read_parquet([path], path) if parquet else read_csv(path)
    return table_prompts(table, column, quoted_target=quoted_target)


def table_prompts(table: Table, column: str = '', *, quoted_target: bool) -> PromptSet:
    """The prompts of a table, in its order. Rows without a prompt are left out, with a warning.

    A row of a table with the columns `tag` and `include` is a GenEval prompt: of the columns, those
    that GenEval knows are its metadata, and text in them is parsed as JSON. In other tables every
    other column is metadata.

    Args:
      column: that holds the prompts; '' = `COLUMN`.
      quoted_target: as in `PromptSet.from_text`; a column `target` serves as well.

    Raises:
      ValueError: there is no such column, no prompt, or a row cannot be used; the message names the
        table and the row.
    """
    column = column or COLUMN
    if column not in table.columns:
        raise ValueError(
            f'{table.name}: there is no column {column!r}; its columns: '
            f'{", ".join(map(repr, table.columns)) or "none"}. {_way_out(table)}'
        )
    if table.unread.get(column):
        raise ValueError(
            f'{table.name}: the column {column!r} holds {table.unread[column]}; expected text'
        )
    geneval = set(GENEVAL) <= set(table.columns)
    prompts, empty = [], 0
    for place, row in table.rows:
        text = row.pop(column, '')
        if not isinstance(text, str):
            raise ValueError(
                f'{place}: {column} holds {shown(text)}; expected the text of a prompt'
            )
        if not (text := check_text(text, place)):
            empty += 1
            continue
        prompts.append(
            _geneval(text, row, place) if geneval else _plain(text, row, place, quoted_target)
        )
    if not prompts:
        raise ValueError(f'{table.name}: the column {column!r} holds no prompt')
    if empty:
        logging.warning(
            '%s: %d of %d rows have no %s and are left out',
            *(table.name, empty, empty + len(prompts), column),
        )
    return PromptSet(tuple(prompts))


def _way_out(table: Table) -> str:
    """What to do about a missing column."""
    if len(table.columns) == 1 and (mark := re.search('[;\t|]', table.columns[0])):
        return f'Save the table with commas between the values, not {mark[0]!r}'
    named = next(filter(None, table.columns), 'text')
    return f'Name one after a colon, as {table.name.partition("@")[0]}:{named}'


def _plain(text: str, row: dict, place: str, quoted_target: bool) -> Prompt:
    target = row.get('target')
    if quoted_target and target is None:
        return Prompt(text, {**row, **ocr_prompt(text, place).metadata})
    if quoted_target and not isinstance(target, str):
        raise ValueError(
            f'{place}: target holds {shown(target)}; expected the text that the image shows'
        )
    return Prompt(text, row)


def _geneval(text: str, row: dict, place: str) -> Prompt:
    """A GenEval prompt. Tables cannot hold [relation, index], so an index may be text there."""
    found = {'prompt': text, 'tag': row.get('tag')}
    for key in ('include', 'exclude'):
        if key in row:
            value = row[key]
            where = f'{place}: {key}'
            found[key] = parse_json(value, where, list) if isinstance(value, str) else value
    for clause in found.get('include', ()):
        position = clause.get('position') if isinstance(clause, dict) else None
        if isinstance(position, list) and len(position) == 2 and str(position[1]).isdecimal():
            clause['position'] = [position[0], int(position[1])]
    try:
        check_metadata(found)
    except ValueError as error:
        raise ValueError(f'{place}: not a GenEval prompt: {error}') from None
    return Prompt(text, found)


def read_csv(path: str | pathlib.Path) -> Table:
    """A file of values with commas between them, the columns' names in its first line; quotes,
    line breaks in quotes and encodings as usual (`read_text`).

    Raises:
      FileNotFoundError: no such file.
      ValueError: it is not text (now), or a row has other columns than the first line (when read).
    """
    reader = csv.reader(io.StringIO(read_text(path, 'prompt file')), strict=True)
    try:
        columns = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise ValueError(f'{path}:1: not CSV: {error}') from None
    _check_names(columns, f'{path}:1')

    def rows() -> Iterator[tuple[str, dict[str, Any]]]:
        try:
            for cells in reader:
                place = f'{path}:{reader.line_num}'
                if cells and len(cells) != len(columns):
                    raise ValueError(
                        f'{place}: {len(cells)} values, but the first line names {len(columns)} '
                        'columns; put quotes around a value with a comma in it'
                    )
                if cells:
                    yield place, {name: cell for name, cell in zip(columns, cells) if cell}
        except csv.Error as error:
            raise ValueError(f'{path}:{reader.line_num}: not CSV: {error}') from None

    return Table(str(path), columns, rows())


def _check_names(columns: Sequence[str], where: str) -> None:
    if twice := [name for i, name in enumerate(columns) if name in columns[:i]]:
        raise ValueError(f'{where}: two columns are called {twice[0]!r}; rename one')


def read_parquet(paths: Sequence[str | pathlib.Path], name: str) -> Table:
    """One table of Parquet files with the same columns. Only columns of text, numbers and truth
    values, and lists and structures of them, are read: not pictures, for example.

    Raises:
      FileNotFoundError: no such file.
      ModuleNotFoundError: pyarrow is absent.
      ValueError: a file is not Parquet (now), or is damaged (when read).
    """
    paths = [*map(pathlib.Path, paths)]
    for path in paths:
        if not path.is_file():
            raise missing(path, f'prompt file {path}')
    try:
        from pyarrow import lib, parquet
    except ImportError:
        raise ModuleNotFoundError(f'{name}: reading Parquet {NEEDS}') from None

    files, columns, unread = [], [], {}
    for path in paths:
        try:
            files.append(parquet.ParquetFile(path))
        except (lib.ArrowException, OSError) as error:
            raise ValueError(f'{path}: not a Parquet file: {str(error).splitlines()[0]}') from None
        schema = files[-1].schema_arrow
        _check_names(schema.names, str(path))
        columns += [c for c in schema.names if c not in columns]
        unread |= {
            f.name: f'values of Arrow type {f.type}' for f in schema if not _is_plain(f.type)
        }

    def rows() -> Iterator[tuple[str, dict[str, Any]]]:
        number = 0
        for file, path in zip(files, paths):
            plain = [f.name for f in file.schema_arrow if _is_plain(f.type)]
            try:
                for batch in file.iter_batches(columns=plain):
                    for row in batch.to_pylist():
                        number += 1
                        yield f'{name}, row {number}', _without_none(row)
            except (lib.ArrowException, OSError, UnicodeDecodeError) as error:
                said = str(error).splitlines()[0]
                raise ValueError(f'{path}: damaged after row {number}: {said}') from None

    return Table(name, columns, rows(), unread)


def _is_plain(kind: Any) -> bool:
    """Whether values of an Arrow type are JSON's."""
    from pyarrow import types

    if types.is_dictionary(kind):
        return _is_plain(kind.value_type)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _is_plain(kind.value_type)
    if types.is_struct(kind):
        return all(_is_plain(field.type) for field in kind)
    tests = (types.is_string, types.is_large_string, types.is_integer, types.is_floating)
    return types.is_boolean(kind) or any(test(kind) for test in tests)


def _without_none(value: Any) -> Any:
    """A row's value without absent parts: in Parquet a structure has all of its fields."""
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    return [_without_none(v) for v in value] if isinstance(value, list) else value
