"""AutoencoderKL, the image autoencoder of latent diffusion (Rombach et al., arXiv:2112.10752): port
of Diffusers' module, in NHWC.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from densegrpo_jax.networks.config_json import check_positive, read_config
from densegrpo_jax.networks.network import Network
from densegrpo_jax.networks.weight_rules import WeightRule, conv_rules, linear_rules, norm_rules


@dataclasses.dataclass(frozen=True)
class VaeConfig:
    """Shape of the autoencoder; the defaults are those of FLUX.1's `vae/config.json`.

    scaling_factor and shift_factor are only stored here: the diffusion model sees (latents -
    shift_factor) * scaling_factor, which the caller applies, as in Diffusers.
    """

    in_channels: int = 3
    out_channels: int = 3
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    latent_channels: int = 16
    norm_num_groups: int = 32
    mid_block_add_attention: bool = True
    use_quant_conv: bool = False
    use_post_quant_conv: bool = False
    scaling_factor: float = 0.3611
    shift_factor: float | None = 0.1159

    def __post_init__(self):
        object.__setattr__(self, 'block_out_channels', tuple(self.block_out_channels))
        check_positive(self, 'VAE config')
        for channels in self.block_out_channels:
            if channels % self.norm_num_groups:
                raise ValueError(
                    f'VAE config: block_out_channels={self.block_out_channels} must all be '
                    f'multiples of norm_num_groups={self.norm_num_groups}; {channels} is not'
                )

    @property
    def downscale(self) -> int:
        """Pixels per latent position along each side (8 for FLUX)."""
        return 2 ** (len(self.block_out_channels) - 1)

    @classmethod
    def from_json(cls, config: dict[str, Any]) -> 'VaeConfig':
        """Reads a parsed Diffusers `vae/config.json`; a key or value that this port does not cover
        is a ValueError that names it.
        """
        channels = config.get('block_out_channels', (64,))
        if not isinstance(channels, list | tuple):
            raise ValueError(f'VAE config: block_out_channels is {channels!r}; expected a list')
        blocks = len(channels)
        only = {
            '_class_name': ['AutoencoderKL'],
            'act_fn': ['silu'],
            'latents_mean': [None],
            'latents_std': [None],
            'down_block_types': [['DownEncoderBlock2D'] * blocks],
            'up_block_types': [['UpDecoderBlock2D'] * blocks],
        }
        # What Diffusers assumes for keys that an older file leaves out.
        defaults = {
            'block_out_channels': (64,),
            'layers_per_block': 1,
            'latent_channels': 4,
            'use_quant_conv': True,
            'use_post_quant_conv': True,
            'scaling_factor': 0.18215,
            'shift_factor': None,
        }
        return read_config(
            cls,
            'VAE config',
            config,
            only=only,
            ignored=('force_upcast', 'sample_size'),
            defaults=defaults,
        )


class GroupNorm(nn.Module):
    """Group normalisation (arXiv:1803.08494) over [B, H, W, C] with f32 statistics.

    Per-channel sums are formed first and combined over the C / G channels of a group afterwards, so
    that the large array is read once with its fastest axis untouched; normalisation and affine map
    are then one multiply-add.
    """

    num_groups: int
    dtype: Any = jnp.float32
    eps: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        scale = self.param('scale', nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param('bias', nn.initializers.zeros, (channels,), jnp.float32)
        x = x.astype(jnp.float32)
        # [2, B, C] -> mean over pixels and over the channels of each group.
        moments = jnp.stack([x.mean((1, 2)), jnp.square(x).mean((1, 2))])
        mean, square = moments.reshape(2, batch, self.num_groups, -1).mean(-1)
        inverse = jax.lax.rsqrt(jnp.maximum(square - jnp.square(mean), 0.0) + self.eps)
        mean, inverse = (
            jnp.repeat(m, channels // self.num_groups, axis=-1) for m in (mean, inverse)
        )
        gain = inverse * scale.astype(jnp.float32)
        offset = bias.astype(jnp.float32) - mean * gain
        return (x * gain[:, None, None] + offset[:, None, None]).astype(self.dtype)


class PointwiseConv(nn.Module):
    """1x1 convolution as a product of matrices, whose weight gradient on XLA:CPU is several times
    faster than the convolution's.
    """

    channels: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param(
            'kernel',
            nn.initializers.lecun_normal(),
            (1, 1, x.shape[-1], self.channels),
            jnp.float32,
        )
        bias = self.param('bias', nn.initializers.zeros, (self.channels,), jnp.float32)
        y = x.reshape(-1, x.shape[-1]) @ kernel[0, 0].astype(jnp.float32) + bias.astype(jnp.float32)
        return y.reshape(*x.shape[:-1], self.channels)


class ResnetBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with a 1x1 shortcut where the width changes."""

    channels: int
    num_groups: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = nn.silu(GroupNorm(self.num_groups, name='norm1')(x))
        h = nn.Conv(self.channels, (3, 3), name='conv1')(h)
        h = nn.silu(GroupNorm(self.num_groups, name='norm2')(h))
        h = nn.Conv(self.channels, (3, 3), name='conv2')(h)
        if x.shape[-1] != self.channels:
            x = PointwiseConv(self.channels, name='conv_shortcut')(x)
        return x + h


