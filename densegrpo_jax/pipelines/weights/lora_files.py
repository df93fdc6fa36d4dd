"""Adapters as files that other tools open: PEFT / Diffusers and kohya / ComfyUI layouts, and merged
into the base weights.

A file holds no scale of its own: A as trained, and B times alpha / rank, so that readers which know
of alpha and readers which do not (they take alpha = rank) compute the same layer. Everything is
float32 unless a dtype is given.
"""

from __future__ import annotations

import json
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from flax import traverse_util

from densegrpo_jax.networks.lora import LoraConfig
from densegrpo_jax.pipelines.weights import bfl
from densegrpo_jax.pipelines.weights import files as weights

PREFIX = 'transformer.'  # of the network inside a Diffusers pipeline
FILENAME = 'pytorch_lora_weights.safetensors'  # what `load_lora_weights` looks for


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
    """The inverse of `to_layers`, for a network whose fresh adapters are `like`.

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
        value = np.stack(parts) if len(leaf.shape) == 3 else parts[0]
        flat[path] = np.asarray(value, np.float32)
    return traverse_util.unflatten_dict(flat, sep='/')


def check_layers(
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]],
    names: dict[str, str],
    config: LoraConfig,
    like: dict,
) -> None:
    """Whether an adapter fits a network whose fresh adapters are `like` (shapes will do).

    Args:
      shapes: checkpoint name -> shapes of down [rank, in] and up [out, rank].
      names: checkpoint name -> path, `pipeline.adapter_names()`.

    Raises:
      ValueError: layers that the configuration does not adapt, layers that are absent, another
        rank, or other widths; names them.
    """
    chosen = set(config.select(names))
    absent, extra = sorted(chosen - set(shapes)), sorted(set(shapes) - chosen)
    if absent or extra:
        raise ValueError(
            f'the adapter does not fit lora.targets: {len(absent)} layers are absent '
            f'({absent[:3]}), {len(extra)} are not adapted here ({extra[:3]}); set lora.targets to '
            'what the file holds'
        )
    flat = traverse_util.flatten_dict(like, sep='/')
    for name in sorted(chosen):
        if (rank := shapes[name][0][0]) != config.rank:
            raise ValueError(
                f'the adapter of {name} has rank {rank}, the configuration lora.rank={config.rank}'
            )
        for part, found in zip('ab', shapes[name]):
            wanted = tuple(flat[f'{names[name]}/{part}'].shape[-2:])[::-1]
            if tuple(found) != wanted:
                raise ValueError(
                    f'the adapter of {name} has shape {tuple(found)}, the network needs {wanted}'
                )


def peft_tensors(layers: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
    """Keys as Diffusers' `save_lora_weights` writes them: transformer.<layer>.lora_A.weight,
    .lora_B.weight.
    """
    parts = (
        (name, kind, array) for name, pair in layers.items() for kind, array in zip('AB', pair)
    )
    return {f'{PREFIX}{name}.lora_{kind}.weight': array for name, kind, array in parts}


def output_widths(names: dict[str, str], base: dict) -> dict[str, int]:
    """Output width of every layer of `names` by checkpoint name.

    Args:
      names: checkpoint name -> path, `pipeline.adapter_names()`.
      base: the transformer's parameters or their shapes, scanned or not.
    """
    flat = traverse_util.flatten_dict(base, sep='/')
    return {name: flat[f'{path}/kernel'].shape[-1] for name, path in names.items()}


def kohya_tensors(
    layers: dict[str, tuple[np.ndarray, np.ndarray]], widths: dict[str, int]
) -> dict[str, np.ndarray]:
    """Keys as kohya's FLUX scripts write them:
    lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight, .lora_up.weight, .alpha.

    They are the names of FLUX's original release (`bfl.STACKS`) with underscores. Layers that are
    one there are joined: downs stacked, ups on the diagonal of one matrix, zeros for those that are
    not adapted. alpha is the joined rank.

    Args:
      layers: of a FLUX transformer.
      widths: of `output_widths`.

    Raises:
      ValueError: a layer that the layout has no name for.
    """
    tensors, used = {}, set()
    for stack, (source, table, _) in bfl.STACKS.items():
        for i in sorted({int(m[1]) for n in layers if (m := re.match(rf'{source}\.(\d+)\.', n))}):
            for target, members in table.items():
                names = [f'{source}.{i}.{member}' for member in members]
                if not any(name in layers for name in names):
                    continue
                used |= set(names)
                rank = next(layers[n][0].shape[0] for n in names if n in layers)
                inputs = next(layers[n][0].shape[1] for n in names if n in layers)
                blank = lambda n: (
                    np.zeros((rank, inputs), np.float32),
                    np.zeros((widths[n], rank), np.float32),
                )
                downs, ups = zip(*(layers.get(n) or blank(n) for n in names))
                joined = np.zeros((sum(u.shape[0] for u in ups), rank * len(ups)), np.float32)
                row = 0
                for j, up in enumerate(ups):
                    joined[row : row + up.shape[0], j * rank : (j + 1) * rank] = up
                    row += up.shape[0]
                key = f'lora_unet_{stack}_{i}_{target}'.replace('.', '_')
                tensors[f'{key}.lora_down.weight'] = np.concatenate(downs)
                tensors[f'{key}.lora_up.weight'] = joined
                tensors[f'{key}.alpha'] = np.array(float(rank * len(ups)), np.float32)
    if strangers := sorted(set(layers) - used):
        raise ValueError(
            'the kohya layout is written for the blocks of FLUX; it has no name for '
            f'{strangers[:5]}: use the peft layout'
        )
    return tensors


def merge(base: dict, adapters: dict, scale: float) -> dict:
    """Base parameters with W + scale A B in place of every adapted kernel; the sum is taken in
    float32, the dtype stays.
    """
    flat = traverse_util.flatten_dict(base, sep='/')
    lora = traverse_util.flatten_dict(adapters, sep='/')
    for path in {p.rsplit('/', 1)[0] for p in lora}:
        kernel = flat[f'{path}/kernel']
        delta = scale * jnp.matmul(
            lora[f'{path}/a'], lora[f'{path}/b'], precision=jax.lax.Precision.HIGHEST
        )
        flat[f'{path}/kernel'] = (kernel.astype(jnp.float32) + delta).astype(kernel.dtype)
    return traverse_util.unflatten_dict(flat, sep='/')


def write(
    path: pathlib.Path,
    tensors: dict[str, np.ndarray],
    *,
    dtype: Any = None,
    metadata: dict[str, Any] | None = None,
) -> None:
    """Writes the file in one piece: it appears under its name only when it is complete. metadata
    values become JSON strings.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    cast = {
        k: np.ascontiguousarray(v if dtype is None else v.astype(jnp.dtype(dtype)))
        for k, v in tensors.items()
    }
    weights.write_file(
        path,
        cast,
        {k: v if isinstance(v, str) else json.dumps(v) for k, v in (metadata or {}).items()},
    )


