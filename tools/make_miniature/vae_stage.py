"""Autoencoder stage: Gaussian posterior, squared error plus a small KL term, then a scale per
latent channel folded into the weights.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def to_model_range(images: np.ndarray) -> np.ndarray:
    """uint8 [B, H, W, 3] -> float32 in [-1, 1]."""
    return images.astype(np.float32) / 127.5 - 1.0


def batch_fn(draw, seed: int, batch: int):
    """`step -> {'images': float32 [B, H, W, 3]}`, freshly drawn; draw: see `datasets.Dataset`."""
    return lambda step: {'images': to_model_range(draw(seed, step, batch)[0])}


def make_loss(vae, kl_weight: float):
    """Negative ELBO per pixel, `mean (x - D(z))^2 + w KL(q(z|x) || N(0, I))` with z ~ q (arXiv
    1312.6114, Eq. 10), KL a mean over latents.

    A decoder of pixel deviation tau corresponds to w = 2 tau^2 (latents / pixels): 5e-4 is tau =
    0.055 at 8x reduction with 16 channels.
    """

    def loss_fn(params, batch, key):
        images = batch['images']
        mean, logvar = vae.apply({'params': params}, images, method='encode')
        logvar = jnp.clip(logvar, -20.0, 10.0)
        z = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)
        recon = vae.apply({'params': params}, z, method='decode')
        mse = jnp.mean(jnp.square(recon - images))
        kl = 0.5 * jnp.mean(jnp.square(mean) + jnp.exp(logvar) - 1.0 - logvar)
        return mse + kl_weight * kl, {'mse': mse, 'kl': kl}

    return loss_fn


def latent_moments(vae, params, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation [16] of the posterior mean over images and positions."""
    encode = jax.jit(lambda p, x: vae.apply({'params': p}, x, method='encode')[0])
    latents = np.concatenate(
        [np.asarray(encode(params, images[i : i + 64])) for i in range(0, len(images), 64)]
    )
    return latents.mean((0, 1, 2)), latents.std((0, 1, 2))


def fold_channel_scale(params, scale: np.ndarray):
    """Divides latent channel c by scale[c] exactly: the encoder's last convolution shrinks, the
    decoder's first grows by the same factor.

    Diffusers pipelines have only one scaling factor; with this division every channel has unit
    variance under it.
    """
    params = jax.tree.map(lambda p: p, params)
    out, first = dict(params['encoder']['conv_out']), dict(params['decoder']['conv_in'])
    channels = scale.shape[0]
    factor = np.concatenate([1.0 / scale, np.ones(channels, np.float32)])
    shift = np.concatenate([np.zeros(channels, np.float32), -2.0 * np.log(scale)])  # log variance
    out['kernel'], out['bias'] = out['kernel'] * factor, out['bias'] * factor + shift
    first['kernel'] = first['kernel'] * scale[None, None, :, None]
    params['encoder'] = {**params['encoder'], 'conv_out': out}
    params['decoder'] = {**params['decoder'], 'conv_in': first}
    return params


def reconstructions(vae, params, images: np.ndarray) -> np.ndarray:
    """Images and their reconstructions through the posterior mean, in turn: float [-1, 1] [B, H,
    W, 3] -> uint8 [2 B, H, W, 3].
    """
    mean, _ = vae.apply({'params': params}, images, method='encode')
    decoded = np.asarray(vae.apply({'params': params}, mean, method='decode'))
    both = np.stack([images, np.clip(decoded, -1, 1)], axis=1).reshape(-1, *images.shape[1:])
    return np.round((both + 1) * 127.5).astype(np.uint8)
