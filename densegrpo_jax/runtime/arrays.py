"""Files of named arrays that a command learned: npz without pickle, with a format number. Imports
no JAX: workers that score read such files.
"""

from __future__ import annotations

import pathlib
import zipfile
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from densegrpo_jax.runtime.reading import kind


def write_arrays(path: pathlib.Path, version: int, arrays: Mapping[str, Any]) -> None:
    """Writes an npz in one step; creates the folder if absent. `version` becomes `format`."""
    from densegrpo_jax.runtime.files import replacing  # imports JAX

    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        np.savez(file, allow_pickle=False, format=version, **arrays)


def read_arrays(
    path: pathlib.Path,
    version: int,
    shapes: Mapping[str, tuple[int | None, ...]],
    others: Collection[str],
    maker: str,
    key: str = '',
) -> dict[str, np.ndarray]:
    """The arrays of a file of `write_arrays`.

    Args:
      shapes: name -> shape of the arrays that must be there with finite numbers; None: any size.
      others: names of arrays of any kind that must be there.
      maker: the command that writes such files, for messages.
      key: of the configuration, whose value the path is, for messages.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no npz without pickle, of another version, or an array is missing, or is
        not as `shapes` says.
    """
    named = f'{key}: ' if key else ''
    if not path.is_file():
        found = f'{path} is {kind(path)}' if path.exists() else f'there is no file {path}'
        raise FileNotFoundError(f'{named}{found}; {maker} makes one')
    way_out = f'expected a file of {maker}; name another one, or make it anew'
    try:
        with np.load(path, allow_pickle=False) as stored:
            held = {name: stored[name] for name in stored.files}
        found = int(held.pop('format', -1))
    except (ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise ValueError(f'{named}{path} cannot be read ({error}): {way_out}') from None
    if found != version:
        raise ValueError(f'{named}{path} is not of format {version}: {way_out}')
    if absent := [name for name in (*shapes, *others) if name not in held]:
        raise ValueError(f'{named}{path} lacks {", ".join(absent)}: {way_out}')
    for name, shape in shapes.items():
        array = held[name]
        fits = array.ndim == len(shape) and all(
            n in (None, size) for n, size in zip(shape, array.shape)
        )
        if not (fits and array.dtype.kind in 'iuf' and np.isfinite(array).all()):
            sizes = ', '.join('any' if n is None else str(n) for n in shape)
            raise ValueError(
                f'{named}{path}: {name} is {array.dtype} {[*array.shape]}; it must be finite '
                f'numbers [{sizes}]: {way_out}'
            )
    return held
