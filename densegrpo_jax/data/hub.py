"""Prompts from data sets of the Hugging Face Hub: their Parquet files, downloaded once.

A data set in another format has Parquet files too: the Hub converts it. What was downloaded serves
without network later.
"""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

from absl import logging

from densegrpo_jax.data.prompts import PromptSet
from densegrpo_jax.data.tables import read_parquet, table_prompts
from densegrpo_jax.runtime.files import replace_file
from densegrpo_jax.runtime.hub_errors import answered, not_fetched, raise_if_local, refused
from densegrpo_jax.runtime.reading import read_json

PREFIX = 'hf:'
NAME = re.compile(
    r'hf:(?P<repository>[\w.-]+/[\w.-]+)(?::(?P<column>[^:@]+))?(?:@(?P<split>[\w.-]+))?'
)
FORM = "'hf:OWNER/NAME', 'hf:OWNER/NAME:COLUMN' or 'hf:OWNER/NAME:COLUMN@SPLIT'"
# Where the Hub keeps what it converted: CONFIGURATION/SPLIT/0000.parquet.
CONVERTED = 'refs/convert/parquet'
# The split of data.train and of data.eval, unless the name says another.
SPLITS = {'train': 'train', 'eval': 'test'}
SHARD = re.compile(r'-(\d+)-of-(\d+)\.parquet$')


class Listing(NamedTuple):
    """A data set's Parquet files at one commit. revision: the commit. files: their names."""

    revision: str
    files: list[str]


def hub_prompts(name: str, use: str, *, quoted_target: bool) -> PromptSet:
    """The prompts of a data set of the Hub, see `tables.table_prompts`.

    Args:
      name: hf:OWNER/NAME[:COLUMN][@SPLIT].
      use: 'train' or 'eval', which have splits of their own (`SPLITS`).

    Raises:
      ValueError: the name has another form, or the data set no such split or column.
      FileNotFoundError: the data set cannot be reached and was not downloaded before.
      ModuleNotFoundError: pyarrow is absent.
    """
    match = NAME.fullmatch(name)
    if match is None:
        raise ValueError(f'{name!r} names no data set of the Hub; expected {FORM}')
    repository, split = match['repository'], match['split'] or SPLITS[use]
    listing = find(repository)
    files = of_split(listing.files, split, name)
    paths = [_download(repository, file, listing.revision) for file in files]
    table = read_parquet(paths, f'{PREFIX}{repository}@{split}')
    return table_prompts(table, match['column'] or '', quoted_target=quoted_target)


def find(repository: str) -> Listing:
    """The data set's Parquet files of today; without network, those at its last use.

    Raises:
      FileNotFoundError: as `hub_prompts`. OSError: the cache cannot be written.
    """
    import huggingface_hub
    from huggingface_hub import errors

    record = _record(repository)
    try:
        found = _ask(huggingface_hub.HfApi(), repository)
    except (errors.GatedRepoError, errors.RepositoryNotFoundError) as error:
        raise refused(f'the data set {repository!r}', error, 'terms', 'name') from None
    except (OSError, errors.HTTPError) as error:  # the latter of the Hub's HTTP library
        raise_if_local(error, repository)
        if record is None or not record.exists():
            told = f'the data set {repository!r} is not on this machine and could not be fetched'
            way_out = (
                'Use it once on a machine with network, or save it as a .parquet or .csv file and '
                'name that'
            )
            raise not_fetched(told, error, way_out) from None
        found = _stored(record)
        logging.warning(
            '%s; the data set %s is used as of its commit %s',
            answered(error) or 'the Hub cannot be reached',
            repository,
            found.revision[:8],
        )
        return found
    try:
        if record is not None:
            replace_file(record, json.dumps(found._asdict()) + '\n')
    except OSError as error:
        _warn(repository, error)
    return found


