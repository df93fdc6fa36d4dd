"""Lists: the samples of a group, at one transition or over all, which losses compare."""

from typing import NamedTuple

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


class Samples(NamedTuple):
    """The samples of a batch that holds whole trajectories. A sample's row is its first."""

    row: Int[Array, 'M']  # of the sample of each transition
    ids: Int[Array, 'M']  # the list of each sample, as `list_ids`; of each row


def sample_rows(
    prompt_id: Int[ArrayLike, 'M'], s: Float[ArrayLike, 'M'], s_next: Float[ArrayLike, 'M']
) -> Samples:
    """The samples of transitions that are ordered by prompt, then transition, then sample."""
    prompts, place = jnp.asarray(prompt_id), jnp.arange(len(jnp.asarray(prompt_id)))
    begins = jnp.concatenate([jnp.zeros(1, bool), prompts[1:] != prompts[:-1]])
    ids, lists = jnp.cumsum(begins, dtype=jnp.int32), list_ids(prompt_id, s, s_next)
    first = lambda of: jax.ops.segment_min(place, of, len(place))[of]
    return Samples(first(ids) + place - first(lists), ids)


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