class Attention(nn.Module):
    """One-head self-attention over all pixels with a residual connection."""

    num_groups: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        h = GroupNorm(self.num_groups, name='group_norm')(x).reshape(-1, channels)
        q, k, v = (
            nn.Dense(channels, name=name)(h).reshape(batch, -1, channels)
            for name in ('to_q', 'to_k', 'to_v')
        )
        logits = jnp.einsum('bqc,bkc->bqk', q, k) * channels**-0.5
        h = jnp.einsum('bqk,bkc->bqc', jax.nn.softmax(logits), v).reshape(-1, channels)
        return x + nn.Dense(channels, name='to_out_0')(h).reshape(x.shape)


class MidBlock(nn.Module):
    """Residual block, optional attention, residual block."""

    config: VaeConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        groups = self.config.norm_num_groups
        x = ResnetBlock(x.shape[-1], groups, name='resnets_0')(x)
        if self.config.mid_block_add_attention:
            x = Attention(groups, name='attentions_0')(x)
        return ResnetBlock(x.shape[-1], groups, name='resnets_1')(x)


class UpsampleConv(nn.Module):
    """3x3 convolution of the image enlarged twofold by repeating pixels, without forming the
    enlarged image.

    Output pixels of one parity (row, column) see only 2x2 different input pixels, so each parity is
    a 2x2 convolution whose taps are sums of the 3x3 kernel's: 2.25 times fewer operations, and on
    XLA:CPU a weight gradient several times faster.
    """

    channels: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        kernel = self.param(
            'kernel', nn.initializers.lecun_normal(), (3, 3, channels, self.channels), jnp.float32
        )
        bias = self.param('bias', nn.initializers.zeros, (self.channels,), jnp.float32)

        def merge_taps(kernel, parity, axis):
            first, middle, last = jnp.split(kernel, 3, axis)
            return jnp.concatenate(
                [first, middle + last] if parity == 0 else [first + middle, last], axis
            )

        def convolve(row, column):
            merged = merge_taps(merge_taps(kernel.astype(jnp.float32), row, 0), column, 1).astype(
                self.dtype
            )
            return jax.lax.conv_general_dilated(
                x,
                merged,
                (1, 1),
                ((1 - row, row), (1 - column, column)),
                dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
            )

        # [B, h, w, 2, C]
        rows = [jnp.stack([convolve(row, 0), convolve(row, 1)], axis=3) for row in (0, 1)]
        return jnp.stack(rows, axis=2).reshape(batch, 2 * height, 2 * width, -1) + bias.astype(
            self.dtype
        )


class Sampler(nn.Module):
    """The one convolution of a down- or upsampler."""

    channels: int
    up: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.up:
            return UpsampleConv(self.channels, name='conv')(x)
        # Diffusers pads right and bottom only.
        return nn.Conv(
            self.channels, (3, 3), strides=(2, 2), padding=((0, 1), (0, 1)), name='conv'
        )(x)


class Block(nn.Module):
    """Residual blocks at one resolution, then (optionally) a change of resolution by 2."""

    config: VaeConfig
    channels: int
    num_layers: int
    sampler: str | None  # 'downsamplers_0', 'upsamplers_0' or None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(self.num_layers):
            x = ResnetBlock(self.channels, self.config.norm_num_groups, name=f'resnets_{i}')(x)
        if self.sampler:
            x = Sampler(self.channels, up=self.sampler.startswith('up'), name=self.sampler)(x)
        return x


class Encoder(nn.Module):
    """[B, H, W, in_channels] -> moments [B, h, w, 2 * latent_channels]."""

    config: VaeConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        config = self.config
        widths = config.block_out_channels
        x = nn.Conv(widths[0], (3, 3), name='conv_in')(x)
        for i, channels in enumerate(widths):
            sampler = 'downsamplers_0' if i < len(widths) - 1 else None
            x = Block(config, channels, config.layers_per_block, sampler, name=f'down_blocks_{i}')(
                x
            )
        x = MidBlock(config, name='mid_block')(x)
        x = nn.silu(GroupNorm(config.norm_num_groups, name='conv_norm_out')(x))
        return nn.Conv(2 * config.latent_channels, (3, 3), name='conv_out')(x)


