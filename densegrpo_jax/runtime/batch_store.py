"""Raw results by batches that survive a stop of a long measurement."""

from __future__ import annotations

import hashlib
import io
import json
import pathlib
import zipfile
from collections.abc import Mapping

import numpy as np

from densegrpo_jax.runtime.communicator import Communicator
from densegrpo_jax.runtime.files import replace_file, replacing


class BatchStore:
    """Arrays of batches in FOLDER/HASH/batch_N.npz. HASH is that of the settings, which are stored
    beside them; a file is whole or absent.

    Args:
      settings: JSON values, everything that the arrays of batch N depend on.
      communicator: of the processes that make the batches together: the primary one, which alone
        writes and reads files, gives them to the others. None: this process alone.
    """

    def __init__(
        self, folder: pathlib.Path, settings: Mapping, communicator: Communicator | None = None
    ):
        self._communicator = communicator or Communicator()
        text = json.dumps(settings, sort_keys=True, indent=1)
        self._folder = folder / hashlib.sha256(text.encode()).hexdigest()[:16]
        if self._communicator.hosts.primary:
            self._folder.mkdir(parents=True, exist_ok=True)
            replace_file(self._folder / 'settings.json', text + '\n')

    def __contains__(self, number: int) -> bool:
        return self._path(number).exists()

    def put(self, number: int, **arrays: np.ndarray) -> None:
        """Stores the arrays of a batch by their names."""
        if self._communicator.hosts.primary:
            with replacing(self._path(number)) as file:
                np.savez(file, **arrays)

    def find(self, number: int) -> dict[str, np.ndarray] | None:
        """The arrays of a batch, None if they are not stored; all processes call this.

        Raises:
          Preempted: a stop was requested.
          ValueError: the file is damaged.
        """
        there = self._communicator.hosts.primary and number in self
        held = self._path(number).read_bytes() if there else b''
        held = self._communicator.exchange(held)[0]
        return self._read(number, io.BytesIO(held)) if held else None

    def get(self, number: int) -> dict[str, np.ndarray]:
        """The arrays of a stored batch. Raises ValueError if the file is damaged."""
        return self._read(number, self._path(number))

    def _read(self, number: int, file: io.BytesIO | pathlib.Path) -> dict[str, np.ndarray]:
        try:
            with np.load(file, allow_pickle=False) as arrays:
                return dict(arrays)
        except (ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(
                f'{self._path(number)} is damaged ({error}): remove it, and it is made anew'
            ) from None

    def _path(self, number: int) -> pathlib.Path:
        return self._folder / f'batch_{number:05d}.npz'
