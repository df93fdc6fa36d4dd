"""One advantage out of several rewards."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import ArrayLike, Float

from densegrpo_jax.core.advantages import Advantages, advantage_values, group_statistics

COMBINATIONS = ('sum', 'normalised', 'advantages')


def combined_advantages(
    sets: Sequence[Mapping[str, Float[ArrayLike, 'T B']]],
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

    added over the sets of these rewards (G^2RPO has one for each stride of the completions) and
    finally clipped to [-clip, clip]. In 'sum' a reward counts in proportion to its spread. In the
    other two rewards count by their weights alone; 'normalised' has the size of a single reward's
    advantages, 'advantages' the size of the weights. 'advantages' is not normalised again: with
    std='group' that would give 'normalised', and dividing by its std over the batch would give GDPO
    (arXiv 2601.05242). Weights that sum to 1 keep it at the size of a single reward's. If all
    rewards hardly differ within a group (std near eps), 'normalised' amplifies what eps suppresses
    in the other two.

    With one set of a single reward of weight 1, 'sum' and 'advantages' equal `group_advantages` bit
    for bit, and 'normalised' does up to rounding at eps = 0. With a weight w > 0, 'sum' and
    'normalised' do not change (up to eps), and 'advantages' is w times as large before clipping.

    Args:
        sets: at least one; name -> per-transition rewards of `dense_reward`.
        weights: name -> number for each of them. A reward of weight 0 takes no part.
        num_groups: P, static.
        combine: one of COMBINATIONS, static.
        eps, clip: see `group_advantages`.
        groups: std, centre, group_ids, steps and valid of `group_advantages`.

    Returns:
        Advantages; zero_spread counts groups whose weighted sums are equal in every set, for
        'advantages' groups in which each reward's values are equal.

    Raises:
        ValueError: unknown `combine`, or no reward of non-zero weight.
    """
    parts = [_unclipped(each, weights, num_groups, combine, eps, groups) for each in sets]
    values, flat = parts[0]
    for more, also_flat in parts[1:]:
        values, flat = values + more, flat & also_flat
    if clip is not None:
        values = jnp.clip(values, -clip, clip)
    return Advantages(values, flat.sum(1, dtype=jnp.int32))


def _unclipped(step_rewards, weights, num_groups, combine, eps, groups):
    """(advantages [T, B], bool [T, P]: the group has no spread)."""
    if combine not in COMBINATIONS:
        raise ValueError(f'combine is {combine!r}; expected one of {COMBINATIONS}')
    parts = [(weights[name], jnp.asarray(r)) for name, r in step_rewards.items() if weights[name]]
    if not parts:
        raise ValueError(f'no reward of non-zero weight among {list(step_rewards)}')
    if combine == 'sum':
        return _of_one(_weighted(parts), num_groups, eps, groups)
    stats = [(weight, group_statistics(r, num_groups, **groups)) for weight, r in parts]
    if combine == 'normalised':
        scaled = _weighted((w, _normalised(s, eps)) for w, s in stats)
        return _of_one(scaled, num_groups, eps, groups)
    values = _weighted((w, advantage_values(s, eps)) for w, s in stats)
    return values, jnp.stack([s.flat & s.occupied for _, s in stats]).all(0)


def _of_one(rewards, num_groups, eps, groups):
    stats = group_statistics(rewards, num_groups, **groups)
    return advantage_values(stats, eps), stats.flat & stats.occupied


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
