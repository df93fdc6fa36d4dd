"""Flow stage (rectified flow with text dropout) and distillation stage (classifier-free guidance
into the guidance embedding).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from densegrpo_jax.pipelines.base import Pipeline
from densegrpo_jax.pipelines.packing import pack_latents


def batch_fn(
    seed: int, batch: int, pool: dict[str, np.ndarray], empty: dict[str, np.ndarray], dropout: float
):
    """`step -> dict` drawn with replacement from the encoded pool; a fraction `dropout` of the
    prompts is replaced by the empty prompt.

    Args:
      pool: latents float16 [S, h, w, 16], clip_ids [S, Lc], t5_ids [S, Lt].
      empty: the empty prompt's clip_ids [Lc] and t5_ids [Lt].
    """

    def build(step: int) -> dict:
        rng = np.random.default_rng((seed, step))
        index = rng.integers(len(pool['latents']), size=batch)
        drop = (rng.random(batch) < dropout)[:, None]
        ids = {k: np.where(drop, empty[k][None], pool[k][index]) for k in ('clip_ids', 't5_ids')}
        return {'latents': pool['latents'][index].astype(np.float32), **ids}

    return build


def sample_times(key: jax.Array, batch: int, mu: float) -> jax.Array:
    """Noise levels s [B]: logit-normal (arXiv 2403.03206, Eq. 19) around `mu`, the logit of the
    FLUX grid's shift.
    """
    return jax.nn.sigmoid(mu + jax.random.normal(key, (batch,)))


def noised(latents: jax.Array, key: jax.Array, mu: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Packed x_s = (1 - s) x_0 + s eps, s [B] and the velocity target eps - x_0 for autoencoder
    latents [B, h, w, 16].
    """
    noise_key, time_key = jax.random.split(key)
    x0 = pack_latents(latents)
    eps = jax.random.normal(noise_key, x0.shape)
    s = sample_times(time_key, x0.shape[0], mu)
    return (1 - s)[:, None, None] * x0 + s[:, None, None] * eps, s, eps - x0


def flow_loss(pipeline: Pipeline, height: int, width: int, mu: float):
    """Flow matching (arXiv 2210.02747, Eq. 23), guidance input 1:
    `mean |v(x_s, s) - (eps - x_0)|^2`, x_s = (1 - s) x_0 + s eps.
    """

    def loss_fn(params, batch, key):
        x, s, target = noised(batch['latents'], key, mu)
        conditioning = pipeline.encode(params, batch['clip_ids'], batch['t5_ids'])
        v = pipeline.velocity_fn(
            params['transformer'], None, conditioning, jnp.ones_like(s), height, width
        )(x, s)
        return jnp.mean(jnp.square(v - target)), {}

    return loss_fn


def distil_loss(
    pipeline: Pipeline,
    teacher: dict,
    empty: dict[str, np.ndarray],
    height: int,
    width: int,
    mu: float,
    guidance_max: float,
):
    """Guidance distillation (arXiv 2210.03142, Eq. 2): the student at guidance w matches
    `v_uncond + w (v_cond - v_uncond)` of the teacher.

    w is uniform in [1, guidance_max]; only the transformer, whose tree `params` is, learns; the
    text encoders stay.
    """

    def loss_fn(params, batch, key):
        key, w_key = jax.random.split(key)
        x, s, _ = noised(batch['latents'], key, mu)
        n = x.shape[0]
        w = jax.random.uniform(w_key, (n,), minval=1.0, maxval=guidance_max)
        conditional = pipeline.encode(teacher, batch['clip_ids'], batch['t5_ids'])
        nothing = pipeline.encode(
            teacher, jnp.asarray(empty['clip_ids'])[None], jnp.asarray(empty['t5_ids'])[None]
        )
        both = jax.tree.map(
            lambda c, u: jnp.concatenate([c, jnp.broadcast_to(u, c.shape)]), conditional, nothing
        )
        velocity = pipeline.velocity_fn(
            teacher['transformer'], None, both, jnp.ones(2 * n), height, width
        )
        v_cond, v_uncond = jnp.split(velocity(jnp.concatenate([x, x]), jnp.concatenate([s, s])), 2)
        target = jax.lax.stop_gradient(v_uncond + w[:, None, None] * (v_cond - v_uncond))
        v = pipeline.velocity_fn(params, None, conditional, w, height, width)(x, s)
        return jnp.mean(jnp.square(v - target)), {}

    return loss_fn
