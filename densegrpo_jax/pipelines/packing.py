"""FLUX's latent geometry: 2x2 packing of the autoencoder's latents into tokens, and the positions
of those tokens.
"""

from __future__ import annotations

import jax
import numpy as np

VAE_REDUCTION = 8
PATCH = 2  # latents per token and axis
PIXELS_PER_TOKEN = VAE_REDUCTION * PATCH


def token_grid(height: int, width: int) -> tuple[int, int]:
    """Token rows and columns of an image of `height` x `width` pixels; ValueError if a side is not
    a positive multiple of 16.
    """
    for name, value in (('height', height), ('width', width)):
        if value <= 0 or value % PIXELS_PER_TOKEN:
            raise ValueError(
                f'{name}={value} is not a positive multiple of {PIXELS_PER_TOKEN}; nearest: '
                f'{max(1, round(value / 16)) * 16}'
            )
    return height // PIXELS_PER_TOKEN, width // PIXELS_PER_TOKEN


def pack_latents(latents: jax.Array) -> jax.Array:
    """[B, h, w, C] -> [B, (h/2)(w/2), 4C]; within a token channel-major (c, dy, dx), as Diffusers'
    `FluxPipeline._pack_latents`.
    """
    b, h, w, c = latents.shape
    x = latents.reshape(b, h // 2, 2, w // 2, 2, c)
    return x.transpose(0, 1, 3, 5, 2, 4).reshape(b, (h // 2) * (w // 2), 4 * c)


def unpack_latents(tokens: jax.Array, height: int, width: int) -> jax.Array:
    """Inverse of `pack_latents` for an image of `height` x `width` pixels: [B, N, 4C] -> [B,
    height/8, width/8, C].
    """
    rows, cols = token_grid(height, width)
    b, _, c4 = tokens.shape
    x = tokens.reshape(b, rows, cols, c4 // 4, 2, 2)
    return x.transpose(0, 1, 4, 2, 5, 3).reshape(b, 2 * rows, 2 * cols, c4 // 4)


def latent_image_ids(height: int, width: int) -> np.ndarray:
    """Positions of the image tokens, float32 [N, 3]: (0, row, column)."""
    rows, cols = token_grid(height, width)
    ids = np.zeros((rows, cols, 3), np.float32)
    ids[..., 1] = np.arange(rows)[:, None]
    ids[..., 2] = np.arange(cols)[None, :]
    return ids.reshape(-1, 3)
