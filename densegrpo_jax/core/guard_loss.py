"""GRPO-Guard's objective (arXiv 2510.22319): a ratio of one scale at all steps, so that one clip
range binds alike everywhere.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float

from densegrpo_jax.core.grpo_loss import LossSums
from densegrpo_jax.core.sde_step import StepOutput


def guard_log_ratio(step: StepOutput, mean_old: Float[ArrayLike, 'M *latent']) -> Float[Array, 'M']:
    """log r' = std (log r + mean(d^2) / (2 std^2)) = mean(z d), averaged over elements, with d =
    mean - mean_old and z = (x' - mean_old) / std.

    The log-ratio of two Gaussians of equal std has a mean below 0, of the size of d^2 / std^2, and
    a spread of d / std, larger where the std is small: it is clipped mostly on one side, and at
    some steps. The second term removes the mean; with the factor std the spread is that of d.

    Args:
        step: StepOutput of `sde_step(..., sample=x')` under the current policy.
        mean_old: mean of the same transition under the policy that sampled x'. No gradient flows
            into it.

    Returns:
        float32; 0 where std is 0.
    """
    mean_old = jax.lax.stop_gradient(mean_old)
    axes = tuple(range(1, step.mean.ndim))
    product = jnp.mean((step.sample - mean_old) * (step.mean - mean_old), axes)
    return jnp.where(step.std > 0, product / jnp.where(step.std > 0, step.std, 1), 0)


def guard_loss(
    step: StepOutput,
    mean_old: Float[ArrayLike, 'M *latent'],
    s: Float[ArrayLike, 'M'],
    s_next: Float[ArrayLike, 'M'],
    advantage: Mapping[str, Float[ArrayLike, 'M']],
    *,
    mask: Bool[ArrayLike, 'M'],
    weight: Float[ArrayLike, 'M'],
    clip_range: float,
) -> LossSums:
    """The clipped surrogate of r' = exp(`guard_log_ratio`), a step divided by the length of its
    part of the grid:

        sum w / (s - s_next) max(-r' A, -clip(r', 1 - e, 1 + e) A)

    While the policy is the one that sampled, r' is 1 and the gradient is that of `grpo_loss` with
    the step weights w std / (s - s_next), for the sde kernel w sigma / sqrt(s - s_next).

    Args:
        step, mean_old: as in `guard_log_ratio`.
        s, s_next: noise levels of x and x'.
        advantage: by name; each has its own surrogate.
        mask: False leaves the transition out of sums and count. So does std = 0.
        weight: step weights w; they scale the summands, not the count.
        clip_range: e of r'.

    Returns:
        LossSums of float32 scalars. Deviations and clipping are of r'; log_ratio_square_sum is of
        the plain log r.
    """
    mask = jnp.asarray(mask) & (step.std > 0)
    log_ratio = jnp.where(mask, guard_log_ratio(step, mean_old), 0)
    # r' - 1: next to 1, float32 would round off a twentieth of a clip range of 2e-6.
    excess = jnp.expm1(log_ratio)
    clipped = jnp.clip(excess, -clip_range, clip_range)
    scale = jnp.where(mask, weight / (jnp.asarray(s) - s_next), 0)

    def surrogate_of(a):
        a = jnp.where(mask, jax.lax.stop_gradient(a), 0)
        return scale * (jnp.maximum(-excess * a, -clipped * a) - a)

    surrogate = functools.reduce(jnp.add, [surrogate_of(a) for a in advantage.values()])
    deviation = jnp.abs(jax.lax.stop_gradient(excess))
    axes = tuple(range(1, step.mean.ndim))
    safe_std = jnp.where(step.std > 0, step.std, 1)
    bias = jnp.mean((step.mean - mean_old) ** 2, axes) / (2 * safe_std**2)
    plain = jnp.where(mask, log_ratio / safe_std - bias, 0)
    return LossSums.of_ratios(mask, deviation, plain)._replace(
        policy_sum=surrogate.sum(),
        clip_sum=(deviation > clip_range).astype(deviation.dtype).sum(),
        clip_low_sum=(jax.lax.stop_gradient(excess) < -clip_range).astype(deviation.dtype).sum(),
    )
