"""CLIP's image encoder (Radford et al., arXiv:2103.00020): port of Transformers'
CLIPVisionModelWithProjection.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from densegrpo_jax.networks.clip_layers import Block, block_rules, check_tower
from densegrpo_jax.networks.config_json import IGNORED_KEYS, read_config
from densegrpo_jax.networks.layers import LayerNorm, kernel_init
from densegrpo_jax.networks.mmdit import stack
from densegrpo_jax.networks.network import Network
from densegrpo_jax.networks.weight_rules import WeightRule, norm_rules


@dataclasses.dataclass(frozen=True)
class ClipVisionConfig:
    """The image encoder's config.json; names and defaults are Transformers'. image_size and
    patch_size in pixels.
    """

    hidden_size: int = 768
    intermediate_size: int = 3072
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = 'quick_gelu'
    layer_norm_eps: float = 1e-5

    def __post_init__(self):
        check_tower(self, 'CLIP vision config')
        if self.num_channels != 3:
            raise ValueError(
                f'CLIP vision config: num_channels={self.num_channels} is not supported, expected 3'
            )
        if self.image_size < self.patch_size:
            raise ValueError(
                f'CLIP vision config: image_size={self.image_size} is smaller than '
                f'patch_size={self.patch_size}'
            )

    @property
    def grid(self) -> int:
        """Patches along a side; pixels beyond the last whole patch are not seen, as in torch."""
        return self.image_size // self.patch_size

    @classmethod
    def from_json(cls, config: dict) -> 'ClipVisionConfig':
        """Reads a parsed config.json; an unknown key or an unsupported value is a ValueError that
        names it.
        """
        only = {'model_type': ['clip_vision_model']}
        return read_config(
            cls, 'CLIP vision config', config, only=only, ignored=(*IGNORED_KEYS, 'eos_token_id')
        )


class ClipVisionModel(Network):
    """Normalised images to (states of the last layer, projected pooled state). The blocks are one
    scanned stack, which the backward pass recomputes.

    Attributes:
      config: the checkpoint's constants.
      dtype: of matrix products and of the result; norms, softmax and the residual stream are
        float32.
    """

    config: ClipVisionConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """images [B, image_size, image_size, 3] -> (states [B, 1 + grid^2, D], pooled [B,
        projection_dim]).

        pooled is the projection of the class token's normalised state; the states are not
        normalised, as in Transformers.
        """
        c = self.config
        batch, side, grid, width = images.shape[0], c.patch_size, c.grid, c.hidden_size
        if images.shape[1:] != (c.image_size, c.image_size, 3):
            raise ValueError(
                f'images: expected [B, {c.image_size}, {c.image_size}, 3], found '
                f'{list(images.shape)}'
            )
        kernel = self.param('patch_embedding', kernel_init, (side, side, 3, width), jnp.float32)
        token = self.param(
            'class_embedding', nn.initializers.normal(width**-0.5), (width,), jnp.float32
        )
        positions = self.param(
            'position_embedding', nn.initializers.normal(0.02), (1 + grid**2, width), jnp.float32
        )
        # A convolution whose stride equals its kernel size is one product over whole patches.
        patches = (
            images[:, : grid * side, : grid * side]
            .reshape(batch, grid, side, grid, side, 3)
            .swapaxes(2, 3)
        )
        x = patches.reshape(-1, side * side * 3).astype(self.dtype) @ kernel.reshape(
            -1, width
        ).astype(self.dtype)
        x = x.reshape(batch, grid**2, width).astype(jnp.float32)
        x = (
            jnp.concatenate(
                [jnp.broadcast_to(token.astype(jnp.float32), (batch, 1, width)), x], axis=1
            )
            + positions
        )
        x = LayerNorm(c.layer_norm_eps, name='pre_norm')(x).reshape(-1, width)
        kwargs = dict(config=c, batch=batch, dtype=self.dtype)
        x = stack(Block, c.num_hidden_layers, 'layers', kwargs, x, 0.0, scan=True, remat='full')
        x = x.reshape(batch, -1, width)
        pooled = LayerNorm(c.layer_norm_eps, name='post_norm')(x[:, 0]).astype(self.dtype)
        projection = self.param(
            'visual_projection', kernel_init, (width, c.projection_dim), jnp.float32
        )
        return x.astype(self.dtype), pooled @ projection.astype(self.dtype)

    def weight_rules(self) -> list[WeightRule]:
        """As for the text tower, released files have a prefix ('vision_model.') before every key
        except the projection's.
        """
        return [
            WeightRule('visual_projection.weight', 'visual_projection', 'linear', prefixed=False),
            WeightRule('embeddings.position_ids', None),  # an index buffer of old files
            WeightRule('embeddings.class_embedding', 'class_embedding'),
            WeightRule('embeddings.patch_embedding.weight', 'patch_embedding', 'conv'),
            WeightRule('embeddings.position_embedding.weight', 'position_embedding'),
            *norm_rules('pre_layrnorm', 'pre_norm'),  # so spelt in Transformers
            *norm_rules('post_layernorm', 'post_norm'),
            *block_rules(scan=True),
        ]
