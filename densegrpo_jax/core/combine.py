"""One advantage out of several rewards."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import ArrayLike, Float

from densegrpo_jax.core.advantages import (
    Advantages,
    advantage_values,
    group_advantages,
    group_statistics,
)

COMBINATIONS = ('sum', 'normalised', 'advantages')


def combined_advantages(
    step_rewards: Mapping[str, Float[ArrayLike, 'T B']],
    weights: Mapping[str, float],
    num_groups: int,
    *,
    combine: str = 'sum',
    eps: float = 1e-4,
    clip: float | None = 5.0,
    **groups: Any,
) -> Advantages:
    """Advantages of rewards r_i with weights w_i, separately for each transition (or over all, with
    std='pooled').

    With A(r) = (r - group mean) / (std + eps) of `group_advantages`, and std_i the std of r_i in
    the scope `std`,

        sum         A(sum_i w_i r_i)                  (Flow-GRPO)
        normalised  A(sum_i w_i r_i / (std_i + eps))
        advantages  sum_i w_i A(r_i)                  (MixGRPO)

    each finally clipped to [-clip, clip]. In 'sum' a reward counts in proportion to its spread. In
    the other two rewards count by their weights alone; 'normalised' has the size of a single
    reward's advantages, 'advantages' the size of the weights. 'advantages' is not normalised again:
    with std='group' that would give 'normalised', and dividing by its std over the batch would give
    GDPO (arXiv 2601.05242). Weights that sum to 1 keep it at the size of a single reward's. If all
    rewards hardly differ within a group (std near eps), 'normalised' amplifies what eps suppresses
    in the other two.

    With a single reward of weight 1, 'sum' and 'advantages' equal `group_advantages` bit for bit,
    and 'normalised' does up to rounding at eps = 0. With a weight w > 0, 'sum' and 'normalised' do
    not change (up to eps), and 'advantages' is w times as large before clipping.

    Args:
        step_rewards: name -> per-transition rewards of `dense_reward`.
        weights: name -> number for each of them. A reward of weight 0 takes no part.
        num_groups: P, static.
        combine: one of COMBINATIONS, static.
        eps, clip: see `group_advantages`.
        groups: std, centre, group_ids, steps, valid and min_spread of `group_advantages`.

    Returns:
        Advantages; zero_spread counts groups whose weighted sums are equal, for 'advantages' groups
        in which each reward's values are equal.

    Raises:
        ValueError: unknown `combine`, or no reward of non-zero weight.
    """
    if combine not in COMBINATIONS:
        raise ValueError(f'combine is {combine!r}; expected one of {COMBINATIONS}')
    parts = [(weights[name], jnp.asarray(r)) for name, r in step_rewards.items() if weights[name]]
    if not parts:
        raise ValueError(f'no reward of non-zero weight among {list(step_rewards)}')
    if combine == 'sum':
        return group_advantages(_weighted(parts), num_groups, eps=eps, clip=clip, **groups)
    stats = [(weight, group_statistics(r, num_groups, **groups)) for weight, r in parts]
    if combine == 'normalised':
        return group_advantages(
            _weighted((w, _normalised(s, eps)) for w, s in stats),
            num_groups,
            eps=eps,
            clip=clip,
            **groups,
        )
    values = _weighted((w, advantage_values(s, eps)) for w, s in stats)
    if clip is not None:
        values = jnp.clip(values, -clip, clip)
    flat = jnp.stack([s.flat & s.occupied for _, s in stats]).all(0)
    return Advantages(values, flat.sum(1, dtype=jnp.int32))


def _weighted(parts):
    return sum(weight * values for weight, values in parts)


def _normalised(stats, eps):
    """Rewards in units of their std. They are centred first, and flat groups set exactly flat: a
    tiny std would amplify their rounding.
    """
    rewards = jnp.where(stats.flat[:, stats.group_ids], stats.mean, stats.rewards)
    scale = stats.std + eps
    return jnp.where(
        stats.used & (scale > 0), (rewards - stats.centre) / jnp.where(scale > 0, scale, 1), 0
    )
