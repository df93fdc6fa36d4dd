"""Classifier-free guidance: the velocity away from that of the empty prompt."""

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from densegrpo_jax.core.sde_step import over

ALWAYS = 1.0  # the truncation that guides up to the image


def guided_velocity(
    positive: Float[Array, 'B *latent'],
    negative: Float[Array, 'B *latent'],
    s: Float[Array, ' B'],
    scale: Float[ArrayLike, '*rows'],
    *,
    normalization: float = 0.0,
    truncation: float = ALWAYS,
) -> Float[Array, 'B *latent']:
    """v_negative + w (v - v_negative) (arXiv:2207.12598), with the two options of Diffusers'
    ZImagePipeline, which count at every evaluation alike: in rollouts, completions and updates.

    Args:
        positive: [B, ...] v, the prediction of the prompt.
        negative: [B, ...] v_negative, that of the empty prompt.
        s: [B] noise level of the latent.
        scale: w, a scalar or [B].
        normalization: bounds the norm of a sample's guided velocity by this times the norm of v;
            0: no bound.
        truncation: v itself counts, without guidance, once the time 1 - s is above this, in
            float32; 1: never.
    """
    scale = over(jnp.broadcast_to(jnp.asarray(scale, jnp.float32), s.shape), positive)
    guided = negative + scale * (positive - negative)
    if normalization:
        square = lambda v: (v**2).sum(tuple(range(1, v.ndim)))
        most, found = normalization**2 * square(positive), square(guided)
        longer, zero = found > most, most == 0
        # A quotient and a root that have a gradient where a velocity is 0 too.
        share = jnp.where(longer & ~zero, most / jnp.where(longer, found, 1.0), 1.0)
        guided = guided * over(jnp.where(longer & zero, 0.0, jnp.sqrt(share)), guided)
    if truncation < ALWAYS:
        guided = jnp.where(over(1 - s > truncation, guided), positive, guided)
    return guided
