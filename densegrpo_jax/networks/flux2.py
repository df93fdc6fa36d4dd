"""FLUX.2's transformer: double-stream then single-stream blocks, with one modulation for all blocks
of a kind (port of Diffusers' Flux2Transformer2DModel). No layer has a bias.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from densegrpo_jax.networks import attention, layers, mmdit
from densegrpo_jax.networks import lora as lora_lib
from densegrpo_jax.networks.attention import Attend
from densegrpo_jax.networks.config_json import check_positive, read_config
from densegrpo_jax.networks.mmdit import (
    Attention,
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

CLASS_NAME = 'Flux2Transformer2DModel'
STACKS = ('transformer_blocks', 'single_transformer_blocks')
NAME = 'transformer config'


@dataclasses.dataclass(frozen=True)
class Flux2Config:
    """The transformer's config.json; fields, names and defaults are Diffusers'."""

    in_channels: int = 128
    out_channels: int | None = None
    num_layers: int = 8
    num_single_layers: int = 48
    attention_head_dim: int = 128
    num_attention_heads: int = 48
    joint_attention_dim: int = 15360
    timestep_guidance_channels: int = 256
    mlp_ratio: float = 3.0
    axes_dims_rope: tuple[int, ...] = (32, 32, 32, 32)
    rope_theta: float = 2000
    guidance_embeds: bool = True

    def __post_init__(self):
        object.__setattr__(self, 'axes_dims_rope', tuple(self.axes_dims_rope))
        check_positive(self, NAME, zero=('num_layers', 'num_single_layers'))
        if self.timestep_guidance_channels % 2:
            raise ValueError(
                f'{NAME}: timestep_guidance_channels={self.timestep_guidance_channels} must be '
                'even: half of them are cosines'
            )
        if len(self.axes_dims_rope) != 4 or any(d < 2 or d % 2 for d in self.axes_dims_rope):
            raise ValueError(
                f'{NAME}: axes_dims_rope={list(self.axes_dims_rope)} must be four even numbers: '
                'of time, row, column and place in the text'
            )
        if sum(self.axes_dims_rope) != self.attention_head_dim:
            raise ValueError(
                f'{NAME}: axes_dims_rope={list(self.axes_dims_rope)} must sum to '
                f'attention_head_dim={self.attention_head_dim}'
            )

    @property
    def hidden_dim(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @property
    def mlp_dim(self) -> int:
        return int(self.hidden_dim * self.mlp_ratio)

    @classmethod
    def from_json(cls, config: dict) -> 'Flux2Config':
        """Reads a parsed config.json; an unknown key or an unsupported value is a ValueError that
        names it.
        """
        only = {'_class_name': [CLASS_NAME], 'patch_size': [1], 'eps': [1e-6]}
        return read_config(cls, NAME, config, only=only, ignored=())


def rope_tables(ids: np.ndarray, config: Flux2Config) -> tuple[np.ndarray, np.ndarray]:
    """Rotary tables of the positions ids [N, 4], on the host: (cos, sin), each float32 [N, d].

    Every frequency stands twice in a row. Angles are float64: a text has hundreds of positions.
    """
    angles = [
        np.repeat(np.outer(column, config.rope_theta ** (-np.arange(0, dim, 2) / dim)), 2, axis=-1)
        for column, dim in zip(np.asarray(ids, np.float64).T, config.axes_dims_rope)
    ]
    angles = np.concatenate(angles, axis=-1)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def swiglu(x):
    """silu(first half) * second half of the last axis."""
    gate, value = jnp.split(x, 2, axis=-1)
    return nn.silu(gate) * value


class FeedForward(nn.Module):
    """D -> `width` -> D with SwiGLU, the gate and the value in one product."""

    width: int
    adapters: lora_lib.Adapters | None
    dtype: Any

    @nn.compact
    def __call__(self, x):
        dense = lambda features, name: layers.Dense(
            features, self.adapters, self.dtype, use_bias=False, name=name
        )
        return dense(x.shape[-1], 'linear_out')(swiglu(dense(2 * self.width, 'linear_in')(x)))


class DoubleBlock(nn.Module):
    """Image and text streams with their own weights and one joint attention. Carry: (image [B, N,
    D], text [B, L, D]).
    """

    heads: int
    width: int
    adapters: lora_lib.Adapters | None
    dtype: Any
    attend: Attend = attention.xla

    @nn.compact
    def __call__(self, carry, image_modulation, text_modulation, rope):
        """image_modulation, text_modulation: shift, scale and gate of the attention, then of the
        feed-forward, [B, D] each. rope: (cos, sin) of [L + N, d].
        """
        (x, text), modulations = carry, (image_modulation, text_modulation)
        normed = [
            modulated_norm(each, shift, scale, self.dtype)
            for each, (shift, scale, *_) in zip((x, text), modulations)
        ]
        attended = Attention(
            self.heads, self.adapters, self.dtype, attend=self.attend, bias=False, name='attn'
        )(*normed, rope)
        streams = []
        for each, out, name, (_, _, gate, shift, scale, mlp_gate) in zip(
            (x, text), attended, ('ff', 'ff_context'), modulations
        ):
            each = each + gate[:, None] * out
            normed = modulated_norm(each, shift, scale, self.dtype)
            # If the norm's input is pinned instead, as in FLUX.1, XLA (jaxlib 0.10.2, two tokens on
            # data x fsdp x tensor = 2 x 2 x 2) returns wrong gradients of the attention.
            normed = attention.pin(self.attend, normed)
            out = FeedForward(self.width, self.adapters, self.dtype, name=name)(normed)
            streams.append(each + mlp_gate[:, None] * out)
        return tuple(streams), None


class ParallelAttention(nn.Module):
    """Attention and feed-forward side by side: one product makes queries, keys, values and the
    feed-forward's gate and value, another one joins the results.
    """

    heads: int
    width: int
    adapters: lora_lib.Adapters | None
    dtype: Any
    attend: Attend = attention.xla

    @nn.compact
    def __call__(self, x, rope):
        inner = x.shape[-1]
        dense = lambda features, name: layers.Dense(
            features, self.adapters, self.dtype, use_bias=False, name=name
        )
        both = dense(3 * inner + 2 * self.width, 'to_qkv_mlp_proj')(x)
        *parts, hidden = jnp.split(both, [inner, 2 * inner, 3 * inner], axis=-1)
        q, k, v = (part.reshape(*part.shape[:2], self.heads, -1) for part in parts)
        q, k = (
            layers.apply_rope(layers.RMSNorm(name=name)(part), *rope)
            for name, part in (('norm_q', q), ('norm_k', k))
        )
        if self.is_mutable_collection(attention.PROBE) and not self.is_initializing():
            self.sow(attention.PROBE, 'entropy', attention.row_entropy(q, k))
        attended = checkpoint_name(
            self.attend(q.astype(self.dtype), k.astype(self.dtype), v), 'attention'
        )
        joined = jnp.concatenate([attended, swiglu(hidden)], axis=-1)
        return dense(inner, 'to_out')(attention.pin(self.attend, joined, None, 'tensor'))


class SingleBlock(nn.Module):
    """Attention and feed-forward side by side on the joined stream. Carry: [B, L + N, D]."""

    heads: int
    width: int
    adapters: lora_lib.Adapters | None
    dtype: Any
    attend: Attend = attention.xla

    @nn.compact
    def __call__(self, x, modulation, rope):
        shift, scale, gate = modulation
        out = ParallelAttention(
            self.heads, self.width, self.adapters, self.dtype, self.attend, name='attn'
        )(modulated_norm(x, shift, scale, self.dtype), rope)
        return x + gate[:, None] * out, None


class Flux2Transformer(StackedNetwork):
    """The velocity network of FLUX.2."""

    config: Flux2Config

    COLUMN = (
        *mmdit.COLUMN,
        'x_embedder',
        'context_embedder',
        'to_qkv_mlp_proj',
        'linear_in',
        r'\w+_modulation\w*/linear',
    )
    ROW = (*mmdit.ROW, 'to_out', 'linear_out', 'proj_out')
    BLOCKS = STACKS

    @nn.compact
    def __call__(self, latents, text, timestep, guidance, rope):
        """Predicts the velocity eps - x_0.

        Args:
          latents: [B, N, in_channels], packed 2x2 patches.
          text: [B, L, joint_attention_dim], states of the text encoder.
          timestep: [B] float32 in [0, 1], 1 = noise (multiplied by 1000 inside).
          guidance: [B] float32, the distilled guidance scale, or None if the network has no
            guidance embedding.
          rope: `rope_tables` of the positions of the text's and then of the image's tokens, [L + N,
            d] each.
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
            features, adapters, self.dtype, init, use_bias=False, name=name
        )
        embed = TimeTextEmbed(
            config.hidden_dim,
            adapters,
            config.timestep_guidance_channels,
            bias=False,
            name='time_guidance_embed',
        )
        cond = nn.silu(embed(timestep, guidance))
        modulation = lambda count, name: tuple(
            Modulation(count, adapters, self.dtype, bias=False, name=name)(cond)
        )
        x = dense(config.hidden_dim, 'x_embedder')(latents)
        text = dense(config.hidden_dim, 'context_embedder')(text)

        block = dict(
            heads=config.num_attention_heads,
            width=config.mlp_dim,
            adapters=adapters,
            dtype=self.dtype,
            attend=self.attend,
        )
        compiled = dict(scan=self.scan, remat=self.remat)
        x, text = stack(
            DoubleBlock,
            config.num_layers,
            'transformer_blocks',
            block,
            (x, text),
            modulation(6, 'double_stream_modulation_img'),
            modulation(6, 'double_stream_modulation_txt'),
            rope,
            **compiled,
        )
        joined = stack(
            SingleBlock,
            config.num_single_layers,
            'single_transformer_blocks',
            block,
            jnp.concatenate([text, x], axis=1),
            modulation(3, 'single_stream_modulation'),
            rope,
            **compiled,
        )
        x = joined[:, text.shape[1] :]
        layers.keep_hidden(self, x)

        scale, shift = modulation(2, 'norm_out')
        x = modulated_norm(x, shift, scale, self.dtype)
        channels = config.out_channels or config.in_channels
        return dense(channels, 'proj_out', nn.initializers.zeros)(x).astype(jnp.float32)

    def table(self) -> LayerTable:
        config = self.config
        embedders = ['timestep_embedder'] + ['guidance_embedder'] * config.guidance_embeds
        inner = (f'time_guidance_embed.{e}.linear_{i}' for e in embedders for i in (1, 2))
        stacks = zip(STACKS, (config.num_layers, config.num_single_layers))
        return LayerTable(
            {name: path(name) for name in (*_LINEARS[''], *inner)},
            [Stack(name, name, range(n), _LINEARS[name], _NORMS[name]) for name, n in stacks],
        )


# Where adapters are trained: those of FLUX.1, and last the two fused ones of the single blocks.
LORA_TARGETS = (
    *JOINT_ATTENTION,
    'ff.linear_in',
    'ff.linear_out',
    'ff_context.linear_in',
    'ff_context.linear_out',
    'attn.to_qkv_mlp_proj',
    'attn.to_out',
)
# Linear layers and norms by their names in the checkpoint: the source of the weight table and of
# the adapters' target names.
_LINEARS = {
    'transformer_blocks': LORA_TARGETS[:-2],
    'single_transformer_blocks': LORA_TARGETS[-2:],
    '': (
        'x_embedder',
        'context_embedder',
        'double_stream_modulation_img.linear',
        'double_stream_modulation_txt.linear',
        'single_stream_modulation.linear',
        'norm_out.linear',
        'proj_out',
    ),
}
_NORMS = {
    'transformer_blocks': ('attn.norm_q', 'attn.norm_k', 'attn.norm_added_q', 'attn.norm_added_k'),
    'single_transformer_blocks': ('attn.norm_q', 'attn.norm_k'),
}
