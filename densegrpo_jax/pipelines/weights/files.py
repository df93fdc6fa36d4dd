"""Weights on disk (safetensors, Diffusers / Transformers layout) to parameter trees and back, by a
table of rules (`weight_rules`).

Tensors are streamed one by one, and a sharded parameter reads only the bytes of its devices. No
torch or pickle is involved.
"""

import functools
import json
import math
import os
import pathlib
import secrets
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes  # noqa: F401  (gives numpy bfloat16, which safetensors needs)
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from densegrpo_jax.networks.weight_rules import WeightRule
from densegrpo_jax.pipelines.weights.stored import FLOATS, open_file
from densegrpo_jax.runtime.reading import read_json, shown

METADATA = {'format': 'pt'}  # of every file that is written
BASE_NAMES = ('diffusion_pytorch_model', 'model')


def load_weights(
    folder,
    rules,
    abstract_params,
    *,
    dtype=None,
    shardings=None,
    prefix: str = '',
    layout=None,
    convert=None,
) -> dict:
    """Reads the weights of one network.

    Args:
      folder: holds diffusion_pytorch_model.safetensors or model.safetensors, or the
        `.safetensors.index.json` of a sharded checkpoint; or one safetensors file.
      rules: the network's table.
      abstract_params: nested dict whose leaves have `.shape`, e.g.
        `jax.eval_shape(model.init, ...)['params']`.
      dtype: of the result; None keeps the stored dtypes.
      shardings: None (default device), one Sharding for all, or a tree of them shaped like
        abstract_params.
      prefix: removed from the keys that have it ('text_model.'), for layouts that exist with and
        without it.
      layout: None, or a function from the stored tensors by key to tensors under the rules' names,
        for checkpoints with other names.
      convert: None, or a function from (path, array) to the value stored in the array's place,
        called as each parameter arrives.
    Returns:
      Nested dict of jax arrays with the structure and shapes of abstract_params.
    Raises:
      FileNotFoundError: no weights, or a shard of the index is absent.
      ValueError: a file is damaged; or one error that names all missing, unexpected, duplicate and
        mis-shaped keys, and those that do not hold floats.
    """
    flat = traverse_util.flatten_dict(abstract_params, sep='/')
    if shardings is not None:
        shardings = (
            dict.fromkeys(flat, shardings)
            if isinstance(shardings, jax.sharding.Sharding)
            else traverse_util.flatten_dict(shardings, sep='/')
        )
    tensors, sources = _sources(folder, rules, flat, prefix, layout)
    params = {}
    for path, leaf in flat.items():
        rule, keys = sources[path]
        read = functools.partial(_read, rule, [tensors[k] for k in keys], tuple(leaf.shape), dtype)
        if shardings is None:
            params[path] = jnp.asarray(read((slice(None),) * len(leaf.shape)))
        else:
            params[path] = _read_sharded(read, leaf.shape, shardings[path])
        if convert is not None:
            params[path] = convert(path, params[path])
    return traverse_util.unflatten_dict(params, sep='/')


def check_weights(folder, rules, abstract_params, *, prefix: str = '', layout=None) -> None:
    """Raises the errors of `load_weights` with these arguments, from the files' headers alone."""
    _sources(folder, rules, traverse_util.flatten_dict(abstract_params, sep='/'), prefix, layout)


