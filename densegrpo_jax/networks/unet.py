"""Stable Diffusion 1's U-Net, which predicts the noise of a latent (port of Diffusers'
UNet2DConditionModel), in NHWC.
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from densegrpo_jax.networks import attention, layers
from densegrpo_jax.networks import lora as lora_lib
from densegrpo_jax.networks.mmdit import Embedder, path
from densegrpo_jax.networks.network import Network
from densegrpo_jax.networks.unet_config import ATTENTION_DOWN, ATTENTION_UP, UnetConfig
from densegrpo_jax.networks.vae import GroupNorm, UpsampleConv
from densegrpo_jax.networks.weight_rules import WeightRule, conv_rules, linear_rules, norm_rules


class Resnet(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x))) + time))), with a 1x1 shortcut where the width
    changes.
    """

    channels: int
    config: UnetConfig
    dtype: Any

    @nn.compact
    def __call__(self, x, time):
        c = self.config
        norm = lambda name, x: nn.silu(
            GroupNorm(c.norm_num_groups, self.dtype, eps=c.norm_eps, name=name)(x)
        )
        h = nn.Conv(self.channels, (3, 3), dtype=self.dtype, name='conv1')(norm('norm1', x))
        h = (
            h
            + layers.Dense(self.channels, dtype=self.dtype, name='time_emb_proj')(time)[
                :, None, None
            ]
        )
        h = nn.Conv(self.channels, (3, 3), dtype=self.dtype, name='conv2')(norm('norm2', h))
        if x.shape[-1] != self.channels:
            x = nn.Conv(self.channels, (1, 1), dtype=self.dtype, name='conv_shortcut')(x)
        return x + h


class Attention(nn.Module):
    """Multi-head attention of x [B, N, D] over `context` [B, L, D'] (x itself for
    self-attention).
    """

    heads: int
    adapters: lora_lib.Adapters | None
    dtype: Any

    @nn.compact
    def __call__(self, x, context):
        width = x.shape[-1]

        def project(x, name):
            x = layers.Dense(width, self.adapters, self.dtype, use_bias=False, name=name)(x)
            return x.reshape(*x.shape[:2], self.heads, -1)

        out = attention.xla(project(x, 'to_q'), project(context, 'to_k'), project(context, 'to_v'))
        return layers.Dense(width, self.adapters, self.dtype, name='to_out_0')(out)


class GatedIn(nn.Module):
    """First layer of the feed-forward: half of it gated by the exact GELU of the other half."""

    features: int
    adapters: lora_lib.Adapters | None
    dtype: Any

    @nn.compact
    def __call__(self, x):
        hidden, gate = jnp.split(
            layers.Dense(2 * self.features, self.adapters, self.dtype, name='proj')(x), 2, axis=-1
        )
        return hidden * nn.gelu(gate, approximate=False)


class FeedForward(nn.Module):
    """D -> 4 D, gated, -> D."""

    adapters: lora_lib.Adapters | None
    dtype: Any

    @nn.compact
    def __call__(self, x):
        hidden = GatedIn(4 * x.shape[-1], self.adapters, self.dtype, name='net_0')(x)
        return layers.Dense(x.shape[-1], self.adapters, self.dtype, name='net_2')(hidden)


class TransformerBlock(nn.Module):
    """Self-attention, attention over the text, feed-forward; each after a layer norm, each
    added.
    """

    heads: int
    adapters: lora_lib.Adapters | None
    dtype: Any

    @nn.compact
    def __call__(self, x, text):
        norm = lambda name: layers.LayerNorm(1e-5, name=name)(x).astype(self.dtype)
        h = norm('norm1')
        x = x + Attention(self.heads, self.adapters, self.dtype, name='attn1')(h, h)
        x = x + Attention(self.heads, self.adapters, self.dtype, name='attn2')(norm('norm2'), text)
        return x + FeedForward(self.adapters, self.dtype, name='ff')(norm('norm3'))


class SpatialTransformer(nn.Module):
    """A transformer block over all positions of [B, h, w, C], between two 1x1 convolutions, added
    to its input.
    """

    config: UnetConfig
    adapters: lora_lib.Adapters | None
    dtype: Any

    @nn.compact
    def __call__(self, x, text):
        c, channels = self.config, x.shape[-1]
        h = GroupNorm(c.norm_num_groups, self.dtype, eps=1e-6, name='norm')(x)
        h = nn.Conv(channels, (1, 1), dtype=self.dtype, name='proj_in')(h).reshape(
            x.shape[0], -1, channels
        )
        h = TransformerBlock(
            c.attention_head_dim, self.adapters, self.dtype, name='transformer_blocks_0'
        )(h, text)
        return x + nn.Conv(channels, (1, 1), dtype=self.dtype, name='proj_out')(h.reshape(x.shape))


