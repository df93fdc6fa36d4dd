"""Tensors of safetensors files, read in parts when they are needed."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import struct
from typing import Any

import ml_dtypes  # gives numpy bfloat16, which safetensors needs
import numpy as np
import safetensors

from densegrpo_jax.runtime.reading import check_file

# Names in safetensors. Those of 8 bits are read here, as safetensors cannot make numpy arrays of
# them: each value stands for itself.
EIGHT_BITS = {'F8_E4M3': ml_dtypes.float8_e4m3fn, 'F8_E5M2': ml_dtypes.float8_e5m2}
FLOATS = ('F64', 'F32', 'F16', 'BF16', *EIGHT_BITS)


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor in a file, read when it is indexed. The file is mapped only during the read: mapped
    pages count as this process's memory, and a large checkpoint would seem to be in memory whole.
    """

    path: pathlib.Path
    key: str
    shape: tuple[int, ...]
    dtype: str  # its name in safetensors

    def get_dtype(self) -> str:
        return self.dtype

    def get_shape(self) -> tuple[int, ...]:
        return self.shape

    def __getitem__(self, index):
        if self.dtype in EIGHT_BITS:
            return self._eight_bits()[index]
        with safetensors.safe_open(self.path, framework='numpy') as file:
            return file.get_slice(self.key)[index]

    def _eight_bits(self) -> np.ndarray:
        with open(self.path, 'rb') as file:
            (length,) = struct.unpack('<Q', file.read(8))
            begin, _ = json.loads(file.read(length))[self.key]['data_offsets']
            file.seek(8 + length + begin)
            data = file.read(math.prod(self.shape))
        return np.frombuffer(data, EIGHT_BITS[self.dtype]).reshape(self.shape)


class Rows:
    """Some ranges of the first axis of a stored tensor, one after another, as a tensor; read like
    `Stored`.
    """

    def __init__(self, tensor: Any, *ranges: tuple[int, int]):
        self._tensor, self._ranges = tensor, ranges

    def get_dtype(self) -> str:
        return self._tensor.get_dtype()

    def get_shape(self) -> list[int]:
        return [sum(stop - start for start, stop in self._ranges), *self._tensor.get_shape()[1:]]

    def __getitem__(self, index):
        index = index if isinstance(index, tuple) else (index,)
        start, stop, _ = index[0].indices(self.get_shape()[0])
        parts, offset = [], 0
        for low, high in self._ranges:
            begin, end = max(start - offset, 0), min(stop - offset, high - low)
            if begin < end:
                parts.append(self._tensor[(slice(low + begin, low + end), *index[1:])])
            offset += high - low
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def open_file(path: pathlib.Path) -> dict[str, Any]:
    """Every key of a file -> Stored. Raises FileNotFoundError if it is no file, ValueError if it is
    no safetensors file.
    """
    check_file(path)
    try:
        file = safetensors.safe_open(path, framework='numpy')
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(
            f'{path} ({path.stat().st_size} bytes) is not a complete safetensors file: {error}; '
            'fetch it again'
        ) from None
    with file:
        slices = {key: file.get_slice(key) for key in file.keys()}
        return {
            key: Stored(path, key, tuple(part.get_shape()), part.get_dtype())
            for key, part in slices.items()
        }
