"""DiffusionNFT's objective (arXiv 2509.16117): the forward process on clean samples, where the
policy is the better and, mirrored, the worse half of the policy that sampled.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from densegrpo_jax.core.sde_step import over

ADVANTAGE = 5.0  # the advantages that are certain: r is 0 at -5 and 1 at 5
FLOOR = 1e-5  # under the mean absolute error that a square is divided by


def optimality(advantage: Mapping[str, Float[ArrayLike, 'M']]) -> Float[Array, 'M']:
    """r = clip(A / 10 + 1/2, 0, 1), the probability that a sample is of the better half."""
    total = functools.reduce(jnp.add, map(jnp.asarray, advantage.values()))
    return jnp.clip(total / (2 * ADVANTAGE) + 0.5, 0, 1)


def nft_terms(
    v: Float[ArrayLike, 'M *latent'],
    v_old: Float[ArrayLike, 'M *latent'],
    x: Float[ArrayLike, 'M *latent'],
    s: Float[ArrayLike, 'M'],
    x0: Float[ArrayLike, 'M *latent'],
    advantage: Mapping[str, Float[ArrayLike, 'M']],
    *,
    strength: float,
) -> Float[Array, 'M']:
    """With v+ = b v + (1 - b) v_old, v- = (1 + b) v_old - b v, and r of `optimality`,

        (5 / b) [r d(v+) + (1 - r) d(v-)],   d(u) = mean e^2 / sg(mean |e|),  e = x - s u - x_0

    At v = v_old the gradient is that of -10 (2 r - 1) s mean(e v) / mean |e|, whatever b.

    Args:
        v: the policy's velocity at (x, s). v_old: that of the policy that sampled; no gradient
            flows into it.
        x: x_0 with noise of the level s.
        advantage: by name; several are added.
        strength: b > 0.

    Returns:
        [M]; 0 where the advantages are exactly 0, as in a group of equal rewards: next to the old
        policy such a gradient is rounding, which Adam would scale up.
    """
    v, v_old, x, s, x0 = map(jnp.asarray, (v, jax.lax.stop_gradient(v_old), x, s, x0))
    axes = tuple(range(1, v.ndim))
    wide = over(s, v)

    def distance(u):
        error = x - wide * u - x0
        size = jnp.mean(jnp.abs(jax.lax.stop_gradient(error)), axes)
        return jnp.mean(error**2, axes) / jnp.maximum(size, FLOOR)

    r = optimality(advantage)
    better = distance(strength * v + (1 - strength) * v_old)
    worse = distance((1 + strength) * v_old - strength * v)
    known = functools.reduce(jnp.logical_or, [jnp.asarray(a) != 0 for a in advantage.values()])
    return jnp.where(known, ADVANTAGE / strength * (r * better + (1 - r) * worse), 0)