class Decoder(nn.Module):
    """[B, h, w, latent_channels] -> [B, H, W, out_channels]."""

    config: VaeConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        config = self.config
        widths = config.block_out_channels[::-1]
        x = nn.Conv(widths[0], (3, 3), name='conv_in')(x)
        x = MidBlock(config, name='mid_block')(x)
        for i, channels in enumerate(widths):
            sampler = 'upsamplers_0' if i < len(widths) - 1 else None
            x = Block(
                config, channels, config.layers_per_block + 1, sampler, name=f'up_blocks_{i}'
            )(x)
        x = nn.silu(GroupNorm(config.norm_num_groups, name='conv_norm_out')(x))
        return nn.Conv(config.out_channels, (3, 3), name='conv_out')(x)


class AutoencoderKL(Network):
    """Images to a Gaussian over latents and back; `encode` and `decode` each need only their own
    half of the parameters.

    Call them as `model.apply({'params': params}, latents, method='decode')`. It computes in
    float32, whatever the dtype of its weights.
    """

    config: VaeConfig

    COLUMN = ('to_[qkv]',)
    ROW = ('to_out_0',)

    def setup(self):
        config = self.config
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        if config.use_quant_conv:
            self.quant_conv = PointwiseConv(2 * config.latent_channels)
        if config.use_post_quant_conv:
            self.post_quant_conv = PointwiseConv(config.latent_channels)

    def encode(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """images [B, H, W, 3] in [-1, 1] -> (mean, log variance clipped to [-30, 20]), each [B,
        H/8, W/8, latent_channels] f32.
        """
        moments = self.encoder(images.astype(jnp.float32))
        if self.config.use_quant_conv:
            moments = self.quant_conv(moments)
        mean, log_var = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
        return mean, jnp.clip(log_var, -30.0, 20.0)

    def decode(self, latents: jax.Array) -> jax.Array:
        """latents [B, h, w, latent_channels], unscaled -> images [B, 8h, 8w, 3] f32, about [-1, 1],
        not clipped.
        """
        latents = latents.astype(jnp.float32)
        if self.config.use_post_quant_conv:
            latents = self.post_quant_conv(latents)
        return self.decoder(latents).astype(jnp.float32)

    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(reconstruction from the mean, mean, log variance). Initialise the parameters with this
        method.
        """
        mean, log_var = self.encode(images)
        return self.decode(mean), mean, log_var

    def weight_rules(self) -> list[WeightRule]:
        rules = []
        resnets = {
            '{h}.mid_block.resnets.{r}': '{h}/mid_block/resnets_{r}',
            '{h}.{s:down_blocks|up_blocks}.{b}.resnets.{r}': '{h}/{s}_{b}/resnets_{r}',
        }
        for source, target in resnets.items():
            rules += norm_rules(f'{source}.{{n:norm[12]}}', f'{target}/{{n}}')
            rules += conv_rules(f'{source}.{{n:conv[12]|conv_shortcut}}', f'{target}/{{n}}')
        source, target = '{h}.mid_block.attentions.0', '{h}/mid_block/attentions_0'
        return [
            *rules,
            *norm_rules(f'{source}.group_norm', f'{target}/group_norm'),
            *linear_rules(f'{source}.{{n:to_[qkv]}}', f'{target}/{{n}}'),
            *linear_rules(f'{source}.to_out.0', f'{target}/to_out_0'),
            *conv_rules(
                '{h}.{s:down_blocks|up_blocks}.{b}.{n:downsamplers|upsamplers}.0.conv',
                '{h}/{s}_{b}/{n}_0/conv',
            ),
            *norm_rules('{h}.conv_norm_out', '{h}/conv_norm_out'),
            *conv_rules('{h}.{n:conv_in|conv_out}', '{h}/{n}'),
            *conv_rules('{n:quant_conv|post_quant_conv}', '{n}'),
            # Files older than Diffusers 0.18, such as Stable Diffusion 1's; never written.
            *linear_rules(f'{source}.query', f'{target}/to_q'),
            *linear_rules(f'{source}.key', f'{target}/to_k'),
            *linear_rules(f'{source}.value', f'{target}/to_v'),
            *linear_rules(f'{source}.proj_attn', f'{target}/to_out_0'),
        ]
