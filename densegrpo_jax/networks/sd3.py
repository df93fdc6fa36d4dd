"""Stable Diffusion 3 / 3.5's transformer: joint blocks, dual attention in some of them (port of
Diffusers' SD3Transformer2DModel).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from densegrpo_jax.networks import layers, mmdit
from densegrpo_jax.networks import lora as lora_lib
from densegrpo_jax.networks.config_json import check_positive, read_config
from densegrpo_jax.networks.mmdit import (
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
from densegrpo_jax.networks.weight_rules import WeightRule, conv_rules

CLASS_NAME = 'SD3Transformer2DModel'


@dataclasses.dataclass(frozen=True)
class Sd3Config:
    """The transformer's config.json; fields, names and defaults are Diffusers'."""

    sample_size: int = 128
    patch_size: int = 2
    in_channels: int = 16
    num_layers: int = 18
    attention_head_dim: int = 64
    num_attention_heads: int = 18
    joint_attention_dim: int = 4096
    caption_projection_dim: int = 1152
    pooled_projection_dim: int = 2048
    out_channels: int | None = 16
    pos_embed_max_size: int = 96
    dual_attention_layers: tuple[int, ...] = ()
    qk_norm: str | None = None

    def __post_init__(self):
        object.__setattr__(self, 'dual_attention_layers', tuple(self.dual_attention_layers))
        check_positive(self, 'transformer config')
        if self.hidden_dim != self.caption_projection_dim:
            raise ValueError(
                f'transformer config: caption_projection_dim={self.caption_projection_dim} must be '
                f'num_attention_heads x attention_head_dim = {self.hidden_dim}'
            )
        if self.hidden_dim % 4:
            raise ValueError(
                f'transformer config: the width {self.hidden_dim} must be divisible by 4 for its '
                'position table'
            )
        if any(
            type(i) is not int or not 0 <= i < self.num_layers for i in self.dual_attention_layers
        ):
            raise ValueError(
                f'transformer config: dual_attention_layers {self.dual_attention_layers} must be '
                f'block numbers below num_layers={self.num_layers}'
            )
        if self.qk_norm not in (None, 'rms_norm'):
            raise ValueError(
                f'transformer config: qk_norm={self.qk_norm!r} is not supported, expected null or '
                "'rms_norm'"
            )

    @property
    def hidden_dim(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @classmethod
    def from_json(cls, config: dict) -> 'Sd3Config':
        """Reads a parsed config.json; an unknown key or an unsupported value is a ValueError that
        names it.
        """
        return read_config(
            cls, 'transformer config', config, only={'_class_name': [CLASS_NAME]}, ignored=()
        )


def position_table(config: Sd3Config) -> jax.Array:
    """The sine-cosine table of the largest grid, float32 [S, S, D], rows then columns (released
    checkpoints store it).

    Half of the channels encode the column, half the row: [sin(p f), cos(p f)], f_i = 10000^(-i / (D
    / 4)), with positions scaled so that the training size spans its own number of patches. Only one
    axis is computed on the host: the whole table of SD3.5-M is 0.8 GiB, and a network that is
    traced for its shapes must not make it.
    """
    size, quarter = config.pos_embed_max_size, config.hidden_dim // 4
    positions = (
        np.arange(size, dtype=np.float32)
        / np.float32(size / (config.sample_size // config.patch_size))
    ).astype(np.float64)
    angles = positions[:, None] * 10000.0 ** (-np.arange(quarter) / quarter)
    axis = np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)
    columns = jnp.broadcast_to(axis[None], (size, *axis.shape))
    rows = jnp.broadcast_to(axis[:, None], (size, *axis.shape))
    return jnp.concatenate([columns, rows], axis=-1)


class PatchEmbed(nn.Module):
    """Patches to tokens, plus the middle of the position table: [B, h, w, C] -> [B, (h / p) (w /
    p), D].
    """

    config: Sd3Config
    dtype: Any

    @nn.compact
    def __call__(self, latents):
        c = self.config
        batch, height, width, channels = latents.shape
        rows, columns = height // c.patch_size, width // c.patch_size
        size = c.pos_embed_max_size
        if height % c.patch_size or width % c.patch_size or max(rows, columns) > size:
            raise ValueError(
                f'latents of {height} x {width} do not fit: both must be multiples of '
                f'patch_size={c.patch_size}, and at most pos_embed_max_size={size} patches'
            )
        kernel = self.param(
            'kernel',
            layers.kernel_init,
            (c.patch_size, c.patch_size, channels, c.hidden_dim),
            jnp.float32,
        )
        bias = self.param('bias', nn.initializers.zeros, (c.hidden_dim,), jnp.float32)
        table = self.param('pos_embed', lambda _: position_table(c).reshape(1, size * size, -1))
        # A strided convolution with kernel = stride is a product of patches.
        patches = latents.reshape(
            batch, rows, c.patch_size, columns, c.patch_size, channels
        ).transpose(0, 1, 3, 2, 4, 5)
        flat = patches.reshape(batch * rows * columns, -1).astype(self.dtype)
        x = flat @ kernel.reshape(-1, c.hidden_dim).astype(self.dtype) + bias.astype(self.dtype)
        top, left = (size - rows) // 2, (size - columns) // 2
        # A buffer in the original: it takes no gradient.
        table = jax.lax.stop_gradient(table).reshape(size, size, -1)[
            top : top + rows, left : left + columns
        ]
        return (x.reshape(batch, rows * columns, -1) + table.reshape(1, rows * columns, -1)).astype(
            self.dtype
        )


class Sd3Transformer(StackedNetwork):
    """The velocity network of Stable Diffusion 3 and 3.5.

    If scanned, every run of equal blocks is one stack, 'transformer_blocks_from_<first>'.
    """

    config: Sd3Config

    COLUMN = (*mmdit.COLUMN, 'context_embedder')
    ROW = (*mmdit.ROW, 'proj_out')
    MATRICES = BUFFERS = ('pos_embed',)
    BLOCKS = ('transformer_blocks(_from)?',)

    @nn.compact
    def __call__(self, latents, text, pooled, timestep):
        """Predicts the velocity eps - x_0.

        Args:
          latents: [B, h, w, in_channels]; sides are multiples of patch_size.
          text: [B, L, joint_attention_dim], the joined states of all text encoders.
          pooled: [B, pooled_projection_dim], the joined projections of both CLIPs.
          timestep: [B] float32 in [0, 1], 1 = noise (multiplied by 1000 inside).
        Returns:
          [B, h, w, out_channels] float32.
        """
        c = self.config
        adapters = lora_lib.resolve(self.lora, self.module_paths())
        dense = lambda features, name, init=layers.kernel_init: layers.Dense(
            features, adapters, self.dtype, init, name=name
        )

        cond = nn.silu(
            TimeTextEmbed(c.hidden_dim, adapters, name='time_text_embed')(timestep, None, pooled)
        )
        carry = (
            PatchEmbed(c, self.dtype, name='pos_embed')(latents),
            dense(c.hidden_dim, 'context_embedder')(text),
        )
        block = dict(
            heads=c.num_attention_heads,
            adapters=adapters,
            dtype=self.dtype,
            qk_norm=c.qk_norm is not None,
            attend=self.attend,
        )
        for first, length, dual, last in block_runs(c):
            name = _stack_name(first) if self.scan else 'transformer_blocks'
            carry = stack(
                JointBlock,
                length,
                name,
                dict(block, dual=dual, last=last),
                carry,
                cond,
                scan=self.scan,
                remat=self.remat,
                first=first,
            )

        layers.keep_hidden(self, carry[0])
        scale, shift = Modulation(2, adapters, self.dtype, name='norm_out')(cond)
        channels, (batch, height, width, _), p = (
            c.out_channels or c.in_channels,
            latents.shape,
            c.patch_size,
        )
        x = dense(p * p * channels, 'proj_out', nn.initializers.zeros)(
            modulated_norm(carry[0], shift, scale, self.dtype)
        ).astype(jnp.float32)
        x = x.reshape(batch, height // p, width // p, p, p, channels).transpose(0, 1, 3, 2, 4, 5)
        return x.reshape(batch, height, width, channels)

    def table(self) -> LayerTable:
        stacks = []
        for first, length, dual, last in block_runs(self.config):
            linears = _JOINT + _TEXT_OUT * (not last) + _DUAL * dual
            norms = (_NORMS + _DUAL_NORMS * dual) * (self.config.qk_norm is not None)
            blocks = range(first, first + length)
            stacks.append(Stack('transformer_blocks', _stack_name(first), blocks, linears, norms))
        return LayerTable({name: path(name) for name in _OUTSIDE}, stacks)

    def weight_rules(self) -> list[WeightRule]:
        return [
            *conv_rules('pos_embed.proj', 'pos_embed'),
            WeightRule('pos_embed.pos_embed', 'pos_embed/pos_embed'),
            *super().weight_rules(),
        ]


def block_runs(config: Sd3Config) -> list[tuple[int, int, bool, bool]]:
    """[(first, length, dual, last)]: consecutive equal blocks; the last block of the network is
    always alone.
    """
    runs = []
    for i in range(config.num_layers):
        kind = (i in config.dual_attention_layers, i == config.num_layers - 1)
        if runs and runs[-1][2:] == kind:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1, *kind)
        else:
            runs.append((i, 1, *kind))
    return runs


def _stack_name(first: int) -> str:
    return f'transformer_blocks_from_{first}'


# Linear layers and norms by their names in the checkpoint: the source of the weight table and of
# the adapters' target names.
_JOINT = (
    'norm1.linear',
    'norm1_context.linear',
    'attn.to_q',
    'attn.to_k',
    'attn.to_v',
    'attn.add_q_proj',
    'attn.add_k_proj',
    'attn.add_v_proj',
    'attn.to_out.0',
    'ff.net.0.proj',
    'ff.net.2',
)
_TEXT_OUT = ('attn.to_add_out', 'ff_context.net.0.proj', 'ff_context.net.2')
_DUAL = ('attn2.to_q', 'attn2.to_k', 'attn2.to_v', 'attn2.to_out.0')
_NORMS = ('attn.norm_q', 'attn.norm_k', 'attn.norm_added_q', 'attn.norm_added_k')
_DUAL_NORMS = ('attn2.norm_q', 'attn2.norm_k')
_OUTSIDE = (
    'context_embedder',
    'norm_out.linear',
    'proj_out',
    *(
        f'time_text_embed.{e}.linear_{i}'
        for e in ('timestep_embedder', 'text_embedder')
        for i in (1, 2)
    ),
)
# Where adapters are trained, as in Flow-GRPO on SD3.5-M: the joint attention, but not the second
# attention of its first blocks.
LORA_TARGETS = JOINT_ATTENTION
