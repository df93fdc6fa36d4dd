"""Adapters as files that other tools open: PEFT / Diffusers and kohya / ComfyUI layouts, and merged
into the base weights.

A file has no separate scale: it holds A as trained, and B times alpha / rank, so that readers with
and without support for alpha (the latter take alpha = rank) compute the same layer. Everything is
float32 unless a dtype is given.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from densegrpo_jax.networks.lora import LoraConfig
from densegrpo_jax.pipelines.weights import files as weights
from densegrpo_jax.pipelines.weights import originals
from densegrpo_jax.runtime.mesh import replicated


def to_layers(
    adapters: dict, names: dict[str, str], scale: float
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The LoRA collection as checkpoint name -> (down [rank, in], up [out, rank] times `scale`),
    float32.

    Args:
      adapters: the collection 'lora', scanned or not.
      names: checkpoint name -> path, `pipeline.adapter_names()`.
      scale: alpha / rank.
    """
    flat = traverse_util.flatten_dict(adapters, sep='/')
    blocks: dict[str, list[str]] = {}
    for name, path in names.items():
        if f'{path}/a' in flat:
            blocks.setdefault(path, []).append(name)
    layers = {}
    for path, members in blocks.items():
        a, b = (np.asarray(flat[f'{path}/{part}'], np.float32) for part in 'ab')
        stacked = a.ndim == 3
        for i, name in enumerate(members):
            layers[name] = (a[i] if stacked else a).T, scale * (b[i] if stacked else b).T
    return {name: tuple(map(np.ascontiguousarray, pair)) for name, pair in sorted(layers.items())}


def from_layers(
    layers: dict[str, tuple[np.ndarray, np.ndarray]],
    names: dict[str, str],
    config: LoraConfig,
    like: dict,
) -> dict:
    """The inverse of `to_layers`, for a network whose fresh adapters are `like`. A layer of a lower
    rank is padded with fresh rows, which change nothing until they are trained.

    Raises ValueError as `check_layers`.
    """
    shapes = {name: (down.shape, up.shape) for name, (down, up) in layers.items()}
    check_layers(shapes, names, config, like)
    blocks: dict[str, list] = {}
    for name, path in names.items():
        if name in layers:
            down, up = layers[name]
            blocks.setdefault(path, []).append((down.T, up.T / config.scale))
    flat = {}
    for path, leaf in traverse_util.flatten_dict(like, sep='/').items():
        layer, part = path.rsplit('/', 1)
        parts = [pair['ab'.index(part)] for pair in blocks[layer]]
        if any(config.rank not in value.shape for value in parts):
            fresh = _whole(leaf).reshape(len(parts), *leaf.shape[-2:])
            parts = [_filled(value, rest, 'ab'.index(part)) for value, rest in zip(parts, fresh)]
        value = np.stack(parts) if len(leaf.shape) == 3 else parts[0]
        flat[path] = np.asarray(value, np.float32)
    return traverse_util.unflatten_dict(flat, sep='/')