def _record(repository: str) -> pathlib.Path | None:
    """The file of the data set's listing; None if there is no place for it."""
    import huggingface_hub

    try:
        folder = huggingface_hub.cached_assets_path('densegrpo_jax', namespace='prompts')
    except OSError as error:
        return _warn(repository, error)
    return folder / f'{repository.replace("/", "--")}.json'


def _warn(repository: str, error: OSError) -> None:
    logging.warning(
        'the listing of %s cannot be kept for uses without network: %s', repository, error
    )


def _stored(record: pathlib.Path) -> Listing:
    """The listing of an earlier use. Raises ValueError if it is damaged."""
    held = read_json(record)
    revision, files = held.get('revision'), held.get('files')
    if not isinstance(revision, str) or not isinstance(files, list):
        raise ValueError(
            f'{record} holds no listing of a data set: remove it, and retry with network'
        )
    return Listing(revision, [str(file) for file in files])


def _ask(api, repository: str) -> Listing:
    """Own Parquet files, or those that the Hub made."""
    from huggingface_hub import errors

    def listing(revision: str | None) -> Listing:
        info = api.dataset_info(repository, revision=revision)
        names = sorted(file.rfilename for file in info.siblings or ())
        return Listing(info.sha, [name for name in names if name.endswith('.parquet')])

    own = listing(None)
    if own.files:
        return own
    try:
        return listing(CONVERTED)
    except errors.RevisionNotFoundError:
        return own


def of_split(files: Sequence[str], split: str, name: str) -> list[str]:
    """The files of a split, in order: those with its name as a folder or as a word of the file's.

    Raises:
      ValueError: there is no such split, it has several configurations, or parts are missing.
    """
    if not files:
        raise ValueError(
            f'{name}: the data set has no Parquet files, and the Hub has not made them; save it as '
            'a .csv or .parquet file and name that'
        )
    found = [file for file in files if _split(file) == split] or [
        # the Hub marks what it has not converted whole
        file
        for file in files
        if split in (words := _words(file)) and 'partial' not in words
    ]
    if not found:
        known = sorted({_split(file) for file in files})
        raise ValueError(
            f'{name}: there is no split {split!r}; its splits: {", ".join(known)}. Name one at '
            f'the end, as {name.partition("@")[0]}@{known[0]}'
        )
    folders = sorted({str(pathlib.PurePosixPath(file).parent) for file in found})
    if len(folders) > 1:
        found = [file for file in found if file.split('/')[0] == 'default']
        if not found:
            raise ValueError(
                f'{name}: the split {split!r} is in several folders: {", ".join(folders)}; '
                'download one (`hf download`) and name its file'
            )
    shards = [(int(part[1]), int(part[2])) for file in found if (part := SHARD.search(file))]
    if shards and sorted(number for number, _ in shards) != list(range(shards[0][1])):
        raise ValueError(f'{name}: of the {shards[0][1]} parts of {split!r} only {found} are there')
    return found


def _words(file: str) -> list[str]:
    return re.split(r'[/._\- ]', file)


def _split(file: str) -> str:
    """The split that a file seems to hold: the word before its numbers, or its folder."""
    path = pathlib.PurePosixPath(file)
    stem = SHARD.sub('', path.name).removesuffix('.parquet')
    return path.parent.name if stem.isdecimal() else stem


def _download(repository: str, file: str, revision: str) -> pathlib.Path:
    """The file in the Hub's cache; raises FileNotFoundError if it is not and cannot be fetched."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        got = huggingface_hub.hf_hub_download(
            repository, file, repo_type='dataset', revision=revision
        )
    except (errors.GatedRepoError, errors.RepositoryNotFoundError) as error:
        raise refused(f'the data set {repository!r}', error, 'terms', 'name') from None
    except (OSError, errors.HTTPError, errors.EntryNotFoundError) as error:
        raise_if_local(error, repository)
        raise FileNotFoundError(
            f'{file} of the data set {repository!r} is not on this machine and could not be '
            f'fetched: {answered(error) or f"{type(error).__name__}; try again with network"}'
        ) from None
    return pathlib.Path(got)