class Sampler(nn.Module):
    """The convolution that halves (stride 2) or follows the doubling (nearest neighbour) of the
    sides.
    """

    channels: int
    up: bool
    dtype: Any

    @nn.compact
    def __call__(self, x):
        if self.up:
            return UpsampleConv(self.channels, dtype=self.dtype, name='conv')(x)
        return nn.Conv(
            self.channels,
            (3, 3),
            strides=(2, 2),
            padding=((1, 1), (1, 1)),
            dtype=self.dtype,
            name='conv',
        )(x)


class Stage(nn.Module):
    """Residual blocks (each followed by a transformer if `attention`) at one resolution, then a
    sampler if any.

    A stage on the way down returns all of its states for the way up; a stage on the way up takes
    them, newest last.
    """

    channels: int
    layers: int
    attention: bool
    sampler: str | None  # 'downsamplers_0', 'upsamplers_0' or None
    config: UnetConfig
    adapters: lora_lib.Adapters | None
    dtype: Any

    @nn.compact
    def __call__(self, x, time, text, skips=None):
        states = []
        for i in range(self.layers):
            if skips is not None:
                x = jnp.concatenate([x, skips.pop()], axis=-1)
            x = Resnet(self.channels, self.config, self.dtype, name=f'resnets_{i}')(x, time)
            if self.attention:
                x = SpatialTransformer(
                    self.config, self.adapters, self.dtype, name=f'attentions_{i}'
                )(x, text)
            states.append(x)
        if self.sampler:
            x = Sampler(self.channels, skips is not None, self.dtype, name=self.sampler)(x)
            states.append(x)
        return x, states


class Middle(nn.Module):
    """Residual block, transformer, residual block."""

    config: UnetConfig
    adapters: lora_lib.Adapters | None
    dtype: Any

    @nn.compact
    def __call__(self, x, time, text):
        x = Resnet(x.shape[-1], self.config, self.dtype, name='resnets_0')(x, time)
        x = SpatialTransformer(self.config, self.adapters, self.dtype, name='attentions_0')(x, text)
        return Resnet(x.shape[-1], self.config, self.dtype, name='resnets_1')(x, time)