def _whole(leaf: jax.Array) -> np.ndarray:
    """An array in float32, on every host, though its parts may lie on several."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        whole = replicated(leaf.sharding.mesh)
        leaf = jax.jit(lambda x: x, out_shardings=whole)(leaf)
    return np.asarray(leaf, np.float32)


def _filled(value: np.ndarray, fresh: np.ndarray, up: int) -> np.ndarray:
    """a [in, rank] with the last columns of the fresh one, or b [rank, out] with rows of zeros."""
    rank = value.shape[1 - up]
    if up:
        return np.concatenate([value, np.zeros_like(fresh[rank:])])
    return np.concatenate([value, fresh[:, rank:]], axis=1)


def check_layers(
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]],
    names: dict[str, str],
    config: LoraConfig,
    like: dict,
) -> None:
    """Checks that an adapter fits a network whose fresh adapters are `like` (shapes suffice).

    Args:
      shapes: checkpoint name -> shapes of down [rank, in] and up [out, rank].
      names: checkpoint name -> path, `pipeline.adapter_names()`.

    Raises:
      ValueError: layers that the configuration does not adapt, missing layers, a higher rank, or
        other widths; the message names them.
    """
    chosen = set(config.select(names))
    absent, extra = sorted(chosen - set(shapes)), sorted(set(shapes) - chosen)
    if absent or extra:
        raise ValueError(
            f'the adapter does not fit lora.targets: {len(absent)} layers are absent '
            f'({absent[:3]}), {len(extra)} are not adapted here ({extra[:3]}); set lora.targets to '
            "the file's layers"
        )
    flat = traverse_util.flatten_dict(like, sep='/')
    for name in sorted(chosen):
        if (rank := shapes[name][0][0]) > config.rank:
            raise ValueError(
                f'the adapter of {name} has rank {rank}, but lora.rank={config.rank}: set '
                f'lora.rank={max(down[0] for down, _ in shapes.values())}'
            )
        for part, found in zip('ab', shapes[name]):
            inner = flat[f'{names[name]}/{part}'].shape[-2:][::-1]
            wanted = (rank, inner[1]) if part == 'a' else (inner[0], rank)
            if tuple(found) != wanted:
                raise ValueError(
                    f'the adapter of {name} has shape {tuple(found)}, the network needs {wanted}'
                )


def peft_tensors(
    layers: dict[str, tuple[np.ndarray, np.ndarray]], denoiser: str = 'transformer'
) -> dict[str, np.ndarray]:
    """Keys as Diffusers' `save_lora_weights` writes them: transformer.<layer>.lora_A.weight,
    .lora_B.weight.

    denoiser: `Pipeline.DENOISER`; Diffusers passes over layers of another name without a word.
    """
    parts = (
        (name, kind, array) for name, pair in layers.items() for kind, array in zip('AB', pair)
    )
    return {f'{denoiser}.{name}.lora_{kind}.weight': array for name, kind, array in parts}


def output_widths(names: dict[str, str], base: dict) -> dict[str, int]:
    """Output width of every layer of `names` by checkpoint name.

    Args:
      names: checkpoint name -> path, `pipeline.adapter_names()`.
      base: the transformer's parameters or their shapes, scanned or not.
    """
    flat = traverse_util.flatten_dict(base, sep='/')
    return {name: flat[f'{path}/kernel'].shape[-1] for name, path in names.items()}


def kohya_tensors(
    layers: dict[str, tuple[np.ndarray, np.ndarray]],
    widths: dict[str, int],
    original: originals.Original | None,
) -> dict[str, np.ndarray]:
    """Keys as kohya's scripts write them:
    lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight, .lora_up.weight, .alpha.

    They are the names of the original releases with underscores, which ComfyUI maps. Layers that
    are one layer there are joined: downs stacked, ups on the diagonal of one matrix, zeros for
    layers without an adapter. alpha is the joined rank.

    Args:
      layers: of a transformer.
      widths: from `output_widths`.
      original: `Pipeline.ORIGINAL`.

    Raises:
      ValueError: the layout has no name for a layer.
    """
    tensors, used = {}, set()
    table = originals.block_layers(original, layers) if original else {}
    for target, names in table.items():
        present = [name for name in names if name in layers]
        if not present:
            continue
        used |= set(present)
        rank, inputs = layers[present[0]][0].shape
        blank = lambda n, rank=rank, inputs=inputs: (
            np.zeros((rank, inputs), np.float32),
            np.zeros((widths[n], rank), np.float32),
        )
        downs, ups = zip(*(layers.get(n) or blank(n) for n in names))
        joined = np.zeros((sum(u.shape[0] for u in ups), rank * len(ups)), np.float32)
        row = 0
        for j, up in enumerate(ups):
            joined[row : row + up.shape[0], j * rank : (j + 1) * rank] = up
            row += up.shape[0]
        key = f'lora_unet_{target}'.replace('.', '_')
        tensors[f'{key}.lora_down.weight'] = np.concatenate(downs)
        tensors[f'{key}.lora_up.weight'] = joined
        tensors[f'{key}.alpha'] = np.array(float(rank * len(ups)), np.float32)
    if strangers := sorted(set(layers) - used):
        raise ValueError(
            'the kohya layout has the names of the original release, and only those of its blocks; '
            f'there is none for {strangers[:5]}: use the peft layout'
        )
    return tensors


def write(
    path: pathlib.Path,
    tensors: dict[str, np.ndarray],
    *,
    dtype: Any = None,
    metadata: dict[str, Any] | None = None,
) -> None:
    """Writes the file in one step: it appears under its name only once it is complete. metadata
    values become JSON strings.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    cast = {
        k: np.asarray(v if dtype is None else v.astype(jnp.dtype(dtype)), order='C')
        for k, v in tensors.items()
    }
    weights.write_file(
        path,
        cast,
        {k: v if isinstance(v, str) else json.dumps(v) for k, v in (metadata or {}).items()},
    )
