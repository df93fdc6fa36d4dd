"""Group-relative advantages, normalised per transition."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Advantages(NamedTuple):
    values: jax.Array  # [T, B]
    zero_spread: jax.Array  # int32 [T]: groups whose rewards do not differ; 0 at transitions left out


def group_advantages(
    step_rewards,
    num_groups,
    *,
    std='group',
    eps=1e-4,
    clip=5.0,
    group_ids=None,
    steps=None,
    valid=None,
    min_spread=1e-6,
):
    """A = (r - group mean) / (std + eps), clipped to [-clip, clip], for each transition on its own (DenseGRPO Eq. 10).

    A group whose largest and smallest reward differ by at most `min_spread` says nothing about its members: its advantages are
    exactly 0 and it is counted. All statistics are population statistics (ddof 0).

    Args:
        step_rewards: [T, B] per-transition rewards of `dense_reward`.
        num_groups: P, static.
        std: 'group', the group's own (the paper); 'global', of all rewards of the batch at that transition (Flow-GRPO).
        eps: added to the std, outside the root.
        clip: bound on |A|; None for none.
        group_ids: int [B] in 0 ... P-1; default P equal groups in prompt-major order.
        steps: bool [T], the transitions to normalise, e.g. plan.trained; the others get 0 and may hold NaN. Default all.
        valid: bool [B] or [T, B]; invalid samples get 0 and enter no statistic.
        min_spread: in units of the reward; absorbs the float32 rounding of equal gains.

    Returns:
        Advantages.
    """
    step_rewards = jnp.asarray(step_rewards)
    num_steps, batch = step_rewards.shape
    if std not in ('group', 'global'):
        raise ValueError(f"std is {std!r}; expected 'group' or 'global'")
    if group_ids is None:
        if batch % num_groups:
            raise ValueError(f'{batch} samples do not divide into {num_groups} equal groups; give group_ids')
        group_ids = np.arange(batch) // (batch // num_groups)
    used = jnp.ones((num_steps, batch), bool)
    if steps is not None:
        used &= jnp.asarray(steps)[:, None]
    if valid is not None:
        used &= valid
    rewards = jnp.where(used, step_rewards, 0)

    def per_group(reduce, values):
        """[T, B] -> [T, P]."""
        return reduce(values.T, group_ids, num_groups).T

    weight = used.astype(rewards.dtype)
    count = jnp.maximum(per_group(jax.ops.segment_sum, weight), 1)
    mean = per_group(jax.ops.segment_sum, rewards) / count
    centred = jnp.where(used, rewards - mean[:, group_ids], 0)
    if std == 'group':
        scale = jnp.sqrt(per_group(jax.ops.segment_sum, centred**2) / count)[:, group_ids]
    else:
        total = jnp.maximum(weight.sum(1, keepdims=True), 1)
        from_batch_mean = jnp.where(used, rewards - rewards.sum(1, keepdims=True) / total, 0)
        scale = jnp.sqrt((from_batch_mean**2).sum(1, keepdims=True) / total)

    highest = per_group(jax.ops.segment_max, jnp.where(used, rewards, -jnp.inf))
    lowest = per_group(jax.ops.segment_min, jnp.where(used, rewards, jnp.inf))
    flat = highest - lowest <= min_spread  # also true of an empty group (-inf) and of a single sample
    values = jnp.where(flat[:, group_ids], 0, centred / (scale + eps))
    if clip is not None:
        values = jnp.clip(values, -clip, clip)
    occupied = jnp.isfinite(highest)
    return Advantages(values, jnp.sum(flat & occupied, axis=1, dtype=jnp.int32))
