"""Tells whether two folders hold the same weights, without reading all of them."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Iterable

WHOLE = 256 << 20  # bytes; longer files are compared by parts
BLOCK, BLOCKS = 1 << 20, 64  # of such a file, spread evenly, the first with its header


def content_digest(files: Iterable[pathlib.Path]) -> str:
    """A short hash of safetensors files, in their order.

    Names and places do not count, but how tensors are divided over files does. Of a file above
    WHOLE bytes its length and BLOCKS parts count, 64 MiB: training changes nearly every number of a
    network, or whole layers, so other weights do not pass for the same.

    Raises:
      OSError: a file cannot be read.
    """
    total = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        total.update(f'{size} '.encode())
        with open(path, 'rb') as file:
            if size <= WHOLE:
                total.update(hashlib.file_digest(file, 'sha256').digest())
                continue
            for n in range(BLOCKS):
                file.seek(n * (size - BLOCK) // (BLOCKS - 1))
                total.update(file.read(BLOCK))
    return total.hexdigest()[:16]