class Unet(Network):
    """The noise network of Stable Diffusion 1.

    Attributes: config, lora and dtype as in `StackedNetwork`. The blocks differ in shape, so none
    are scanned.
    """

    config: UnetConfig
    lora: lora_lib.LoraConfig | None = None
    dtype: Any = jnp.float32

    COLUMN = ('to_[qkv]', 'net_0/proj', 'linear_1')
    ROW = ('to_out_0', 'net_2', 'linear_2', 'proj_out')
    BLOCKS = ('transformer_blocks',)

    @nn.compact
    def __call__(self, latents, text, timestep):
        """Predicts the noise.

        Args:
          latents: [B, h, w, in_channels]; sides are multiples of `config.downscale`.
          text: [B, L, cross_attention_dim], CLIP's states.
          timestep: [B] float32, 0 ... 999.
        Returns:
          [B, h, w, out_channels] float32.
        """
        c = self.config
        if any(side % c.downscale for side in latents.shape[1:3]):
            raise ValueError(
                f'latents of {latents.shape[1]} x {latents.shape[2]} do not fit: both must be '
                f'multiples of {c.downscale}'
            )
        adapters = lora_lib.resolve(self.lora, self.module_paths())
        widths, shared = c.block_out_channels, dict(config=c, adapters=adapters, dtype=self.dtype)
        embedded = layers.timestep_embedding(timestep, widths[0])
        time = nn.silu(Embedder(4 * widths[0], None, name='time_embedding')(embedded))
        x = nn.Conv(widths[0], (3, 3), dtype=self.dtype, name='conv_in')(latents)
        text = text.astype(self.dtype)
        skips = [x]
        for i, kind in enumerate(c.down_block_types):
            sampler = 'downsamplers_0' if i < len(widths) - 1 else None
            stage = Stage(
                widths[i],
                c.layers_per_block,
                kind == ATTENTION_DOWN,
                sampler,
                **shared,
                name=f'down_blocks_{i}',
            )
            x, states = stage(x, time, text)
            skips += states
        x = Middle(**shared, name='mid_block')(x, time, text)
        for i, kind in enumerate(c.up_block_types):
            sampler = 'upsamplers_0' if i < len(widths) - 1 else None
            stage = Stage(
                widths[-1 - i],
                c.layers_per_block + 1,
                kind == ATTENTION_UP,
                sampler,
                **shared,
                name=f'up_blocks_{i}',
            )
            x, _ = stage(x, time, text, skips)
        layers.keep_hidden(self, x)
        x = nn.silu(
            GroupNorm(c.norm_num_groups, self.dtype, eps=c.norm_eps, name='conv_norm_out')(x)
        )
        return nn.Conv(c.out_channels, (3, 3), dtype=self.dtype, name='conv_out')(x).astype(
            jnp.float32
        )

    def module_paths(self) -> dict[str, str]:
        return {
            f'{block}.{layer}': path(f'{block}.{layer}')
            for block in _transformers(self.config)
            for layer in _BLOCK
        }

    def weight_rules(self) -> list[WeightRule]:
        rules = [
            *norm_rules('conv_norm_out', 'conv_norm_out'),
            *conv_rules('{c:conv_in|conv_out}', '{c}'),
            *linear_rules('time_embedding.{l:linear_[12]}', 'time_embedding/{l}'),
            *conv_rules(
                '{s:down_blocks|up_blocks}.{i}.{k:downsamplers|upsamplers}.0.conv',
                '{s}_{i}/{k}_0/conv',
            ),
        ]
        for source, target in (
            ('{s:down_blocks|up_blocks}.{i}', '{s}_{i}'),
            ('mid_block', 'mid_block'),
        ):
            resnet, inside = f'{source}.resnets.{{j}}', f'{target}/resnets_{{j}}'
            rules += conv_rules(f'{resnet}.{{c:conv[12]|conv_shortcut}}', f'{inside}/{{c}}')
            rules += linear_rules(f'{resnet}.time_emb_proj', f'{inside}/time_emb_proj')
            rules += norm_rules(f'{resnet}.{{n:norm[12]}}', f'{inside}/{{n}}')
            transformer, inside = f'{source}.attentions.{{j}}', f'{target}/attentions_{{j}}'
            rules += norm_rules(f'{transformer}.norm', f'{inside}/norm')
            rules += conv_rules(f'{transformer}.{{p:proj_in|proj_out}}', f'{inside}/{{p}}')
            block, inside = f'{transformer}.transformer_blocks.0', f'{inside}/transformer_blocks_0'
            rules += norm_rules(f'{block}.{{n:norm[123]}}', f'{inside}/{{n}}')
            rules.append(
                WeightRule(
                    f'{block}.{{a:attn[12]}}.{{p:to_[qkv]}}.weight',
                    f'{inside}/{{a}}/{{p}}/kernel',
                    'linear',
                )
            )
            rules += linear_rules(f'{block}.{{a:attn[12]}}.to_out.0', f'{inside}/{{a}}/to_out_0')
            rules += linear_rules(f'{block}.ff.net.0.proj', f'{inside}/ff/net_0/proj')
            rules += linear_rules(f'{block}.ff.net.2', f'{inside}/ff/net_2')
        return rules


_ATTENTION = tuple(
    f'{a}.{p}' for a in ('attn1', 'attn2') for p in ('to_q', 'to_k', 'to_v', 'to_out.0')
)
# Where adapters are trained: self-attention and attention to the prompt.
LORA_TARGETS = _ATTENTION
_BLOCK = (*_ATTENTION, 'ff.net.0.proj', 'ff.net.2')


def _transformers(config: UnetConfig) -> list[str]:
    """Checkpoint names of the transformer blocks."""
    names = ['mid_block.attentions.0']
    for i, kind in enumerate(config.down_block_types):
        names += [f'down_blocks.{i}.attentions.{j}' for j in range(config.layers_per_block)] * (
            kind == ATTENTION_DOWN
        )
    for i, kind in enumerate(config.up_block_types):
        names += [f'up_blocks.{i}.attentions.{j}' for j in range(config.layers_per_block + 1)] * (
            kind == ATTENTION_UP
        )
    return [f'{name}.transformer_blocks.0' for name in names]
