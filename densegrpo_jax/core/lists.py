"""Lists: the samples of a group at one transition, which losses compare with each other."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int


def list_ids(
    prompt_id: Int[ArrayLike, 'M'], s: Float[ArrayLike, 'M'], s_next: Float[ArrayLike, 'M']
) -> Int[Array, 'M']:
    """The list of each transition, 0, 1, ...: a new one begins where the prompt or the grid changes
    from one row to the next. For batches of whole groups, whose samples are adjacent.
    """
    where = [jnp.asarray(a) for a in (prompt_id, s, s_next)]
    begins = [a[1:] != a[:-1] for a in where]
    return jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(begins[0] | begins[1] | begins[2])])


def list_sum(values: Float[ArrayLike, 'M'], ids: Int[ArrayLike, 'M']) -> Float[Array, 'M']:
    """The sum over each row's list."""
    ids = jnp.asarray(ids)
    return jax.ops.segment_sum(jnp.asarray(values), ids, len(ids))[ids]


def list_softmax(
    values: Float[ArrayLike, 'M'], ids: Int[ArrayLike, 'M'], used: Bool[ArrayLike, 'M']
) -> Float[Array, 'M']:
    """The softmax over each row's list; rows not in use get 0 and may hold NaN."""
    ids, values = jnp.asarray(ids), jnp.where(used, values, -jnp.inf)
    highest = jax.lax.stop_gradient(jax.ops.segment_max(values, ids, len(ids))[ids])
    # a list without a row in use has no maximum
    powers = jnp.where(used, jnp.exp(jnp.where(used, values - highest, 0)), 0)
    return powers / jnp.maximum(list_sum(powers, ids), jnp.finfo(powers.dtype).tiny)
