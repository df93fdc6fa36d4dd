"""Tells whether two folders hold the same weights, without reading all of them."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Iterable

WHOLE = 256 << 20  # bytes; longer files are compared by parts
BLOCK, BLOCKS = 64 << 10, 1024  # of such a file, spread evenly, the first with its header


def content_digest(sources: Iterable[pathlib.Path]) -> str:
    """A short hash of the safetensors files of folders, or of single files, in their order.

    Names and places do not count. Of a file above WHOLE bytes its length and BLOCKS parts count:
    64 MiB, read in a second. Training changes nearly every number of a network, or whole layers, so
    other weights do not pass for the same.

    Raises:
      OSError: a file cannot be read.
    """
    total = hashlib.sha256()
    for source in sources:
        for path in [source] if source.is_file() else sorted(source.glob('*.safetensors')):
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
