"""Group-relative advantages, normalised per transition or over all of them."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

STD_SCOPES = ('group', 'global', 'pooled', 'joint')
CENTRES = ('step', 'joint')
# Rewards of a group that differ by no more are equal: covers the float32 rounding of equal gains.
MIN_SPREAD = 1e-6


def group_ids_of(sizes: Iterable[int]) -> Int[np.ndarray, 'B']:
    """The group of each sample, for adjacent samples of a group: 0 ... P-1, int32 [B].

    Args:
        sizes: P numbers of samples, at least 1 each; they may differ.
    """
    sizes = list(sizes)
    if not sizes or min(sizes) < 1:
        raise ValueError(f'group sizes are {sizes}; expected one or more, each at least 1')
    return np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)


class Advantages(NamedTuple):
    values: Float[Array, 'T B']
    # int32, groups whose rewards do not differ; 0 at transitions left out
    zero_spread: Int[Array, 'T']


class GroupStatistics(NamedTuple):
    """The statistics of each reward's group in `group_advantages`: population statistics (ddof 0)
    over the samples in use.
    """

    rewards: Float[Array, 'T B']  # 0 where not in use
    used: Bool[Array, 'T B']
    mean: Float[Array, 'T B']  # of the sample's group, at the transition or over all
    # [T, B] or [T, 1], the mean that `std` is taken around: the group's or the batch's
    centre: Float[Array, 'T #B']
    std: Float[Array, '#T #B']  # [T, B], [1, B], [T, 1] or [1, 1]
    flat: Bool[Array, 'T P']  # the group's rewards do not differ from their mean
    occupied: Bool[Array, 'T P']  # the group has a sample in use
    group_ids: Int[ArrayLike, 'B']


def group_advantages(
    step_rewards: Float[ArrayLike, 'T B'],
    num_groups: int,
    *,
    eps: float = 1e-4,
    clip: float | None = 5.0,
    **groups: Any,
) -> Advantages:
    """A = (r - group mean) / (std + eps), clipped to [-clip, clip], separately for each transition
    (DenseGRPO Eq. 10).

    If a group's largest and smallest rewards differ by at most MIN_SPREAD, its advantages are
    exactly 0 and the group is counted. All statistics are population statistics (ddof 0).

    Args:
        step_rewards: [T, B] per-transition rewards of `dense_reward`.
        num_groups: P, static.
        std: 'group', the group's own (the paper); 'global', of all rewards of the batch at that
            transition (Flow-GRPO); 'pooled', one number: the root mean square of r - group mean
            over all samples and transitions in use. The first two give all transitions equal
            influence, and so amplify those whose rewards hardly vary, often only by the rounding of
            an image to 8 bits or by the reward's own noise. With 'pooled' a transition counts by
            how much its rewards differ. (The deviation is from group means, not from one overall
            mean: a sample cannot change the distance between transitions or prompts.)
        eps: added to the std, outside the root.
        clip: bound on |A|; None for none.
        group_ids: int [B] in 0 ... P-1; default P equal groups in prompt-major order.
        steps: bool [T], the transitions to normalise, e.g. masks.trained; the others get 0 and may
            hold NaN. Default all.
        valid: bool [B] or [T, B]; invalid samples get 0 and enter no statistic.

    Returns:
        Advantages.

    Raises:
        ValueError: unknown or unfitting std and centre, or groups that are not equal.
    """
    stats = group_statistics(step_rewards, num_groups, **groups)
    values = advantage_values(stats, eps)
    if clip is not None:
        values = jnp.clip(values, -clip, clip)
    return Advantages(values, jnp.sum(stats.flat & stats.occupied, axis=1, dtype=jnp.int32))


def advantage_values(stats: GroupStatistics, eps: float) -> Float[Array, 'T B']:
    """(r - group mean) / (std + eps); 0 in flat groups and for samples not in use."""
    centred = jnp.where(stats.used, stats.rewards - stats.mean, 0)
    return jnp.where(stats.flat[:, stats.group_ids], 0, centred / (stats.std + eps))


def group_statistics(
    step_rewards: Float[ArrayLike, 'T B'],
    num_groups: int,
    *,
    std: str = 'group',
    centre: str = 'step',
    group_ids: Int[ArrayLike, 'B'] | None = None,
    steps: Bool[ArrayLike, 'T'] | None = None,
    valid: Bool[ArrayLike, 'B'] | Bool[ArrayLike, 'T B'] | None = None,
) -> GroupStatistics:
    """Statistics of the rewards; arguments as in `group_advantages`."""
    step_rewards = jnp.asarray(step_rewards)
    num_steps, batch = step_rewards.shape
    if std not in STD_SCOPES:
        raise ValueError(f'std is {std!r}; expected one of {STD_SCOPES}')
    check_centre(centre, std)
    if group_ids is None:
        if batch % num_groups:
            raise ValueError(
                f'{batch} samples do not divide into {num_groups} equal groups; give group_ids'
            )
        group_ids = group_ids_of([batch // num_groups] * num_groups)
    used = jnp.ones((num_steps, batch), bool)
    if steps is not None:
        used &= jnp.asarray(steps)[:, None]
    if valid is not None:
        used &= valid
    rewards = jnp.where(used, step_rewards, 0)

    def per_group(reduce, values):
        """[T, B] -> [T, P]."""
        return reduce(values.T, group_ids, num_groups).T

    def centred(reduce, values):
        """[T, P] or, of all transitions, [1, P]: what the mean is taken over."""
        return values if centre == 'step' else reduce(values, axis=0, keepdims=True)

    weight = used.astype(rewards.dtype)
    count = per_group(jax.ops.segment_sum, weight)
    sums = centred(jnp.sum, per_group(jax.ops.segment_sum, rewards))
    mean = (sums / jnp.maximum(centred(jnp.sum, count), 1))[:, group_ids]
    mean = jnp.broadcast_to(mean, rewards.shape)
    total = jnp.maximum(weight.sum(1, keepdims=True), 1)
    around = rewards.sum(1, keepdims=True) / total if std == 'global' else mean
    square = jnp.where(used, rewards - around, 0) ** 2
    if std in ('group', 'joint'):
        squares = per_group(jax.ops.segment_sum, square)
        if std == 'joint':
            squares, count = (a.sum(0, keepdims=True) for a in (squares, count))
        variance = (squares / jnp.maximum(count, 1))[:, group_ids]
    elif std == 'pooled':
        variance = square.sum(keepdims=True) / jnp.maximum(weight.sum(), 1)
    else:
        variance = square.sum(1, keepdims=True) / total
    scale = jnp.sqrt(variance)

    highest = per_group(jax.ops.segment_max, jnp.where(used, rewards, -jnp.inf))
    lowest = per_group(jax.ops.segment_min, jnp.where(used, rewards, jnp.inf))
    occupied = jnp.isfinite(highest)
    # also true for an empty group (-inf) and a single sample
    flat = centred(jnp.max, highest) - centred(jnp.min, lowest) <= MIN_SPREAD
    flat = jnp.broadcast_to(flat, occupied.shape)
    return GroupStatistics(rewards, used, mean, around, scale, flat, occupied, group_ids)


def check_centre(centre: str, std: str) -> None:
    """Raises ValueError if there is no such centre, or if the std is of single transitions and the
    mean of all.
    """
    if centre not in CENTRES:
        raise ValueError(f'centre is {centre!r}; expected one of {CENTRES}')
    if centre == 'joint' and std not in ('pooled', 'joint'):
        raise ValueError(
            f"centre 'joint' is the mean over all transitions, and std {std!r} is that of each "
            "one: use std 'joint' (the group's) or 'pooled' (the batch's)"
        )
