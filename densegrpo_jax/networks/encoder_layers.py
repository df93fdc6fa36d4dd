"""What the encoders share: attention with an additive bias."""

import jax
import jax.numpy as jnp


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
