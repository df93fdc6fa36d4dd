"""A training state as a checkpoint stores it: a flat table {path: array}, and hashes of the
arrays.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from densegrpo_jax.runtime.sharding import path_name


def flatten(tree) -> dict[str, Any]:
    """{'a/b/kernel': leaf} in the order of the tree's leaves. Raises on leaves that cannot be
    stored.
    """
    flat = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = path_name(path)
        if not hasattr(leaf, 'shape') or not hasattr(leaf, 'dtype'):
            raise ValueError(
                f'State leaf {name!r} is a {type(leaf).__name__}; a checkpoint stores arrays (put '
                'other values into meta).'
            )
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            raise ValueError(
                f'State leaf {name!r} is a typed PRNG key; keys are derived from the seed and the '
                'step, not stored.'
            )
        if name in flat:
            raise ValueError(f'Two state leaves have the same path {name!r}.')
        flat[name] = leaf
    return flat


def abstract(leaf) -> jax.ShapeDtypeStruct:
    """Shape, dtype and sharding of an array; without one, this process's first device."""
    sharding = getattr(leaf, 'sharding', None) or SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


@jax.jit
def digest(x: jax.Array) -> jax.Array:
    """uint32 hash of an array's bits and their positions; the same for every sharding, because
    integer sums commute.
    """
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    width = min(x.dtype.itemsize, 4)
    # 8-byte types gain an axis of 2
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f'uint{8 * width}')).astype(jnp.uint32)
    strides = [math.prod(bits.shape[i + 1 :]) % 2**32 for i in range(bits.ndim)]
    iotas = [
        jax.lax.broadcasted_iota(jnp.uint32, bits.shape, i) * jnp.uint32(stride)
        for i, stride in enumerate(strides)
    ]
    position = functools.reduce(jnp.add, iotas, jnp.zeros((), jnp.uint32))
    mixed = (bits ^ (position * jnp.uint32(0x9E3779B1))) * jnp.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(0xC2B2AE35)
    return jnp.sum(mixed ^ (mixed >> 13), dtype=jnp.uint32)
