"""Dense reward difference: the objective of SDPO (arXiv 2411.11727), which compares the samples of
a group in pairs.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from densegrpo_jax.core.grpo_loss import LossSums
from densegrpo_jax.core.lists import list_sum
from densegrpo_jax.core.sde_step import StepOutput, log_prob_ratio

PAIRS = ('all', 'neighbours')


def pair_terms(
    log_ratio: Float[ArrayLike, 'M'],
    advantage: Float[ArrayLike, 'M'],
    weight: Float[ArrayLike, 'M'],
    ids: Int[ArrayLike, 'M'],
    used: Bool[ArrayLike, 'M'],
    *,
    clip_range: float,
    pairs: str,
) -> Float[Array, 'M']:
    """Terms of n times the mean over the pairs i, j of every list with n members in use, of

        max{ (w (l_i - l_j) - (A_i - A_j))^2, (w (c_i - c_j) - (A_i - A_j))^2 },   c = clip(l, +-e)

    l is a mean over elements, of the order of 1e-4, and cannot fit a difference of advantages of
    order 1: the square acts as a policy gradient. At l = 0 that of 'all' is 4 n / (n - 1) times
    that of `grpo_loss` with the weights w and the advantages A - (their mean over the list); with
    A_2 = -A_1 that of a single pair is 8 times.

    Args:
        log_ratio: l of policy and sampler. advantage: A. weight: w, equal within a list.
        ids: the list of each row, `lists.list_ids`.
        used: False leaves the row out of its list's pairs; its other values may be NaN.
        clip_range: e.
        pairs: 'all' of a list, or 'neighbours' 2i, 2i + 1, for lists of an even length.

    Returns:
        [M], 0 in lists without a pair.

    Raises:
        ValueError: unknown `pairs`.
    """
    if pairs not in PAIRS:
        raise ValueError(f'pairs is {pairs!r}; expected one of {PAIRS}')
    ids, used = jnp.asarray(ids), jnp.asarray(used)
    place = jnp.arange(len(ids))
    alike = ids if pairs == 'all' else place // 2
    paired = used & used[:, None] & (alike == alike[:, None]) & (place != place[:, None])
    a = jnp.where(used, jax.lax.stop_gradient(jnp.asarray(advantage)), 0)
    moved, weight = jnp.where(used, log_ratio, 0), jnp.where(used, weight, 0)
    held = jnp.clip(moved, -clip_range, clip_range)
    difference = lambda v: v[:, None] - v
    square = lambda log_r: (difference(weight * log_r) - difference(a)) ** 2
    each = jnp.where(paired, jnp.maximum(square(moved), square(held)), 0).sum(1)
    count = list_sum(paired.sum(1).astype(each.dtype), ids)
    members = list_sum(used.astype(each.dtype), ids)
    return each * members / jnp.maximum(count, 1)


def pair_loss(
    step: StepOutput,
    log_prob_old: Float[ArrayLike, 'M'],
    advantage: Mapping[str, Float[ArrayLike, 'M']],
    ids: Int[ArrayLike, 'M'],
    *,
    mask: Bool[ArrayLike, 'M'],
    weight: Float[ArrayLike, 'M'],
    clip_range: float,
    pairs: str,
    log_prob: str = 'gaussian',
) -> LossSums:
    """`pair_terms` of transitions.

    Args:
        step: StepOutput of `sde_step(v, x, ..., sample=x_next)` under the current policy.
        log_prob_old: as the sampler stored it.
        advantage: by name; the losses of several are added.
        ids: the list of each row.
        mask: False leaves a sample out of pairs and count.
        weight: step weights w, inside the square.
        clip_range: of log-ratios. log_prob: as given to `sde_step`.

    Returns:
        LossSums; a clipped transition is one with |log r| > clip_range.
    """
    mask = jnp.asarray(mask) & (step.std > 0)
    log_ratio = jnp.where(mask, log_prob_ratio(step, log_prob_old, log_prob=log_prob), 0)
    terms = [
        pair_terms(log_ratio, a, weight, ids, mask, clip_range=clip_range, pairs=pairs)
        for a in advantage.values()
    ]
    still = jax.lax.stop_gradient(log_ratio)
    return LossSums.of_ratios(mask, jnp.abs(jnp.expm1(log_ratio)), log_ratio)._replace(
        policy_sum=jnp.stack(terms).sum(),
        clip_sum=(jnp.abs(still) > clip_range).astype(still.dtype).sum(),
        clip_low_sum=(still < -clip_range).astype(still.dtype).sum(),
    )
