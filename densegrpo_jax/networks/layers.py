"""Layers the networks share: adapted dense layer, norms with float32 statistics, timestep
embedding, rotary embedding.

Every function takes [..., D] and keeps statistics in float32. Matrix products flatten leading axes
first: on XLA:CPU a 2-D product and its weight gradient are several times faster than the 3-D ones,
elsewhere the compiler sees the same program.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from densegrpo_jax.networks import lora as lora_lib
from densegrpo_jax.networks import quantize

kernel_init = nn.initializers.lecun_normal()

HIDDEN = 'hidden'  # collection of a network's last hidden states, filled only where it is mutable


def keep_hidden(network: nn.Module, x: jax.Array) -> None:
    """Keeps the states of the image's positions, [B, ..., D], before the output layers."""
    if network.is_mutable_collection(HIDDEN) and not network.is_initializing():
        network.sow(HIDDEN, 'states', x)


class Dense(nn.Module):
    """y = x W + b, plus the adapter (alpha / rank) (x A) B if `adapters` names this layer and the
    collection 'lora' is given.

    Input [..., in] of any float dtype, output [..., features] in `dtype`. W may be stored in few
    bits (`quantize`).
    """

    features: int
    adapters: lora_lib.Adapters | None = None
    dtype: Any = jnp.float32
    kernel_init: Any = kernel_init
    use_bias: bool = True

    @nn.compact
    def __call__(self, x):
        kernel = self.param('kernel', self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        flat = x.reshape(-1, x.shape[-1]).astype(self.dtype)
        y = quantize.matmul(flat, kernel)
        if self.use_bias:
            y += self.param('bias', nn.initializers.zeros, (self.features,), jnp.float32).astype(
                self.dtype
            )
        if self.adapters is not None and '/'.join(self.path) in self.adapters.paths:
            y = self._adapt(flat, y)
        return y.reshape(*x.shape[:-1], self.features)

    def _adapt(self, x, y):
        if not (self.has_variable(lora_lib.COLLECTION, 'a') or self.is_initializing()):
            return y  # no adapters given: the reference policy
        rank = self.adapters.rank
        a = self.variable(
            lora_lib.COLLECTION,
            'a',
            lambda: lora_lib.gaussian(self.make_rng('params'), (x.shape[-1], rank)),
        )
        b = self.variable(lora_lib.COLLECTION, 'b', jnp.zeros, (rank, self.features), jnp.float32)
        return (
            y + (x @ a.value.astype(self.dtype)) @ b.value.astype(self.dtype) * self.adapters.scale
        )


@jax.checkpoint
def gelu(x):
    """GELU in its tanh approximation. Recomputed in the backward pass: on CPU the saved traffic is
    a tenth of a training step.
    """
    return jax.nn.gelu(x, approximate=True)


def layer_norm(x, eps=1e-6):
    """(x - mean) / sqrt(var + eps) over the last axis, without weights. Returns float32."""
    x = x.astype(jnp.float32)
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps)


class LayerNorm(nn.Module):
    """Layer normalisation with scale and bias over the last axis. Returns float32."""

    eps: float

    @nn.compact
    def __call__(self, x):
        scale = self.param('scale', nn.initializers.ones, (x.shape[-1],), jnp.float32)
        bias = self.param('bias', nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        return layer_norm(x, self.eps) * scale.astype(jnp.float32) + bias.astype(jnp.float32)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * scale over the last axis. Returns float32."""

    eps: float = 1e-6

    @nn.compact
    def __call__(self, x):
        scale = self.param('scale', nn.initializers.ones, (x.shape[-1],), jnp.float32)
        x = x.astype(jnp.float32)
        return (
            x
            * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.eps)
            * scale.astype(jnp.float32)
        )


def timestep_embedding(t, dim=256):
    """[cos(t f), sin(t f)] with f_i = 10000^(-i / (dim / 2)); t [B] float32, up to thousands ->
    [B, dim] float32.
    """
    half = dim // 2
    # t f reaches thousands of radians, where the last bit of f matters: round the exponent to
    # float32 as the reference does.
    exponent = np.float32(-math.log(10000)) * np.arange(half, dtype=np.float32) / np.float32(half)
    frequencies = np.exp(exponent.astype(np.float64)).astype(np.float32)
    angles = t.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def rope_tables(ids, axes_dims):
    """Rotary tables (arXiv:2104.09864), one group of channels per position axis.

    Args:
      ids: [N, len(axes_dims)] positions.
      axes_dims: even number of channels per axis; their sum is the head dimension d.
    Returns:
      (cos, sin), each [N, d] float32, every frequency twice in a row (pairs of neighbouring
      channels rotate together).
    """
    angles = []
    for axis, dim in enumerate(axes_dims):
        frequencies = (10000.0 ** (-np.arange(0, dim, 2) / dim)).astype(np.float32)
        angles.append(
            jnp.repeat(ids[:, axis].astype(jnp.float32)[:, None] * frequencies, 2, axis=-1)
        )
    angles = jnp.concatenate(angles, axis=-1)
    return jnp.cos(angles), jnp.sin(angles)


def apply_rope(x, cos, sin):
    """Rotates channel pairs (x_2i, x_2i+1): x [B, N, H, d], tables [N, d] or [B, N, d] ->
    float32.
    """
    x = x.astype(jnp.float32)
    pairs = x.reshape(*x.shape[:-1], -1, 2)
    turned = jnp.stack([-pairs[..., 1], pairs[..., 0]], axis=-1).reshape(x.shape)
    return x * cos[..., None, :] + turned * sin[..., None, :]
