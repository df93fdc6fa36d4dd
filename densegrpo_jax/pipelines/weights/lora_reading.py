"""Reads adapter files of this project and of other tools, at the strength of their training.

A layer computes W x + scale * up(down(x)). The scale is alpha / rank, or alpha / sqrt(rank) with
rank-stabilised LoRA. The place of alpha depends on the tool:

    Diffusers   pytorch_lora_weights.safetensors, keys transformer.LAYER.lora_A.weight; settings in
                the file's metadata, 'lora_adapter_metadata'. Files without settings, as of this
                project: alpha = rank. Older keys: LAYER.lora.down.weight and .up
    PEFT        adapter_model.safetensors, keys base_model.model.LAYER.lora_A.weight; settings in
                adapter_config.json beside it
    kohya       keys lora_unet_LAYER.lora_down.weight and .lora_up.weight, underscores for dots; our
                exports are called kohya_lora.safetensors
    all         a tensor LAYER.alpha, which takes precedence over the settings

ComfyUI and kohya name layers as the original releases do; one of those may be several in Diffusers
(`originals`), which share its down and have some rows of its up each.
"""

from __future__ import annotations

import math
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import safetensors

from densegrpo_jax.pipelines.weights.originals import Original, block_layers, split_rows
from densegrpo_jax.runtime.reading import finite, missing, parse_json, read_json, shown

PREFIX = 'transformer.'  # of the network inside most Diffusers pipelines
_PREFIX = re.compile(r'(transformer|unet)\.')
FILENAME = 'pytorch_lora_weights.safetensors'  # the file that `load_lora_weights` looks for
KOHYA_FILENAME = 'kohya_lora.safetensors'  # of our own exports
PEFT_FILENAME, PEFT_CONFIG = 'adapter_model.safetensors', 'adapter_config.json'
METADATA = 'lora_adapter_metadata'

_PEFT_PREFIX = 'base_model.model.'
_KOHYA_PREFIX = 'lora_unet_'
_PARTS = {
    **dict.fromkeys(('lora_A', 'lora.down', 'lora_down'), 'down'),
    **dict.fromkeys(('lora_B', 'lora.up', 'lora_up'), 'up'),
    None: 'alpha',
}
_KEY = re.compile(
    rf'(?:{re.escape(_PEFT_PREFIX)})?(?:transformer\.|unet\.|diffusion_model\.)?(?P<layer>.+?)'
    rf'\.(?:(?P<part>{"|".join(re.escape(p) for p in _PARTS if p)})(?:\.default)?\.weight|alpha)'
)
# Unsupported contents, by a pattern of their keys, with the reason and the way out.
_REFUSED = {
    r'lora_magnitude_vector|dora_scale': 'DoRA, whose magnitudes have no place in an adapter here: '
    'merge it into the base model',
    r'^text_encoder|^lora_te': 'layers of a text encoder, which is not trained here: save the '
    "transformer's layers alone",
    r'modules_to_save|lora_embedding|\.bias$|\.diff': 'weights beside the two matrices of a layer: '
    'merge the adapter into the base model',
}
_FLOATS = ('F64', 'F32', 'F16', 'BF16')
# Settings of PEFT that change what the matrices mean, with the values that do not. The
# initialisations are those that leave the base model as it is.
_PLAIN: Mapping[str, tuple[Any, ...]] = {
    'peft_type': ('LORA',),
    'fan_in_fan_out': (False,),
    'init_lora_weights': (True, False, 'gaussian', 'eva', 'orthogonal', 'mica'),
    'bias': ('none',),
    **dict.fromkeys(('lora_bias', 'use_dora', 'use_qalora', 'use_bdlora'), (False,)),
    **dict.fromkeys(('layer_replication', 'alora_invocation_tokens'), ([],)),
    **dict.fromkeys(('arrow_config', 'kasa_config'), ()),
}


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
    """A layer in a file."""

    name: str  # as the file has it
    members: tuple[str, ...]  # its layers in Diffusers
    tensors: dict[str, Any]  # 'down' [rank, in] and 'up' [out, rank], as safetensors' slices
    alpha: float | None