def save_weights(
    folder,
    rules,
    params,
    *,
    filename: str = 'diffusion_pytorch_model.safetensors',
    dtype=None,
    max_shard_bytes: int | None = None,
    prefix: str = '',
) -> list[pathlib.Path]:
    """Writes params into the layout that `load_weights` reads: the inverse of the same table.

    Each file appears under its name only once it is complete; after that, weights of the same name
    from an earlier save are removed.

    Args:
      folder: created if absent.
      rules, params: as above; every leaf must have a rule.
      filename: of the single file; shards and their index derive their names from it.
      dtype: to store in; None keeps the leaves' dtypes.
      max_shard_bytes: None for one file; otherwise files of at most this size (a larger tensor gets
        its own file) and an index.
      prefix: put before every key whose rule is `prefixed`.
    Returns:
      The paths written.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    base = filename.removesuffix('.safetensors')
    entries = _entries(rules, params, prefix)
    size = lambda entry: math.prod(entry[3]) * np.dtype(dtype or entry[1].dtype).itemsize
    shards = [[]]
    for entry in entries:
        if (
            max_shard_bytes
            and shards[-1]
            and sum(map(size, shards[-1])) + size(entry) > max_shard_bytes
        ):
            shards.append([])
        shards[-1].append(entry)
    names = (
        [filename]
        if len(shards) == 1
        else [f'{base}-{i:05d}-of-{len(shards):05d}.safetensors' for i in range(1, len(shards) + 1)]
    )
    written = [
        write_file(
            folder / name,
            {key: _stored(leaf, index, axes, dtype) for key, leaf, index, _, axes in shard},
        )
        for name, shard in zip(names, shards)
    ]
    if len(shards) > 1:
        index = {
            'metadata': {'total_size': sum(map(size, entries))},
            'weight_map': {entry[0]: name for name, shard in zip(names, shards) for entry in shard},
        }
        written.append(folder / f'{filename}.index.json')
        written[-1].write_text(json.dumps(index, indent=2) + '\n', encoding='utf-8')
    for old in [
        folder / filename,
        folder / f'{filename}.index.json',
        *folder.glob(f'{base}-*-of-*.safetensors'),
    ]:
        if old not in written:
            old.unlink(missing_ok=True)
    return written


def _sources(folder, rules, flat, prefix, layout):
    """(tensors by key, path -> (rule, its keys in block order)) of a checkpoint that fits."""
    tensors = open_tensors(pathlib.Path(folder))
    tensors = tensors if layout is None else layout(tensors)
    return tensors, _match(folder, tensors, rules, flat, prefix)


def weight_files(folder: pathlib.Path) -> tuple[list[pathlib.Path], list[str]]:
    """The safetensors files that hold a component's weights, and the keys that its index lists, if
    there is one. `folder` may be a file.

    Raises:
      FileNotFoundError: there are none, or some are missing.
      ValueError: the index is damaged.
    """
    if folder.is_file():
        return [folder], []
    if not folder.is_dir():
        raise FileNotFoundError(f'weights folder {folder} does not exist')
    for base in BASE_NAMES:
        index = folder / f'{base}.safetensors.index.json'
        if index.exists():
            weight_map = read_json(index).get('weight_map')
            if not isinstance(weight_map, dict) or not all(
                isinstance(name, str) for name in weight_map.values()
            ):
                raise ValueError(
                    f'{index} is damaged: expected a "weight_map" of tensors to file names, found '
                    f'{shown(weight_map)}'
                )
            absent = sorted({name for name in weight_map.values() if not (folder / name).exists()})
            if absent:
                raise FileNotFoundError(
                    f'{index} names files that are not in {folder}: {absent}; fetch them again'
                )
            return [folder / name for name in sorted(set(weight_map.values()))], [*weight_map]
        if (folder / f'{base}.safetensors').exists():
            return [folder / f'{base}.safetensors'], []
    found = sorted(p.name for p in folder.iterdir())
    raise FileNotFoundError(
        f'no weights in {folder}: expected one of '
        f'{[f"{b}.safetensors[.index.json]" for b in BASE_NAMES]}, found '
        f'{_some(found) or "nothing"}. Pickled .bin weights are not read: save them as safetensors'
    )


def open_tensors(folder: pathlib.Path) -> dict[str, Any]:
    """Every key of a checkpoint -> Stored, from the files' headers. `folder` may be a file.

    Raises:
      FileNotFoundError: no weights, or a shard of the index is absent.
      ValueError: a file is damaged, or lacks what the index lists.
    """
    files, listed = weight_files(folder)
    tensors = {}
    for path in files:
        tensors |= open_file(path)
    if lost := sorted(set(listed) - set(tensors)):
        raise ValueError(
            f'the index of {folder} lists tensors that its files do not hold: {_some(lost)}'
        )
    return tensors


def _match(folder, tensors, rules, flat, prefix) -> dict[str, tuple[WeightRule, list[str]]]:
    """Path -> (rule, its keys in block order); raises one error for everything that does not
    fit.
    """
    found, problems = (
        {},
        {
            'missing': [],
            'unexpected': [],
            'doubled': [],
            'mis-shaped': [],
            'not of floats': [],
            'parameters without a rule': [],
        },
    )
    for key in sorted(tensors):
        name = key.removeprefix(prefix)
        rule, hit = next(((r, h) for r in rules if (h := r.read(name)) is not None), (None, None))
        if hit == (None, None):
            continue
        path, index = hit or (None, None)
        if path not in flat or (index is not None and index >= flat[path].shape[0]):
            problems['unexpected'].append(key)
        elif (path, index) in found:
            problems['doubled'].append(f'{found[path, index][1]} and {key}')
        else:
            found[path, index] = rule, key
    sources = {}
    for path, leaf in flat.items():
        rule = next((r for r in rules if r.write(path, 0) is not None), None)
        if rule is None:
            problems['parameters without a rule'].append(path)
            continue
        shape = tuple(leaf.shape[1:]) if rule.stack_field else tuple(leaf.shape)
        keys = []
        for index in range(leaf.shape[0]) if rule.stack_field else [None]:
            if (path, index) not in found:
                problems['missing'].append(rule.write(path, index))
                continue
            rule, key = found[path, index]
            stored = tuple(tensors[key].get_shape())
            keys.append(key)
            if (kind := tensors[key].get_dtype()) not in FLOATS:
                problems['not of floats'].append(f'{key} is {kind}')
            if (
                len(stored) != len(shape)
                or tuple(stored[a] for a in rule.axes or range(len(shape))) != shape
            ):
                expected = (
                    shape
                    if rule.axes is None or len(rule.axes) != len(shape)
                    else tuple(shape[a] for a in np.argsort(rule.axes))
                )
                problems['mis-shaped'].append(f'{key} is {list(stored)}, expected {list(expected)}')
        sources[path] = rule, keys
    if any(problems.values()):
        lines = [
            f'  {kind} ({len(names)}): {_some(names)}' for kind, names in problems.items() if names
        ]
        raise ValueError('\n'.join([f'the weights in {folder} do not fit this network', *lines]))
    return sources


def _read(rule, slices, shape, dtype, index):
    """The part `index` (one slice per axis of `shape`) of a parameter, as a numpy array."""
    if not rule.stack_field:
        return np.asarray(_read_one(rule.axes, slices[0], index), dtype, order='C')
    rows, array = range(*index[0].indices(shape[0])), None
    for k, i in enumerate(rows):  # in its place at once: a stack may be a third of all weights
        block = _read_one(rule.axes, slices[i], index[1:])
        if array is None:
            array = np.empty((len(rows), *block.shape), block.dtype if dtype is None else dtype)
        array[k] = block
    return array


def _read_one(axes, stored, index):
    axes = axes or range(len(index))
    array = stored[tuple(index[k] for k in np.argsort(axes))]
    return array.transpose(axes)


def _read_sharded(read, shape, sharding):
    parts = {}  # replicated shards ask for the same part once per device

    def part(index):
        key = tuple((s.start, s.stop) for s in index)
        if key not in parts:
            parts[key] = read(index)
        return parts[key]

    return jax.make_array_from_callback(tuple(shape), sharding, part)


def _entries(rules, params, prefix):
    """[(key, leaf, block index or None, stored shape, inverse axes)] sorted by key."""
    entries, homeless = [], []
    for path, leaf in traverse_util.flatten_dict(params, sep='/').items():
        rule = next((r for r in rules if r.write(path, 0) is not None), None)
        if rule is None:
            homeless.append(path)
            continue
        shape = leaf.shape[1:] if rule.stack_field else leaf.shape
        axes = None if rule.axes is None else tuple(int(a) for a in np.argsort(rule.axes))
        stored = shape if axes is None else tuple(shape[a] for a in axes)
        for index in range(leaf.shape[0]) if rule.stack_field else [None]:
            entries.append(
                (prefix * rule.prefixed + rule.write(path, index), leaf, index, stored, axes)
            )
    if homeless:
        raise ValueError(f'no rule writes these parameters: {_some(homeless)}')
    return sorted(entries, key=lambda entry: entry[0])


def _stored(leaf, index, axes, dtype):
    array = np.asarray(leaf if index is None else leaf[index])
    array = array if axes is None else array.transpose(axes)
    return np.asarray(array if dtype is None else array.astype(dtype), order='C')


def write_file(
    path: pathlib.Path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None
) -> pathlib.Path:
    """Writes one safetensors file; it appears under its name only once it is complete. Raises
    OSError, which says what to check.
    """
    # Not named by the process: two hosts that share the folder may have the same process number,
    # above all in containers.
    partial = path.with_name(f'.{path.name}.{secrets.token_hex(8)}.partial')
    try:
        partial.touch()
        readers = partial.stat().st_mode  # the library's own file is for its owner alone
        safetensors.numpy.save_file(tensors, partial, metadata=METADATA | (metadata or {}))
        partial.chmod(readers)
        os.replace(partial, path)
    except Exception as error:
        partial.unlink(missing_ok=True)
        raise OSError(f'could not write {path}: {error}; check space and permissions') from error
    return path


def _some(names, count: int = 12) -> str:
    return ', '.join(names[:count]) + (
        f', ... ({len(names) - count} more)' if len(names) > count else ''
    )
