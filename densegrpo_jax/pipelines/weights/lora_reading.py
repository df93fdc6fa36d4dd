"""Reads adapter files of this project and of other tools, at the strength of their training.

A layer computes W x + scale * up(down(x)). The scale is alpha / rank, or alpha / sqrt(rank) with
rank-stabilised LoRA. The place of alpha depends on the tool:

    Diffusers   pytorch_lora_weights.safetensors, keys transformer.LAYER.lora_A.weight; settings in
                the file's metadata, 'lora_adapter_metadata'. Files without settings, as of this
                project: alpha = rank. Older keys: LAYER.lora.down.weight and .up
    PEFT        adapter_model.safetensors, keys base_model.model.LAYER.lora_A.weight; settings in
                adapter_config.json beside it
    either      a tensor LAYER.alpha, which takes precedence over the settings
"""

from __future__ import annotations

import math
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import safetensors

from densegrpo_jax.runtime.reading import missing, parse_json, read_json, shown

PREFIX = 'transformer.'  # of the network inside a Diffusers pipeline
FILENAME = 'pytorch_lora_weights.safetensors'  # the file that `load_lora_weights` looks for
PEFT_FILENAME, PEFT_CONFIG = 'adapter_model.safetensors', 'adapter_config.json'
METADATA = 'lora_adapter_metadata'

_PEFT_PREFIX = 'base_model.model.'
_KEY = re.compile(
    rf'(?:{re.escape(_PEFT_PREFIX)})?(?:transformer\.|diffusion_model\.)?'
    r'(?P<layer>.+?)\.(?:(?P<part>lora_A|lora_B|lora\.down|lora\.up)(?:\.default)?\.weight|alpha)'
)
_PARTS = {'lora_A': 'down', 'lora.down': 'down', 'lora_B': 'up', 'lora.up': 'up', None: 'alpha'}
# Unsupported contents, by a pattern of their keys, with the reason and the way out.
_REFUSED = {
    r'lora_magnitude_vector|dora_scale': 'DoRA, whose magnitudes have no place in an adapter here: '
    'merge it into the base model',
    r'^text_encoder': "layers of a text encoder, which is not trained here: save the transformer's "
    'layers alone',
    r'^lora_unet_|^lora_te': "kohya's layout: open it in Diffusers (load_lora_weights) and save it "
    'there (save_lora_weights)',
    r'modules_to_save|lora_embedding|\.bias$|\.diff': 'weights beside the two matrices of a layer: '
    'merge the adapter into the base model',
}
_FLOATS = ('F64', 'F32', 'F16', 'BF16')


class Settings(NamedTuple):
    """The scales of a file's layers."""

    alpha: float | None = None  # None: the layer's rank
    patterns: Mapping[str, float] = {}  # pattern of a layer's name -> its alpha
    stabilised: bool = False  # rank-stabilised: alpha / sqrt(rank)

    def scale(self, name: str, rank: int, own: float | None = None) -> float:
        """The scale of a layer; own: its alpha, if the file holds it."""
        alpha = own
        if alpha is None:
            matches = (a for p, a in self.patterns.items() if re.fullmatch(rf'(.*\.)?({p})', name))
            alpha = next(matches, rank if self.alpha is None else self.alpha)
        return alpha / (math.sqrt(rank) if self.stabilised else rank)


class Layer(NamedTuple):
    """A layer in a file, with functions that read its tensors, since a shape needs no tensor."""

    down: Any  # [rank, in]
    up: Any  # [out, rank]
    alpha: float | None