def read_layers(
    path: str | pathlib.Path, names: Iterable[str] = (), original: Original | None = None
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Layer -> (down [rank, in], up [out, rank] times its scale), float32, from a file or from a
    folder that holds one.

    Args:
      names: Diffusers' names of the network's layers; without them and `original`, the file must
        have such names itself.
      original: `Pipeline.ORIGINAL`, the names of the original release.

    Raises:
      FileNotFoundError: no such file.
      ValueError: the file is damaged, has another layout or unsupported contents, names a layer
        twice, or a tensor is not finite; the message names it and what is expected.
    """
    layers: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for settings, layer in _layers(path, names, original):
        down, up = (layer.tensors[part][:].astype(np.float32) for part in ('down', 'up'))
        up = up * np.float32(settings.scale(layer.name, len(down), layer.alpha))
        if not (np.isfinite(down).all() and np.isfinite(up).all()):
            raise ValueError(f'{path}: the layer {layer.name} holds values that are not finite')
        layers |= _split(layer.members, down, up, original)
    return layers


def layer_shapes(
    path: str | pathlib.Path, names: Iterable[str] = (), original: Original | None = None
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Shapes of the layers of `read_layers`, down and up, from the file's header and the joined
    layers. Raises as it does, except for values.
    """
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    for _, layer in _layers(path, names, original):
        down, up = layer.tensors['down'], layer.tensors['up']
        if len(layer.members) == 1:
            shapes[layer.members[0]] = tuple(down.get_shape()), tuple(up.get_shape())
        else:
            parts = _split(layer.members, down[:], up[:], original)
            shapes |= {name: (down.shape, up.shape) for name, (down, up) in parts.items()}
    return shapes


def _split(
    members: tuple[str, ...], down: np.ndarray, up: np.ndarray, original: Original | None
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The layers that a joined one stands for. Each keeps the ranks that reach it, all if none
    does; one that alone is reached by none has no adapter.
    """
    if len(members) == 1:
        return {members[0]: (down, up)}
    layers, shares = {}, original.shares if original else {}
    for name, (begin, end) in zip(members, split_rows(len(up), members, shares)):
        reaching = (up[begin:end] != 0).any(0) if up.any() else np.ones(len(down), bool)
        if reaching.any():
            layers[name] = down[reaching], up[begin:end, reaching]
    return layers


def _layers(
    path: str | pathlib.Path, names: Iterable[str], original: Original | None
) -> Iterator[tuple[Settings, Layer]]:
    """(the file's settings, layer) in the order of the file, which is open meanwhile."""
    path = _file(pathlib.Path(path).expanduser())
    known = {name: (name,) for name in names}
    if original is not None:
        known |= {theirs: (ours,) for theirs, ours in original.outside.items()}
        known |= block_layers(original, list(known))
    underscored = {name.replace('.', '_'): members for name, members in known.items()}
    try:
        with safetensors.safe_open(path, framework='numpy') as file:
            keys = list(file.keys())
            _check_keys(path, keys)
            found: dict[str, dict[str, Any]] = {}
            for key in keys:
                tensor, match = file.get_slice(key), _KEY.fullmatch(key)
                if (kind := tensor.get_dtype()) not in _FLOATS:
                    raise ValueError(
                        f'{path}: {key} is stored as {kind}; expected one of {", ".join(_FLOATS)}: '
                        'convert the file'
                    )
                part = _PARTS[match['part']]
                if part == 'alpha':
                    tensor = _alpha(path, key, file.get_tensor(key))
                of_layer = found.setdefault(match['layer'], {})
                if part in of_layer:
                    raise ValueError(
                        f'{path} holds the {part} of the layer {match["layer"]} twice, once as '
                        f'{key}: remove one of them'
                    )
                of_layer[part] = tensor
            settings = _settings(path, keys, file.metadata() or {})
            sources: dict[str, str] = {}
            for name, parts in found.items():
                alpha = parts.pop('alpha', None)
                _check_pair(path, name, parts)
                members = (
                    underscored.get(name.removeprefix(_KOHYA_PREFIX))
                    if name.startswith(_KOHYA_PREFIX)
                    else known.get(name, (name,))
                )
                if members is None:
                    raise ValueError(
                        f'{path}: the layer {name}, in the layout of kohya, is none of this '
                        'network. Is it an adapter of another model? Else open it in Diffusers '
                        '(load_lora_weights) and save it there (save_lora_weights)'
                    )
                if doubled := [member for member in members if member in sources]:
                    raise ValueError(
                        f'{path} holds the layer {doubled[0]} twice, in {sources[doubled[0]]} and '
                        f'in {name}: remove one of them'
                    )
                sources |= dict.fromkeys(members, name)
                yield settings, Layer(name, members, parts, alpha)
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f'{path} is not a complete safetensors file: {error}') from None


def _alpha(path: pathlib.Path, key: str, value: np.ndarray) -> float:
    if value.size != 1 or not np.isfinite(value).all():
        raise ValueError(f'{path}: {key} is {shown(value.tolist())}; expected one number')
    return float(value.reshape(()))


def _check_pair(path: pathlib.Path, name: str, parts: Mapping[str, Any]) -> None:
    """Checks that a layer has its two matrices and that they fit each other."""
    if parts.keys() != {'down', 'up'}:
        raise ValueError(
            f'{path}: the layer {name} has only {sorted(parts)}; expected lora_A and lora_B'
        )
    down, up = (tuple(parts[part].get_shape()) for part in ('down', 'up'))
    if len(down) != 2 or len(up) != 2 or down[0] != up[1] or not down[0]:
        raise ValueError(
            f'{path}: the layer {name} has lora_A {down} and lora_B {up}; expected [rank, in] and '
            '[out, rank] with a rank of at least 1'
        )


def _file(path: pathlib.Path) -> pathlib.Path:
    if path.is_dir():
        names = FILENAME, PEFT_FILENAME, KOHYA_FILENAME
        there = [path / name for name in names if (path / name).is_file()]
        if len(there) > 1:
            held = ' and '.join(file.name for file in there)
            raise ValueError(f'{path} holds {held}: name one of them')
        path = there[0] if there else path / FILENAME
    if not path.is_file():
        raise missing(
            path,
            str(path),
            f'a safetensors file with LoRA keys, or a folder with {FILENAME} (Diffusers), '
            f'{PEFT_FILENAME} (PEFT) or {KOHYA_FILENAME} (ours for ComfyUI)',
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
    return _parsed(where, {_PREFIX.sub('', key, 1): value for key, value in given.items()})


def _parsed(where: str, given: Mapping[str, Any]) -> Settings:
    for key, plain in _PLAIN.items():
        if (value := given.get(key)) not in (None, *plain):
            raise ValueError(
                f'{where}: {key} is {shown(value)}; only {" or ".join(map(repr, plain)) or None} '
                'is read: merge the adapter into the base model, with PEFT'
            )
    patterns = given.get('alpha_pattern') or {}
    alpha, stabilised = given.get('lora_alpha'), given.get('use_rslora') or False
    if not isinstance(patterns, dict) or not all(map(finite, patterns.values())):
        raise ValueError(f'{where}: alpha_pattern is {shown(patterns)}; expected name: number')
    if not isinstance(stabilised, bool):
        raise ValueError(f'{where}: use_rslora is {shown(stabilised)}; expected true or false')
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f'{where}: alpha_pattern {pattern!r}: {error}') from None
    if not finite(alpha):
        raise ValueError(
            f'{where}: lora_alpha is {shown(alpha)}; expected the number that the adapter was '
            'trained with, which decides its strength: every version of PEFT writes it'
        )
    return Settings(alpha, patterns, stabilised)
