"""A cache of the prompts' conditioning, so that no text encoder is in memory while a run samples or
trains.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import pathlib
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

    def path(self, prompt: str) -> pathlib.Path:
        name = hashlib.sha256(f'{self._key}\n{prompt}'.encode()).hexdigest()
        return self._directory / name[:2] / f'{name}.safetensors'

    def stored(self, prompts: Iterable[str]) -> dict[str, str]:
        """Distinct prompt -> a hash of its conditioning; '' if it is not stored yet. A file that
        was cut short, or is of another prompt or encoder, is removed.

        Raises:
          FileNotFoundError: something else than a file has a file's name.
        """
        return {prompt: self._stored(prompt) for prompt in prompts}

    def _stored(self, prompt: str) -> str:
        path = self.path(prompt)
        if not self._on_disk or not os.path.lexists(path):
            return 'held' if self._has(prompt) else ''
        check_file(path)
        found, says = 'damaged', ''
        if path.stat().st_size == self._bytes:
            # the header alone: the arrays are hashed when they are read
            with (
                contextlib.suppress(safetensors.SafetensorError),
                safetensors.safe_open(path, framework='numpy') as file,
            ):
                found, says = 'the file of another prompt', (file.metadata() or {}).get(SAYS, '')
        if says.startswith(f'{path.stem} '):
            return says[-16:]
        logging.warning('%s is %s; its prompt is encoded anew', path, found)
        path.unlink(missing_ok=True)
        return ''

    def check_room(self, prompts: Sequence[str]) -> None:
        """Raises ValueError if the disk has too little room for the files of `prompts`."""
        count = sum(not self._has(prompt) for prompt in prompts) if self._on_disk else 0
        if count:
            what = f'the conditioning of {count} prompts (text_cache)'
            check_room(self._directory, count * self._bytes, what)

    @functools.cached_property
    def _bytes(self) -> int:
        """The length of every file."""
        row = {name: np.zeros(leaf.shape[1:], leaf.dtype) for name, leaf in self._shapes.items()}
        return len(safetensors.numpy.save(row, _notes('0' * 64, row)))

    def _has(self, prompt: str) -> bool:
        return self.path(prompt).exists() if self._on_disk else prompt in self._held

    def fill(
        self,
        prompts: Sequence[str],
        encode: Callable[[list[str]], Conditioning],
        batch: int,
        done: Callable[[int], None],
        anew: Collection[str] = (),
    ) -> None:
        """Encodes and stores `prompts`, `batch` at a time; calls `done(count)` after each batch.
        After a stop it continues with the missing prompts.

        anew: those of the prompts that replace what is stored.
        """
        for start in range(0, len(prompts), batch):
            part = list(prompts[start : start + batch])
            rows = encode(part)
            for i, prompt in enumerate(part):
                if prompt not in anew and self._has(prompt):
                    continue  # another process was first
                row = {n: np.asarray(rows[n][i]).astype(d) for n, d in self._dtypes.items()}
                if self._on_disk:
                    path = self.path(prompt)
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
        rows = [self._row(prompt) for prompt in prompts]
        while (
            self._on_disk
            and len(self._held) > len(rows)
            and len(self._held) * sum(a.nbytes for a in rows[0].values()) > self._max_bytes
        ):
            del self._held[next(iter(self._held))]
        return {name: np.stack([row[name] for row in rows]) for name in self._dtypes}

    def _row(self, prompt: str) -> dict[str, np.ndarray]:
        if prompt not in self._held:
            if not self._on_disk:
                raise KeyError(f'the prompt {prompt!r} has no conditioning in memory')
            path = self.path(prompt)
            try:
                self._held[prompt] = self._read(path)
            except FileNotFoundError:
                raise KeyError(
                    f'the prompt {prompt!r} has no stored conditioning in {self._directory}'
                ) from None
            except (safetensors.SafetensorError, KeyError, ValueError) as error:
                raise ValueError(
                    f'{path} is damaged ({error}); delete it and start again: it will be computed '
                    'anew'
                ) from None
        return self._held[prompt]

    def _read(self, path: pathlib.Path) -> dict[str, np.ndarray]:
        """The arrays of a file that is of this name and whole."""
        with safetensors.safe_open(path, framework='numpy') as file:
            row = {name: file.get_tensor(name) for name in self._dtypes}
            if file.metadata() != _notes(path.stem, row):
                raise ValueError('its content is not that of its name')
        return row


def _notes(name: str, row: Mapping[str, np.ndarray]) -> dict[str, str]:
    """What a file says of itself, its name and a hash of its arrays: copies under another name and
    changed bytes are noticed.
    """
    total = hashlib.sha256()
    for key in sorted(row):
        total.update(row[key].tobytes())
    return {SAYS: f'{name} {total.hexdigest()}'}
