"""What a pipeline's network computes on the way to a velocity: the attention's entropy, and hidden
states.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from densegrpo_jax.networks.layers import HIDDEN
from densegrpo_jax.pipelines.base import Conditioning, Pipeline


def probe_fn(
    pipeline: Pipeline,
    base: dict,
    policy: dict | None,
    conditioning: Conditioning,
    guidance: jax.Array | float,
    height: int,
    width: int,
    *,
    negative: Conditioning | None = None,
) -> Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """`Pipeline.velocity_fn`, also with the attention's entropy: `(x [B, ...], s [B]) -> (v [B,
    ...], entropy float32 [B])`.

    The entropy is `row_entropy` averaged over the image's tokens and all attention layers; with
    classifier-free guidance that of the prompt's own prediction.

    Raises:
      ValueError: the family's networks are not probed.
    """
    tokens = pipeline.image_tokens(height, width)
    found: list[dict] = []  # of one evaluation, inside one trace
    network = dataclasses.replace(pipeline, sown=found).velocity_fn(
        base, policy, conditioning, guidance, height, width, negative=negative
    )

    def probed(x, s):
        v = network(x, s)
        # [..., B, N]; text tokens come first, and the rows of an empty prompt last
        rows = [leaf[..., : len(x), -tokens:].mean(-1) for leaf in jax.tree.leaves(found.pop())]
        layers = jnp.concatenate([row.reshape(-1, len(x)) for row in rows])
        return v, layers.mean(0)

    return probed


def hidden_fn(
    pipeline: Pipeline,
    base: dict,
    conditioning: Conditioning,
    guidance: jax.Array | float,
    height: int,
    width: int,
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The base network's last hidden states at (x_s, s, prompt), averaged over the positions of
    the image: `(x [B, ...], s [B]) -> float32 [B, D]`, differentiable in x. With
    classifier-free guidance they are of the prompt's own prediction.
    """
    found: list[dict] = []  # of one evaluation, inside one trace
    keeping = dataclasses.replace(pipeline, sown=found, sows=HIDDEN)
    network = keeping.network_fn(base, None, conditioning, guidance, height, width)

    def hidden(x, s):
        network(x, s)  # the compiler leaves out what comes after the states
        (states,) = jax.tree.leaves(found.pop())
        return states.astype(jnp.float32).mean(tuple(range(1, states.ndim - 1)))

    return hidden
