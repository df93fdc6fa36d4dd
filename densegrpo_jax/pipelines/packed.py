"""Families whose latents are rows of packed 2x2 patches: FLUX.1 and FLUX.2."""

from densegrpo_jax.pipelines.base import Pipeline
from densegrpo_jax.pipelines.packing import pack_latents, token_grid, unpack_latents


class PackedPipeline(Pipeline):
    """Latents are [B, (height / 16) (width / 16), in_channels of the transformer]."""

    def latent_shape(self, height, width):
        rows, cols = token_grid(height, width)
        return rows * cols, self.transformer.config.in_channels

    def image_tokens(self, height, width):
        return self.latent_shape(height, width)[0]

    def spatial(self, latents, height, width):
        return unpack_latents(latents, height, width)

    def from_spatial(self, z, height, width):
        return pack_latents(z)
