"""FLUX.2's autoencoder: that of `vae` with 32 channels, and the statistics of a batch norm by which
its latents are normalised, in patches of 2x2 (port of Diffusers' AutoencoderKLFlux2).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from densegrpo_jax.networks import vae
from densegrpo_jax.networks.config_json import check_positive, read_config
from densegrpo_jax.networks.weight_rules import WeightRule

CLASS_NAME = 'AutoencoderKLFlux2'
NAME = 'VAE config'


@dataclasses.dataclass(frozen=True)
class Flux2VaeConfig:
    """Shape of the autoencoder; fields, names and defaults are Diffusers'.

    decoder_block_out_channels: the decoder's widths, if they differ from the encoder's.
    """

    in_channels: int = 3
    out_channels: int = 3
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    decoder_block_out_channels: tuple[int, ...] | None = None
    layers_per_block: int = 2
    latent_channels: int = 32
    norm_num_groups: int = 32
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True
    batch_norm_eps: float = 1e-4
    patch_size: tuple[int, ...] = (2, 2)

    def __post_init__(self):
        check_positive(self, NAME)
        if tuple(self.patch_size) != (2, 2):
            raise ValueError(
                f'{NAME}: patch_size={list(self.patch_size)} is not supported, expected [2, 2]'
            )
        if self.batch_norm_eps <= 0:
            raise ValueError(
                f'{NAME}: batch_norm_eps must be positive, got {self.batch_norm_eps!r}'
            )
        if self.decoder_block_out_channels is not None and len(
            self.decoder_block_out_channels
        ) != len(self.block_out_channels):
            raise ValueError(
                f'{NAME}: decoder_block_out_channels={list(self.decoder_block_out_channels)} must '
                f'be as many as block_out_channels={list(self.block_out_channels)}'
            )
        for widths in (self.block_out_channels, self.decoder_block_out_channels):
            if widths is not None:
                self._half(widths)  # with its own checks

    def _half(self, widths: tuple[int, ...]) -> vae.VaeConfig:
        shared = {f.name for f in dataclasses.fields(self)} & {
            f.name for f in dataclasses.fields(vae.VaeConfig)
        }
        values = {name: getattr(self, name) for name in shared}
        return vae.VaeConfig(**values | {'block_out_channels': tuple(widths)})

    @property
    def encoder(self) -> vae.VaeConfig:
        """What the encoder is built from."""
        return self._half(self.block_out_channels)

    @property
    def decoder(self) -> vae.VaeConfig:
        """What the decoder is built from."""
        return self._half(self.decoder_block_out_channels or self.block_out_channels)

    @property
    def downscale(self) -> int:
        """Pixels per latent position along each side (8 for FLUX.2)."""
        return self.encoder.downscale

    @property
    def packed_channels(self) -> int:
        """Channels of a 2x2 patch of latents (128 for FLUX.2)."""
        return 4 * self.latent_channels

    @classmethod
    def from_json(cls, config: dict[str, Any]) -> 'Flux2VaeConfig':
        """Reads a parsed config.json; a key or value that this port does not cover is a ValueError
        that names it.
        """
        channels = config.get('block_out_channels', cls.block_out_channels)
        if not isinstance(channels, list | tuple):
            raise ValueError(f'{NAME}: block_out_channels is {channels!r}; expected a list')
        blocks = len(channels)
        only = {
            '_class_name': [CLASS_NAME],
            'act_fn': ['silu'],
            'down_block_types': [['DownEncoderBlock2D'] * blocks],
            'up_block_types': [['UpDecoderBlock2D'] * blocks],
        }
        ignored = ('batch_norm_momentum', 'force_upcast', 'sample_size')
        return read_config(cls, NAME, config, only=only, ignored=ignored)


class BatchStatistics(nn.Module):
    """The frozen mean and variance of a batch norm without scale and bias."""

    channels: int
    eps: float

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array]:
        """(mean, standard deviation), each float32 [channels]."""
        shape = (self.channels,)
        mean = self.param('mean', nn.initializers.zeros, shape, jnp.float32).astype(jnp.float32)
        variance = self.param('var', nn.initializers.ones, shape, jnp.float32).astype(jnp.float32)
        return mean, jnp.sqrt(variance + self.eps)


class AutoencoderKLFlux2(vae.AutoencoderKL):
    """Images to a Gaussian over latents and back, and the statistics of its packed latents.

    `encode`, `decode` and `statistics` each need only their own part of the parameters. The latents
    of the first two are not normalised.
    """

    config: Flux2VaeConfig

    def setup(self):
        c = self.config
        self.encoder, self.decoder = vae.Encoder(c.encoder), vae.Decoder(c.decoder)
        if c.use_quant_conv:
            self.quant_conv = vae.PointwiseConv(2 * c.latent_channels)
        if c.use_post_quant_conv:
            self.post_quant_conv = vae.PointwiseConv(c.latent_channels)
        self.bn = BatchStatistics(c.packed_channels, c.batch_norm_eps)

    def statistics(self) -> tuple[jax.Array, jax.Array]:
        """(mean, standard deviation) of packed latents, each float32 [4 * latent_channels]: the
        diffusion model sees (packed - mean) / deviation.
        """
        return self.bn()

    def __call__(self, images: jax.Array) -> tuple[jax.Array, ...]:
        """(reconstruction from the mean, mean, log variance, *statistics). Initialise the
        parameters with this method.
        """
        return *super().__call__(images), *self.statistics()

    def weight_rules(self) -> list[WeightRule]:
        return [
            WeightRule('bn.running_mean', 'bn/mean'),
            WeightRule('bn.running_var', 'bn/var'),
            WeightRule('bn.num_batches_tracked', None),  # an integer that only training reads
            *super().weight_rules(),
        ]
