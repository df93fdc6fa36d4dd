"""CLIP: both towers of a folder in the Transformers layout (CLIPModel), from images and prompts
to features of unit length.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from densegrpo_jax.networks.clip_text import ClipTextConfig, ClipTextModel
from densegrpo_jax.networks.clip_vision import ClipVisionConfig, ClipVisionModel
from densegrpo_jax.networks.config_json import IGNORED_KEYS, read_config
from densegrpo_jax.networks.weight_rules import WeightRule
from densegrpo_jax.pipelines.clip_images import ImageSpec, preprocess
from densegrpo_jax.pipelines.tokenizers import open_tokenizer, tokenize
from densegrpo_jax.pipelines.weights import files as weights
from densegrpo_jax.pipelines.weights import open_clip
from densegrpo_jax.runtime.quiet import import_transformers
from densegrpo_jax.runtime.reading import read_json

HOLDS = 'a folder in the Transformers layout of CLIP (config.json, model.safetensors)'
HOLDS_PROCESSOR = (
    'a folder with preprocessor_config.json and a CLIP tokenizer (tokenizer.json, or vocab.json '
    'and merges.txt)'
)
WEIGHT_FILES = ('model.safetensors', 'model-*.safetensors', 'model.safetensors.index.json')
PROCESSOR_FILES = (
    'config.json',
    'preprocessor_config.json',
    'tokenizer*.json',
    'special_tokens_map.json',
    'vocab.json',
    'merges.txt',
)
FILES = (*PROCESSOR_FILES, *WEIGHT_FILES)


@dataclasses.dataclass(frozen=True)
class _ClipConfig:
    """CLIPModel's config.json: the towers' configs, and the keys that old files repeat."""

    text_config: dict = dataclasses.field(default_factory=dict)
    vision_config: dict = dataclasses.field(default_factory=dict)
    text_config_dict: dict | None = None
    vision_config_dict: dict | None = None
    projection_dim: int = 512

    def tower(self, name: str) -> dict:
        """As in Transformers: an old file's repeated keys win, and the projection's size is the
        whole model's, whatever the tower says.
        """
        return {
            **getattr(self, name),
            **(getattr(self, f'{name}_dict') or {}),
            'projection_dim': self.projection_dim,
        }


@dataclasses.dataclass(frozen=True)
class Clip:
    """Networks and settings without weights; the weights are a dict with 'vision_model' and, if
    there is text, 'text_model' and 'logit_scale' (the logarithm of the cosines' factor)."""

    text: ClipTextModel | None
    vision: ClipVisionModel
    image_spec: ImageSpec
    tokenizer: Any

    def tokenize(self, prompts: Sequence[str]) -> np.ndarray:
        """Token ids int32 [B, max_position_embeddings]; longer prompts are cut."""
        return tokenize(self.tokenizer, prompts, self.text.config.max_position_embeddings)

    def text_features(self, params: dict, ids: jax.Array) -> jax.Array:
        """ids int32 [B, L] -> float32 [B, projection_dim], of unit length."""
        with self._precision():
            return _unit(self.text.apply({'params': params['text_model']}, ids)[1])

    def image_features(self, params: dict, images: jax.Array) -> jax.Array:
        """images uint8 or float in [0, 1], [B, H, W, 3] (`preprocess`) -> float32 [B,
        projection_dim], of unit length.
        """
        with self._precision():
            return _unit(
                self.vision.apply(
                    {'params': params['vision_model']}, preprocess(images, self.image_spec)
                )[1]
            )

    def _precision(self):
        # Accelerators round float32 products to fewer bits unless told otherwise; rewards of a
        # group differ little.
        return jax.default_matmul_precision(
            'highest' if self.vision.dtype == jnp.float32 else 'default'
        )

    def abstract_params(self) -> dict:
        """Shapes of the parameters: a tree of jax.ShapeDtypeStruct, float32."""
        side = self.vision.config.image_size
        shapes = lambda module, x: jax.eval_shape(module.init, jax.random.key(0), x)['params']
        params = {'vision_model': shapes(self.vision, jnp.zeros((1, side, side, 3)))}
        if self.text is not None:
            params['text_model'] = shapes(self.text, jnp.zeros((1, 8), jnp.int32))
            params['logit_scale'] = jax.ShapeDtypeStruct((), jnp.float32)
        return params

    def weight_rules(self) -> list[WeightRule]:
        """The table of Transformers' CLIPModel checkpoint; without a text tower its keys are known
        and ignored.
        """
        rules = _inside('vision_model', self.vision.weight_rules())
        if self.text is None:
            return [
                *rules,
                WeightRule(r'{p:text_model\..+|text_projection\.weight|logit_scale}', None),
            ]
        text = _inside('text_model', self.text.weight_rules())
        return [*rules, *text, WeightRule('logit_scale', 'logit_scale')]


def read_clip(
    folder: pathlib.Path,
    processor: pathlib.Path | None = None,
    *,
    text: bool = True,
    geometry: str = 'transformers',
    dtype: Any = jnp.float32,
) -> Clip:
    """The model without its weights; reads only JSON and the tokenizer.

    Args:
      folder: holds config.json.
      processor: holds preprocessor_config.json and the tokenizer; None means `folder`.
      text: with the text tower.
      geometry: of images, see `ImageSpec`.
      dtype: of matrix products; float32 products are not rounded to fewer bits on any device.

    Raises:
      FileNotFoundError, ValueError: a file is missing, damaged or belongs to another network; the
        message names it.
    """
    folder, processor = pathlib.Path(folder), pathlib.Path(processor or folder)
    ignored = (*IGNORED_KEYS, 'logit_scale_init_value')
    config = read_config(
        _ClipConfig,
        'CLIP config',
        read_json(folder / 'config.json', HOLDS),
        only={'model_type': ['clip']},
        ignored=ignored,
    )
    spec = ImageSpec.from_json(read_json(processor / 'preprocessor_config.json', HOLDS_PROCESSOR))
    vision = ClipVisionConfig.from_json(config.tower('vision_config'))
    if spec.crop_size != vision.image_size:
        raise ValueError(
            f'{processor}: images of {spec.crop_size} pixels (crop_size), and {folder} takes '
            f'{vision.image_size} (image_size)'
        )
    tower = tokenizer = None
    if text:
        tower = ClipTextModel(
            ClipTextConfig.from_json(config.tower('text_config')),
            scan=True,
            remat=True,  # changes nothing but gradients
            dtype=dtype,
            projected=True,
        )
        tokenizer = _load_tokenizer(processor, tower.config)
    spec = dataclasses.replace(spec, geometry=geometry)
    return Clip(tower, ClipVisionModel(vision, dtype), spec, tokenizer)


def check_params(clip: Clip, source: pathlib.Path) -> None:
    """Raises the errors of `load_params`, from the files' headers alone."""
    weights.check_weights(source, abstract_params=clip.abstract_params(), **_layout(clip, source))


def load_params(
    clip: Clip, source: pathlib.Path, *, sharding: jax.sharding.Sharding | None = None
) -> dict:
    """The weights, in the dtype of the model's products; logit_scale stays float32.

    source: a folder in the Transformers layout, or one safetensors file in OpenCLIP's. Missing,
    unexpected and mis-shaped keys raise an error that names them.
    """
    keep = lambda path, array: array if path == 'logit_scale' else array.astype(clip.vision.dtype)
    shapes = clip.abstract_params()
    return weights.load_weights(
        source,
        abstract_params=shapes,
        dtype=np.float32,
        shardings=sharding,
        convert=keep,
        **_layout(clip, source),
    )


def _layout(clip: Clip, source: pathlib.Path) -> dict:
    if not source.is_file():
        return {'rules': clip.weight_rules()}
    return {
        'rules': open_clip.weight_rules(),
        'layout': open_clip.split_attention,
        'prefix': open_clip.PREFIX,
    }


def _inside(name: str, rules: list[WeightRule]) -> list[WeightRule]:
    """A tower's table as part of the whole model's."""
    return [
        dataclasses.replace(
            rule,
            source=f'{name}.{rule.source}' if rule.prefixed else rule.source,
            target=None if rule.target is None else f'{name}/{rule.target}',
        )
        for rule in rules
    ]


def _unit(x: jax.Array) -> jax.Array:
    x = x.astype(jnp.float32)
    return x / jnp.sqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True))


def _load_tokenizer(folder: pathlib.Path, config: ClipTextConfig):
    """Checks what Transformers found: without any file it opens an empty tokenizer."""
    if not (
        (folder / 'tokenizer.json').is_file()
        or ((folder / 'vocab.json').is_file() and (folder / 'merges.txt').is_file())
    ):
        raise FileNotFoundError(f'there is no tokenizer in {folder}; expected {HOLDS_PROCESSOR}')
    tokenizer = open_tokenizer(import_transformers().CLIPTokenizer, folder)
    # 2: see ClipTextModel
    last = len(tokenizer) - 1 if config.eos_token_id == 2 else config.eos_token_id
    if len(tokenizer) > config.vocab_size or tokenizer.eos_token_id != last:
        raise ValueError(
            f'the tokenizer in {folder} has {len(tokenizer)} tokens and ends texts with '
            f'{tokenizer.eos_token_id}; the network has {config.vocab_size} and ends them with '
            f'{last}'
        )
    return tokenizer