def read_peft(path: str | pathlib.Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Layer -> (down [rank, in], up [out, rank] times its scale), float32, from a file or from a
    folder that holds one.

    Raises:
      FileNotFoundError: no such file.
      ValueError: the file is damaged, has another layout or unsupported contents, or a tensor is
        not finite; the message names it and what is expected.
    """
    layers = {}
    for name, settings, layer in _layers(path, lambda file, key: file.get_tensor(key)):
        down, up = (np.asarray(a).astype(np.float32) for a in layer[:2])
        up = up * np.float32(settings.scale(name, len(down), layer.alpha))
        if not (np.isfinite(down).all() and np.isfinite(up).all()):
            raise ValueError(f'{path}: the layer {name} holds values that are not finite')
        layers[name] = down, up
    return layers


def peft_shapes(path: str | pathlib.Path) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Shapes of the layers of `read_peft`, down and up, from the file's header alone. Raises as it
    does, except for values.
    """
    shape = lambda file, key: tuple(file.get_slice(key).get_shape())
    return {name: (layer.down, layer.up) for name, _, layer in _layers(path, shape)}


def _layers(path: str | pathlib.Path, read: Callable) -> Iterator[tuple[str, Settings, Layer]]:
    """(name, the file's settings, layer) in the order of the file; read(file, key) of its two
    matrices.
    """
    path = _file(pathlib.Path(path).expanduser())
    found: dict[str, dict[str, Any]] = {}
    try:
        with safetensors.safe_open(path, framework='numpy') as file:
            keys = list(file.keys())
            _check_keys(path, keys)
            for key in keys:
                if (kind := file.get_slice(key).get_dtype()) not in _FLOATS:
                    raise ValueError(
                        f'{path}: {key} is stored as {kind}; expected one of {", ".join(_FLOATS)}: '
                        'convert the file'
                    )
                match = _KEY.fullmatch(key)
                part = _PARTS[match['part']]
                value = read(file, key) if part != 'alpha' else float(file.get_tensor(key))
                found.setdefault(match['layer'], {})[part] = value
            notes = file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f'{path} is not a complete safetensors file: {error}') from None
    settings = _settings(path, keys, notes)
    for name, parts in found.items():
        if not {'down', 'up'} <= parts.keys():
            raise ValueError(
                f'{path}: the layer {name} has only {sorted(parts)}; expected lora_A and lora_B'
            )
        layer = Layer(parts['down'], parts['up'], parts.get('alpha'))
        down, up = (a if isinstance(a, tuple) else a.shape for a in layer[:2])
        if len(down) != 2 or len(up) != 2 or down[0] != up[1] or not down[0]:
            raise ValueError(
                f'{path}: the layer {name} has lora_A {tuple(down)} and lora_B {tuple(up)}; '
                'expected [rank, in] and [out, rank] with a rank of at least 1'
            )
        yield name, settings, layer


def _file(path: pathlib.Path) -> pathlib.Path:
    if path.is_dir():
        there = [path / name for name in (FILENAME, PEFT_FILENAME) if (path / name).is_file()]
        if len(there) > 1:
            raise ValueError(f'{path} holds {FILENAME} and {PEFT_FILENAME}: name one of them')
        path = there[0] if there else path / FILENAME
    if not path.is_file():
        raise missing(
            path,
            str(path),
            f'a safetensors file with LoRA keys, or a folder with {FILENAME} (Diffusers) or '
            f'{PEFT_FILENAME} (PEFT)',
        )
    return path


def _check_keys(path: pathlib.Path, keys: list[str]) -> None:
    if not keys:
        raise ValueError(f'{path} holds no tensor')
    for pattern, reason in _REFUSED.items():
        if of_kind := [key for key in keys if re.search(pattern, key)]:
            raise ValueError(f'{path} holds {of_kind[0]}: {reason}')
    if strangers := [key for key in keys if not _KEY.fullmatch(key)]:
        raise ValueError(
            f'{path} has keys of another layout: {strangers[:3]}; expected '
            f'{PREFIX}<layer>.lora_A.weight and .lora_B.weight'
        )


def _settings(path: pathlib.Path, keys: list[str], notes: Mapping[str, str]) -> Settings:
    """The settings from PEFT's file beside it, or from the metadata that Diffusers writes."""
    config = path.with_name(PEFT_CONFIG)
    if any(key.startswith(_PEFT_PREFIX) for key in keys) or path.name == PEFT_FILENAME:
        if not config.is_file():
            raise ValueError(
                f'{path} has the layout of PEFT, whose strength is in {PEFT_CONFIG}: put that file '
                'beside it'
            )
        return _parsed(str(config), read_json(config))
    if METADATA not in notes:
        return Settings()
    where = f'the metadata {METADATA!r} of {path}'
    given = parse_json(notes[METADATA], where)
    return _parsed(where, {key.removeprefix(PREFIX): value for key, value in given.items()})


def _parsed(where: str, given: Mapping[str, Any]) -> Settings:
    number = lambda value: isinstance(value, int | float) and math.isfinite(value)
    for key, plain in (('peft_type', 'LORA'), ('use_dora', False), ('fan_in_fan_out', False)):
        if (value := given.get(key)) not in (None, plain):
            raise ValueError(f'{where}: {key} is {shown(value)}; only {plain!r} is read')
    patterns = given.get('alpha_pattern') or {}
    alpha, stabilised = given.get('lora_alpha'), given.get('use_rslora') or False
    if not isinstance(patterns, dict) or not all(map(number, patterns.values())):
        raise ValueError(f'{where}: alpha_pattern is {shown(patterns)}; expected name: number')
    if not (alpha is None or number(alpha)):
        raise ValueError(f'{where}: lora_alpha is {shown(alpha)}; expected a number')
    if not isinstance(stabilised, bool):
        raise ValueError(f'{where}: use_rslora is {shown(stabilised)}; expected true or false')
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f'{where}: alpha_pattern {pattern!r}: {error}') from None
    return Settings(alpha, patterns, stabilised)
