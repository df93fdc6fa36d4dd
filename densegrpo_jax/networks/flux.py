"""FLUX.1's transformer: double-stream then single-stream blocks with adaLN-zero modulation (port of
Diffusers' FluxTransformer2DModel).
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from densegrpo_jax.networks import attention, layers, mmdit
from densegrpo_jax.networks import lora as lora_lib
from densegrpo_jax.networks.attention import Attend
from densegrpo_jax.networks.config_json import check_positive, read_config
from densegrpo_jax.networks.mmdit import (
    Attention,
    JointBlock,
    LayerTable,
    Modulation,
    Stack,
    StackedNetwork,
    TimeTextEmbed,
    modulated_norm,
    path,
    stack,
)
from densegrpo_jax.networks.names import JOINT_ATTENTION

CLASS_NAME = 'FluxTransformer2DModel'
STACKS = ('transformer_blocks', 'single_transformer_blocks')


@dataclasses.dataclass(frozen=True)
class FluxConfig:
    """The transformer's config.json; fields, names and defaults are Diffusers'."""

    patch_size: int = 1
    in_channels: int = 64
    out_channels: int | None = None
    num_layers: int = 19
    num_single_layers: int = 38
    attention_head_dim: int = 128
    num_attention_heads: int = 24
    joint_attention_dim: int = 4096
    pooled_projection_dim: int = 768
    guidance_embeds: bool = False
    axes_dims_rope: tuple[int, ...] = (16, 56, 56)

    def __post_init__(self):
        object.__setattr__(self, 'axes_dims_rope', tuple(self.axes_dims_rope))
        check_positive(self, 'transformer config', zero=('num_layers', 'num_single_layers'))
        if self.patch_size != 1:
            raise ValueError(
                f'transformer config: patch_size {self.patch_size} is not supported; FLUX.1 packs '
                'latents outside and uses 1'
            )
        if sum(self.axes_dims_rope) != self.attention_head_dim or any(
            d < 2 or d % 2 for d in self.axes_dims_rope
        ):
            raise ValueError(
                f'transformer config: axes_dims_rope {self.axes_dims_rope} must be even and sum to '
                f'attention_head_dim {self.attention_head_dim}'
            )

    @property
    def hidden_dim(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @classmethod
    def from_json(cls, config: dict) -> 'FluxConfig':
        """Reads a parsed config.json; an unknown key or an unsupported value is a ValueError that
        names it.
        """
        return read_config(
            cls, 'transformer config', config, only={'_class_name': [CLASS_NAME]}, ignored=()
        )


class SingleBlock(nn.Module):
    """Attention and feed-forward side by side on the joined stream. Carry: [B, L + N, D]."""

    heads: int
    adapters: lora_lib.Adapters | None
    dtype: Any
    attend: Attend = attention.xla

    @nn.compact
    def __call__(self, x, cond, rope):
        shift, scale, gate = Modulation(3, self.adapters, self.dtype, name='norm')(cond)
        normed = modulated_norm(x, shift, scale, self.dtype)
        hidden = layers.gelu(
            layers.Dense(4 * x.shape[-1], self.adapters, self.dtype, name='proj_mlp')(normed)
        )
        attended = Attention(
            self.heads, self.adapters, self.dtype, out=False, attend=self.attend, name='attn'
        )(normed, None, rope)
        both = attention.pin(
            self.attend, jnp.concatenate([attended, hidden], axis=-1), None, 'tensor'
        )
        out = layers.Dense(x.shape[-1], self.adapters, self.dtype, name='proj_out')(both)
        return x + gate[:, None] * out, None


class FluxTransformer(StackedNetwork):
    """The velocity network of FLUX.1. Fresh modulation and output layers are zero (adaLN-zero,
    arXiv:2212.09748), so a fresh network predicts 0.
    """

    config: FluxConfig

    COLUMN = (*mmdit.COLUMN, 'x_embedder', 'context_embedder', 'proj_mlp')
    ROW = (*mmdit.ROW, 'proj_out')
    BLOCKS = STACKS

    @nn.compact
    def __call__(self, latents, text, pooled, timestep, guidance, img_ids, txt_ids):
        """Predicts the velocity eps - x_0.

        Args:
          latents: [B, N, in_channels], packed 2x2 patches.
          text: [B, L, joint_attention_dim], T5 states.
          pooled: [B, pooled_projection_dim], CLIP's pooled output.
          timestep: [B] float32 in [0, 1], 1 = noise (multiplied by 1000 inside).
          guidance: [B] float32, the distilled guidance scale, or None if the network has no
            guidance embedding.
          img_ids: [N, axes] positions, (0, row, column) for images.
          txt_ids: [L, axes] positions, zeros for text.
        Returns:
          [B, N, out_channels] float32.
        """
        config = self.config
        if (guidance is not None) != config.guidance_embeds:
            raise ValueError(
                f'guidance is {"given" if guidance is not None else "None"} but the network has '
                f'guidance_embeds={config.guidance_embeds}'
            )
        adapters = lora_lib.resolve(self.lora, self.module_paths())
        dense = lambda features, name, init=layers.kernel_init: layers.Dense(
            features, adapters, self.dtype, init, name=name
        )

        cond = nn.silu(
            TimeTextEmbed(config.hidden_dim, adapters, name='time_text_embed')(
                timestep, guidance, pooled
            )
        )
        x = dense(config.hidden_dim, 'x_embedder')(latents)
        text = dense(config.hidden_dim, 'context_embedder')(text)
        rope = layers.rope_tables(jnp.concatenate([txt_ids, img_ids]), config.axes_dims_rope)

        block = dict(
            heads=config.num_attention_heads,
            adapters=adapters,
            dtype=self.dtype,
            attend=self.attend,
        )
        compiled = dict(scan=self.scan, remat=self.remat)
        x, text = stack(
            JointBlock,
            config.num_layers,
            'transformer_blocks',
            block,
            (x, text),
            cond,
            rope,
            **compiled,
        )
        joined = jnp.concatenate([text, x], axis=1)
        joined = stack(
            SingleBlock,
            config.num_single_layers,
            'single_transformer_blocks',
            block,
            joined,
            cond,
            rope,
            **compiled,
        )
        x = joined[:, text.shape[1] :]
        layers.keep_hidden(self, x)

        scale, shift = Modulation(2, adapters, self.dtype, name='norm_out')(cond)
        x = modulated_norm(x, shift, scale, self.dtype)
        channels = config.out_channels or config.in_channels
        return dense(channels, 'proj_out', nn.initializers.zeros)(x).astype(jnp.float32)

    def table(self) -> LayerTable:
        config = self.config
        embedders = ['timestep_embedder', 'text_embedder'] + [
            'guidance_embedder'
        ] * config.guidance_embeds
        inner = (f'time_text_embed.{e}.linear_{i}' for e in embedders for i in (1, 2))
        stacks = zip(STACKS, (config.num_layers, config.num_single_layers))
        return LayerTable(
            {name: path(name) for name in (*_LINEARS[''], *inner)},
            [Stack(name, name, range(n), _LINEARS[name], _NORMS[name]) for name, n in stacks],
        )


# Linear layers and norms by their names in the checkpoint: the source of the weight table and of
# the adapters' target names.
_LINEARS = {
    'transformer_blocks': (
        'norm1.linear',
        'norm1_context.linear',
        *JOINT_ATTENTION,
        'ff.net.0.proj',
        'ff.net.2',
        'ff_context.net.0.proj',
        'ff_context.net.2',
    ),
    'single_transformer_blocks': (
        'norm.linear',
        'attn.to_q',
        'attn.to_k',
        'attn.to_v',
        'proj_mlp',
        'proj_out',
    ),
    '': ('x_embedder', 'context_embedder', 'norm_out.linear', 'proj_out'),
}
_NORMS = {
    'transformer_blocks': ('attn.norm_q', 'attn.norm_k', 'attn.norm_added_q', 'attn.norm_added_k'),
    'single_transformer_blocks': ('attn.norm_q', 'attn.norm_k'),
}
