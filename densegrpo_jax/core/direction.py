"""A learned direction in the embedding space of a reward (D2-Align, arXiv 2512.24146): pictures are
compared with a text embedding that is moved along it.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float


def guided_text(
    text: Float[ArrayLike, '... D'],
    direction: Float[ArrayLike, 'D'],
    omega: float,
    *,
    renormalise: bool = False,
) -> Float[Array, '... D']:
    """The text embedding that pictures are compared with, with D2-Align's scale omega:

        e± = (e ± b) |e| / |e ± b|        e_guided = e- + omega (e+ - e-)

    omega = 1 is e+, omega = 0 is e-, and beyond 1 it extrapolates. b = 0 gives e itself, to the
    bit.

    Args:
        text: e, of unit length.
        direction: b.
        renormalise: scale the result to the length of e, so that the reward stays a cosine.
    """
    e, b = jnp.asarray(text), jnp.asarray(direction)
    length = jnp.linalg.norm(e, axis=-1, keepdims=True)
    with_length = lambda x: x * (length / jnp.linalg.norm(x, axis=-1, keepdims=True))
    plus, minus = with_length(e + b), with_length(e - b)
    guided = minus + omega * (plus - minus)
    return with_length(guided) if renormalise else guided


class Shares(NamedTuple):
    """Shares of a guided reward's variance over pictures; they sum to 1."""

    text: Array  # of the similarity to the text embedding
    direction: Array  # of the similarity to b


def variance_shares(
    images: Float[ArrayLike, 'N D'],
    texts: Float[ArrayLike, 'N D'],
    direction: Float[ArrayLike, 'D'],
    omega: float,
    *,
    renormalise: bool = False,
) -> Shares:
    """How much of the variance of i . e_guided comes from i . e and from i . b: covariance of each
    part with the sum, over the variance of the sum. (1, 0) if nothing varies.
    """
    i, e, b = (jnp.asarray(x) for x in (images, texts, direction))
    plus, minus = (jnp.linalg.norm(e + sign * b, axis=-1) for sign in (1, -1))
    of_text = (omega / plus + (1 - omega) / minus) * (i * e).sum(-1)
    of_direction = (omega / plus - (1 - omega) / minus) * (i @ b)
    if renormalise:
        guided = guided_text(e, b, omega)
        scale = jnp.linalg.norm(e, axis=-1) / jnp.linalg.norm(guided, axis=-1)
        of_text, of_direction = of_text * scale, of_direction * scale
    parts = [part - part.mean() for part in (of_text, of_direction)]
    total = parts[0] + parts[1]
    variance = (total**2).mean()
    varies = variance > 0
    share = lambda part, still: jnp.where(
        varies, (part * total).mean() / jnp.where(varies, variance, 1), still
    )
    return Shares(share(parts[0], 1.0), share(parts[1], 0.0))
