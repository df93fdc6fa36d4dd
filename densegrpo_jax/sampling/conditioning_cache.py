"""A cache of the prompts' conditioning, so that no text encoder is in memory while a run samples or
trains.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import hashlib
import json
import os
import pathlib
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from absl import logging

from densegrpo_jax.pipelines.base import Conditioning, Pipeline
from densegrpo_jax.pipelines.weights.files import write_file
from densegrpo_jax.runtime.paths import check_room
from densegrpo_jax.runtime.reading import check_file

FORMAT = 3  # of the files; files of another format are ignored, and their prompts encoded anew

# The one key of a file's metadata: several would be written in any order, and files differ.
SAYS = 'format'

AT_ONCE = 32  # files that are asked for at once: a folder on the network may answer slowly
APPEAR_SECONDS = 30.0  # that a file of another process may take to be seen here


def fingerprint(folder: pathlib.Path, pipeline: Pipeline, dtype) -> str:
    """Hash of everything except the prompt that its conditioning depends on: encoders (config and
    weights), tokenizers, lengths, dtype.

    Reads every byte of the text encoders' files: some seconds for FLUX.1's ten gigabytes.
    """
    total = hashlib.sha256(
        f'{FORMAT} {pipeline.CLASS_NAME} {pipeline.token_lengths} {jnp.dtype(dtype).name}'.encode()
    )
    tokenizers = (encoder.tokenizer for encoder in pipeline.TEXT_ENCODERS)
    for name in (*pipeline.text_encoders, *tokenizers):
        for path in sorted((folder / name).rglob('*')):
            if path.suffix in ('.json', '.safetensors', '.txt', '.model', '.jinja'):
                check_file(path)
                with open(path, 'rb') as file:
                    digest = hashlib.file_digest(file, 'sha256').hexdigest()
                total.update(f'{name}/{path.name} {digest}'.encode())
    return total.hexdigest()


class TextCache:
    """Prompts -> conditioning, cached in one file per prompt or, without a directory, in memory.

    Args:
      directory: created with the first file; None: memory holds everything. The folder may also
        hold files of other models, tokenizers, lengths or dtypes: a file's name is a hash of `key`
        and the prompt.
      key: `fingerprint` of the encoders.
      shapes: names of the arrays, and the dtypes that they are stored in
        (`Pipeline.conditioning_shapes`).
      max_bytes: how much of the files' conditioning the host's memory holds too.
    """

    def __init__(
        self,
        directory: pathlib.Path | None,
        key: str,
        shapes: Mapping[str, jax.ShapeDtypeStruct],
        max_bytes: int = 4 << 30,
    ):
        self._on_disk, self._directory = directory is not None, directory or pathlib.Path()
        self._key, self._max_bytes = key, max_bytes
        self._dtypes = {name: leaf.dtype for name, leaf in shapes.items()}
        self._shapes = shapes
        self._held: dict[str, dict[str, np.ndarray]] = {}  # oldest first
        self._there: set[str] = set()  # prompts whose files `stored` has found
        self._awaited: set[str] = set()  # prompts that other processes have stored

    def path(self, prompt: str) -> pathlib.Path:
        name = hashlib.sha256(f'{self._key}\n{prompt}'.encode()).hexdigest()
        return self._directory / name[:2] / f'{name}.safetensors'

    def stored(self, prompts: Iterable[str]) -> dict[str, str]:
        """Distinct prompt -> a hash of its conditioning; '' if it is not stored yet. A file that
        was cut short, or is of another prompt or encoder, is removed.

        Raises:
          FileNotFoundError: something else than a file has a file's name.
        """
        if not self._on_disk:
            return {prompt: 'held' if prompt in self._held else '' for prompt in prompts}
        paths = {prompt: self.path(prompt) for prompt in prompts}
        # Folders are listed: a folder on the network takes as long for one of their files.
        listed: dict[str, bool] = {}
        told: dict[str, str] = {}
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
            for names in pool.map(_listed, {path.parent for path in paths.values()}):
                listed |= names
            parts = [[*paths.items()][i::AT_ONCE] for i in range(AT_ONCE)]
            says = lambda part: {prompt: self._says(path, listed) for prompt, path in part}
            for part in pool.map(says, parts):
                told |= part
        found = {prompt: told[prompt] for prompt in paths}  # in their order
        self._there |= {prompt for prompt, says in found.items() if says}
        return found

    def _says(self, path: pathlib.Path, listed: Mapping[str, bool]) -> str:
        """What `stored` tells of a file. listed: name -> whether it is a file, of those there."""
        if path.name not in listed:
            return ''
        if not listed[path.name]:
            check_file(path)  # before it is opened
        found, says = 'damaged', ''
        # The header alone, as the arrays are hashed when they are read; and with a single look for
        # the path.
        with (
            contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError),
            open(path, 'rb') as file,
        ):
            if os.fstat(file.fileno()).st_size == self._bytes:
                header = file.read(min(int.from_bytes(file.read(8), 'little'), self._bytes))
                says = str(json.loads(header)['__metadata__'][SAYS])
                found = 'the file of another prompt'
        if says.startswith(f'{path.stem} '):
            return says[-16:]
        logging.warning('%s is %s; its prompt is encoded anew', path, found)
        path.unlink(missing_ok=True)
        return ''

    def check_room(self, prompts: Sequence[str]) -> None:
        """Raises ValueError if the disk has too little room for the files of `prompts`, of which
        `stored` has told.
        """
        count = len({*prompts} - self._there) if self._on_disk else 0
        if count:
            what = f'the conditioning of {count} prompts (text_cache)'
            check_room(self._directory, count * self._bytes, what)

    @functools.cached_property
    def _bytes(self) -> int:
        """The length of every file."""
        row = {name: np.zeros(leaf.shape[1:], leaf.dtype) for name, leaf in self._shapes.items()}
        return len(safetensors.numpy.save(row, _notes('0' * 64, row)))

    def fill(
        self,
        prompts: Sequence[str],
        encode: Callable[[list[str]], Conditioning],
        batch: int,
        done: Callable[[int], None],
        anew: Collection[str] = (),
        writer: tuple[int, int] = (0, 1),
    ) -> None:
        """Encodes and stores `prompts`, `batch` at a time; calls `done(count)` after each batch.
        After a stop it continues with the missing prompts.

        Args:
          anew: those of the prompts that replace what is stored.
          writer: (i, n): n processes encode the same prompts and share the folder; this is number i
            and stores every n-th prompt. After `done`, which must wait for the others, all are
            stored.
        """
        index, writers = writer
        for start in range(0, len(prompts), batch):
            part = list(prompts[start : start + batch])
            rows = encode(part)
            for i, prompt in enumerate(part):
                if (start + i) % writers != index:
                    self._awaited.add(prompt)
                    continue
                path = self.path(prompt)
                there = path.exists() if self._on_disk else prompt in self._held
                if there and prompt not in anew:
                    continue  # another process was first
                row = {n: np.asarray(rows[n][i]).astype(d) for n, d in self._dtypes.items()}
                if self._on_disk:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_file(path, row, _notes(path.stem, row))
                else:
                    self._held[prompt] = row
            done(min(start + batch, len(prompts)))

    def __call__(self, prompts: Sequence[str]) -> Conditioning:
        """Conditioning of `prompts`, numpy arrays [B, ...].

        Raises:
          KeyError: a prompt is not stored.
          ValueError: a file is damaged or not of its prompt; the message names it.
        """
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._held]
        if len(new) > 1 and self._on_disk:
            with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
                self._held.update(zip(new, pool.map(self._row, new)))
        elif new:
            self._held[new[0]] = self._row(new[0])
        rows = [self._held[prompt] for prompt in prompts]
        while (
            self._on_disk
            and len(self._held) > len(rows)
            and len(self._held) * sum(a.nbytes for a in rows[0].values()) > self._max_bytes
        ):
            del self._held[next(iter(self._held))]
        return {name: np.stack([row[name] for row in rows]) for name in self._dtypes}

    def _row(self, prompt: str) -> dict[str, np.ndarray]:
        if not self._on_disk:
            raise KeyError(f'the prompt {prompt!r} has no conditioning in memory')
        path, until = self.path(prompt), time.monotonic() + APPEAR_SECONDS
        while True:
            try:
                return self._read(path)
            except FileNotFoundError:
                # network file systems may show late what another process has written
                if prompt in self._awaited and time.monotonic() < until:
                    time.sleep(0.1)
                    continue
                raise KeyError(
                    f'the prompt {prompt!r} has no stored conditioning in {self._directory}'
                ) from None
            except (safetensors.SafetensorError, KeyError, ValueError) as error:
                raise ValueError(
                    f'{path} is damaged ({error}); delete it and start again: it will be computed '
                    'anew'
                ) from None

    def _read(self, path: pathlib.Path) -> dict[str, np.ndarray]:
        """The arrays of a file that is of this name and whole."""
        with safetensors.safe_open(path, framework='numpy') as file:
            row = {name: file.get_tensor(name) for name in self._dtypes}
            if file.metadata() != _notes(path.stem, row):
                raise ValueError('its content is not that of its name')
        return row


def _listed(folder: pathlib.Path) -> dict[str, bool]:
    """Name -> whether it is a file, of all that is in a folder; nothing if there is no folder."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry.is_file() for entry in entries}
    except (FileNotFoundError, NotADirectoryError):
        return {}


def _notes(name: str, row: Mapping[str, np.ndarray]) -> dict[str, str]:
    """What a file says of itself, its name and a hash of its arrays: copies under another name and
    changed bytes are noticed.
    """
    total = hashlib.sha256()
    for key in sorted(row):
        total.update(row[key].tobytes())
    return {SAYS: f'{name} {total.hexdigest()}'}