def read_peft(path: str | pathlib.Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Layers of a PEFT / Diffusers file, or of a folder that holds `FILENAME`; ups are multiplied
    by alpha / rank.

    alpha comes from '<layer>.alpha' tensors, or the 'lora_adapter_metadata' that Diffusers writes;
    without either it is the rank.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a damaged file, or keys of another layout; names them.
    """
    parts, notes = _read(path, lambda file, key: file.get_tensor(key).astype(np.float32))
    settings, layers = json.loads(notes.get('lora_adapter_metadata', '{}')), {}
    for name, layer in parts.items():
        rank = layer['lora_A'].shape[0]
        alpha = layer.get('alpha', _alpha_of(settings, name, rank))
        layers[name] = layer['lora_A'], layer['lora_B'] * np.float32(alpha / rank)
    return layers


def peft_shapes(path: str | pathlib.Path) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Shapes of the layers of `read_peft`, down [rank, in] and up [out, rank], from the file's
    header alone. Raises as it does.
    """
    parts, _ = _read(path, lambda file, key: tuple(file.get_slice(key).get_shape()))
    return {name: (layer['lora_A'], layer['lora_B']) for name, layer in parts.items()}


def _read(path: str | pathlib.Path, read) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Layer -> 'lora_A', 'lora_B' and where there is one 'alpha' -> read(file, key) of its tensor;
    and the file's metadata.
    """
    path = pathlib.Path(path).expanduser()
    path = path / FILENAME if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(
            f'{path} does not exist; expected a safetensors file with PEFT keys, or a folder with '
            f'{FILENAME}'
        )
    pattern = re.compile(
        rf'(?:{re.escape(PREFIX)}|base_model\.model\.)?(.+)\.(lora_A|lora_B)(?:\.default)?\.weight'
        r'|(.+)\.alpha'
    )
    try:
        with safetensors.safe_open(path, framework='numpy') as file:
            if strangers := [key for key in file.keys() if not pattern.fullmatch(key)]:
                raise ValueError(
                    f'{path} has keys of another layout: {strangers[:3]}; expected '
                    f'{PREFIX}<layer>.lora_A.weight and .lora_B.weight'
                )
            values = {key: read(file, key) for key in file.keys()}
            notes = file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f'{path} is not a complete safetensors file: {error}') from None
    layers: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        match = pattern.fullmatch(key)
        if match[1]:
            layers.setdefault(match[1], {})[match[2]] = value
        else:
            layers.setdefault(match[3].removeprefix(PREFIX), {})['alpha'] = value
    for name, layer in layers.items():
        if not {'lora_A', 'lora_B'} <= layer.keys():
            raise ValueError(
                f'{path}: the layer {name} has only {sorted(layer)}; expected lora_A and lora_B'
            )
    return layers, notes


def _alpha_of(settings: dict, name: str, rank: int) -> float:
    patterns = settings.get(f'{PREFIX}alpha_pattern') or {}
    special = next(
        (
            alpha
            for pattern, alpha in patterns.items()
            if re.fullmatch(rf'(.*\.)?({pattern})', name)
        ),
        None,
    )
    return float(special if special is not None else settings.get(f'{PREFIX}lora_alpha', rank))
