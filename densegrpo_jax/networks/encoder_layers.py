"""What the encoders share: attention with an additive bias, and the stack of equal blocks of CLIP's
two towers.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    bias: jax.Array,
    *,
    batch: int,
    heads: int,
    scale: float,
) -> jax.Array:
    """softmax(scale q k^T + bias) v with logits and softmax in float32.

    Args:
      q, k, v: [B * L, H * d]; tokens stay flattened because 2-D products are several times faster
        on XLA:CPU.
      bias: broadcastable to [B, H, L, L], float32.
    Returns:
      [B * L, H * d] in v's dtype.
    """
    q, k, v = (x.reshape(batch, -1, heads, x.shape[-1] // heads).swapaxes(1, 2) for x in (q, k, v))
    logits = jnp.einsum('bhqd,bhkd->bhqk', q, k, preferred_element_type=jnp.float32) * scale + bias
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    out = jnp.einsum('bhqk,bhkd->bhqd', weights, v).swapaxes(1, 2)
    return out.reshape(-1, heads * out.shape[-1])


def run_blocks(
    block: type[nn.Module],
    length: int,
    name: str,
    x: jax.Array,
    *inputs: Any,
    scan: bool,
    remat: bool,
    **kwargs,
) -> tuple[jax.Array, jax.Array]:
    """Applies `length` blocks `(x, *inputs) -> (x, None)`; call it inside a compact method.

    scan: one traced block over parameters with a leading axis, at '<name>'; otherwise subtrees
    '<name>_0', '<name>_1', ... remat: recompute each block in the backward pass instead of keeping
    its activations.

    Returns (the last block's result, the last block's input).
    """
    if remat:
        block = nn.remat(block, prevent_cse=not scan)
    if scan:
        step = lambda module, x: (module(x, *inputs)[0], x)
        scanned = nn.scan(
            step, variable_axes={'params': 0}, split_rngs={'params': True}, length=length
        )
        x, before = scanned(block(**kwargs, name=name), x)
        return x, before[-1]
    for i in range(length):
        before = x
        x, _ = block(**kwargs, name=f'{name}_{i}')(x, *inputs)
    return x, before
