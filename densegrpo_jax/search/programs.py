"""The compiled programs of a search: all of its arithmetic on latents, except the network.

Arrays are [P, n, ...]: n particles of each of P prompts. State and iteration are traced, so that
one compiled body serves every state.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from densegrpo_jax.core.particles import (
    best_candidate,
    conditional_resample,
    proposal_log_ratio,
    resample,
)
from densegrpo_jax.core.sde_step import over, sde_step


@jax.jit
def fold(keys, iteration, stream, k):
    """Key data uint32 [P, 2] -> [P, 2] of an iteration, a stream of it and a state."""

    def one(key):
        for part in (iteration, stream, k):
            key = jax.random.fold_in(key, part)
        return key

    return jax.random.key_data(jax.vmap(one)(jax.random.wrap_key_data(keys)))


@functools.partial(jax.jit, static_argnames='shape')
def normal(keys, slots, shape):
    """Standard normal [P, n, *shape], from key data [P, 2] and slots [n]."""
    row = lambda key, slot: jax.random.normal(jax.random.fold_in(key, slot), shape)
    return jax.vmap(jax.vmap(row, in_axes=(None, 0)), in_axes=(0, None))(
        jax.random.wrap_key_data(keys), slots
    )


def _rows(a):
    """[P, n, ...] -> [P * n, ...]."""
    return a.reshape(-1, *a.shape[2:])


def _moved(x, v, s, s_next, level, noise, kernel):
    return sde_step(_rows(v), _rows(x), s, s_next, level, noise=_rows(noise), kernel=kernel)


@functools.partial(jax.jit, static_argnames='kernel')
def step(x, v, s, s_next, level, noise, *, kernel):
    """The sampler's step from x with velocity v, [P, n, ...]."""
    return _moved(x, v, s, s_next, level, noise, kernel).sample.reshape(x.shape)


@functools.partial(jax.jit, static_argnames='kernel')
def guided(x, v, s, s_next, level, noise, gradient, scale, *, kernel):
    """A step whose mean is shifted by std^2 g / alpha, and log p/q [P, n]. Elements of the gradient
    that are not finite shift nothing, and a path that is not finite has no weight.
    """
    plain = _moved(x, v, s, s_next, level, noise, kernel)
    gradient = jnp.where(jnp.isfinite(gradient), gradient, 0)
    variance = over(plain.std**2, plain.mean)
    shift = variance * scale * _rows(gradient)
    x_next = plain.sample + shift
    ratio = proposal_log_ratio(x_next, plain.mean, plain.std, shift)
    ratio = jnp.where(jnp.isnan(ratio), -jnp.inf, ratio)
    return x_next.reshape(x.shape), ratio.reshape(x.shape[:2])


@functools.partial(jax.jit, static_argnames='kernel')
def moments(x, v, s, s_next, level, *, kernel):
    """Mean [P, n, ...] and std [P * n] of the sampler's step."""
    plain = _moved(x, v, s, s_next, level, jnp.zeros_like(x), kernel)
    return plain.mean.reshape(x.shape), plain.std


@jax.jit
def predict(x, v, s, end):
    """x0hat = x - s v, [P, n, ...], times `end`."""
    return end * (x - s * v)


@jax.jit
def take(a, index):
    """Particles `index` [P, m] of a [P, n, ...]."""
    return jnp.take_along_axis(a, index.reshape(*index.shape, *[1] * (a.ndim - 2)), axis=1)


@jax.jit
def join(a, b):
    """Particles [P, n, ...], then others [P, m, ...]."""
    return jnp.concatenate([a, b], axis=1)


@jax.jit
def where(keep, a, b):
    """a [P, n, ...] where keep [P, n], else b."""
    return jnp.where(keep.reshape(*keep.shape, *[1] * (a.ndim - 2)), a, b)


@functools.partial(jax.jit, static_argnames=('scheme', 'pinned'))
def ancestors(keys, logw, scheme, pinned):
    """int [P, K] for log weights [P, K], see `loop.Walk.resample`. pinned: by 'multinomial' alone,
    which has a conditional form.
    """
    one = conditional_resample if pinned else functools.partial(resample, scheme=scheme)
    return jax.vmap(one)(jax.random.wrap_key_data(keys), logw)


def finite_rows(scores):
    """float32 [..., M]: rows without a finite value become 0, -inf, -inf, ..."""
    dead = ~np.isfinite(scores).any(-1, keepdims=True)
    first = np.where(np.arange(scores.shape[-1]) == 0, 0, -np.inf)
    return np.where(dead, first, scores).astype(np.float32)


@functools.partial(jax.jit, static_argnames='alpha')
def choose(keys, scores, alpha):
    """int [P, B] by scores [P, B, M], see `best_candidate`."""
    return jax.vmap(lambda key, row: best_candidate(key, row, alpha))(
        jax.random.wrap_key_data(keys), scores
    )


@functools.partial(jax.jit, static_argnames='count')
def uniform(keys, count):
    """Uniform numbers [P, count]."""
    return jax.vmap(lambda key: jax.random.uniform(key, (count,)))(jax.random.wrap_key_data(keys))
