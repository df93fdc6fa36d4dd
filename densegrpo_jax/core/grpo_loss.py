"""The policy objective: clipped surrogate and KL to the reference, as sums with their counts
(DenseGRPO Eq. 3-4).
"""

import functools
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float

from densegrpo_jax.core.kernels import SIGMA, Kernel, as_kernel
from densegrpo_jax.core.sde_step import StepOutput, log_prob_ratio

KL_FORMS = ('gaussian', 'flow_grpo')


class LossSums(NamedTuple):
    """Sums over the transitions of a batch. Divide once, after merging batches: maxima merge by
    max, the rest add.
    """

    policy_sum: Float[Array, '']  # to minimise: sum of weight * max(-r A, -clip(r) A)
    policy_count: Float[Array, '']  # transitions in the loss, including groups of zero spread
    kl_sum: Float[Array, '']  # sum of KL(policy || reference); 0 without a reference
    kl_count: Float[Array, '']
    clip_sum: Float[Array, '']  # transitions with |r - 1| > clip_range
    clip_low_sum: Float[Array, '']  # those of them with r < 1
    ratio_deviation_sum: Float[Array, '']  # sum of |r - 1|
    ratio_deviation_max: Float[Array, '']  # largest |r - 1|
    log_ratio_square_sum: Float[Array, '']  # sum of (log r)^2, where log r is a mean over elements
    # Further metrics of a loss, by the names that it declares: sums over the policy_count rows, of
    # which the mean is reported, and maxima.
    sums: Mapping[str, Float[Array, '']] = {}
    maxima: Mapping[str, Float[Array, '']] = {}

    @classmethod
    def zeros(
        cls, dtype: Any = jnp.float32, sums: Iterable[str] = (), maxima: Iterable[str] = ()
    ) -> 'LossSums':
        """Of no row; `sums` and `maxima` are the names of further metrics."""
        zero = jnp.zeros((), dtype)
        plain = (zero,) * (len(cls._fields) - 2)
        return cls._make([*plain, dict.fromkeys(sums, zero), dict.fromkeys(maxima, zero)])

    @classmethod
    def of_ratios(
        cls, mask: Bool[Array, 'M'], deviation: Float[Array, 'M'], log_ratio: Float[Array, 'M']
    ) -> 'LossSums':
        """The count of M transitions and the sums of their ratios, without gradient; the others 0.

        Args:
            mask: the transitions that count.
            deviation: |r - 1|, 0 where masked. log_ratio: likewise.
        """
        deviation, log_ratio = jax.lax.stop_gradient((deviation, log_ratio))
        kept = mask.astype(deviation.dtype)
        return cls.zeros(deviation.dtype)._replace(
            policy_count=kept.sum(),
            ratio_deviation_sum=deviation.sum(),
            ratio_deviation_max=deviation.max(initial=0.0),
            log_ratio_square_sum=(log_ratio**2).sum(),
        )

    def merge(self, other: 'LossSums') -> 'LossSums':
        """The sums of two batches together."""
        merged = jax.tree.map(jnp.add, self, other)
        return merged._replace(
            ratio_deviation_max=jnp.maximum(self.ratio_deviation_max, other.ratio_deviation_max),
            maxima=jax.tree.map(jnp.maximum, self.maxima, other.maxima),
        )


def grpo_loss(
    step: StepOutput,
    log_prob_old: Float[ArrayLike, 'M'],
    advantage: Float[ArrayLike, 'M'] | Mapping[str, Float[ArrayLike, 'M']],
    *,
    mask: Bool[ArrayLike, 'M'],
    clip_range: float,
    weight: Float[ArrayLike, 'M'] | None = None,
    advantage_weights: Mapping[str, float] | None = None,
    mean_ref: Float[ArrayLike, 'M *latent'] | None = None,
    kl_form: str = 'gaussian',
    noise_level: Float[ArrayLike, 'M'] | Float[ArrayLike, ''] | None = None,
    kernel: str | Kernel = 'sde',
    log_prob: str = 'gaussian',
) -> LossSums:
    """Clipped surrogate of M transitions, and their KL to the reference policy.

        r = p(x' | x) / p_old(x' | x)
        policy = sum w max(-r A, -clip(r, 1 - e, 1 + e) A)
        kl = sum KL(p || p_ref)

    The loss of an update is policy_sum / policy_count + beta * kl_sum / kl_count, divided once over
    all its microbatches and devices. Both counts are sums of `mask` (kl_count only with a
    reference), so they are known before the gradient.

    Args:
        step: StepOutput of `sde_step(v, x, ..., sample=x_next)` under the policy to differentiate;
            [M, ...].
        log_prob_old: [M] as the sampler stored it.
        advantage: [M]; or several by name, name -> [M], each with its own surrogate.
        mask: bool [M]; False leaves the transition out of sums and counts. So does std = 0. Its x
            must still be finite, which `transitions` ensures: a network's backward pass multiplies
            the gradient 0 by it.
        clip_range: e.
        weight: optional [M] step weights; they scale the summands, not the count.
        advantage_weights: name -> number, static, of several advantages; default 1 each.
        mean_ref: optional [M, ...] mean of the same transition under the reference; no gradient
            flows into it.
        kl_form, noise_level, kernel: see `kl_divergence`.
        log_prob: as given to `sde_step`.

    Returns:
        LossSums of float32 scalars.
    """
    mask = jnp.asarray(mask) & (step.std > 0)
    # Masked entries are replaced before and after the exponential: a NaN there would reach the
    # gradient.
    log_ratio = jnp.where(mask, log_prob_ratio(step, log_prob_old, log_prob=log_prob), 0)
    ratio = jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1 - clip_range, 1 + clip_range)

    def surrogate_of(advantage):
        advantage = jnp.where(mask, jax.lax.stop_gradient(advantage), 0)
        return jnp.maximum(-ratio * advantage, -clipped * advantage)

    named = advantage if isinstance(advantage, Mapping) else {'': advantage}
    shares = advantage_weights or dict.fromkeys(named, 1.0)
    surrogate = functools.reduce(
        jnp.add, [shares[name] * surrogate_of(a) for name, a in named.items()]
    )
    if weight is not None:
        surrogate = surrogate * jnp.where(mask, weight, 0)

    excess = jax.lax.stop_gradient(ratio) - 1
    count = lambda of: of.astype(surrogate.dtype).sum()
    sums = LossSums.of_ratios(mask, jnp.abs(excess), log_ratio)._replace(
        policy_sum=surrogate.sum(),
        clip_sum=count(jnp.abs(excess) > clip_range),
        clip_low_sum=count(excess < -clip_range),
    )
    if mean_ref is None:
        return sums
    options = {'form': kl_form, 'noise_level': noise_level, 'kernel': kernel}
    kl_sum, kl_count = kl_sums(step, mean_ref, mask, **options)
    return sums._replace(kl_sum=kl_sum, kl_count=kl_count)


def noise_weights(
    std: Float[ArrayLike, 'T'], trained: Bool[ArrayLike, 'T'], power: float
) -> Float[Array, 'T']:
    """Step weights: the std of a transition's noise to a power, scaled to a mean of 1 over the
    trained transitions.

        w_k = std_k^power / mean_j std_j^power

    power = 1 is the noise-aware weight of TempFlow-GRPO (arXiv 2508.04324), whose constants are 1
    over these means. A log-probability changes by 1 / std per unit of the mean. Without weights,
    late transitions, which add little noise and decide little, have the largest gradients.

    Args:
        std: [T] of the noise, 0 where a transition is deterministic. trained: bool [T]. power: 0
            gives equal weights.

    Returns:
        [T] float32; 0 where not trained.
    """
    trained = jnp.asarray(trained)
    raw = jnp.where(trained, jnp.where(trained, std, 1) ** power, 0)
    return raw * trained.sum() / raw.sum()


def kl_sums(
    step: StepOutput,
    mean_ref: Float[ArrayLike, 'M *latent'],
    mask: Bool[ArrayLike, 'M'],
    **options: Any,
) -> tuple[Float[Array, ''], Float[Array, '']]:
    """Sum and count of the KL to the reference over M transitions.

    Args:
        step, mean_ref, options: as in `kl_divergence`.
        mask: bool [M]; sum and count leave out masked transitions and those with std = 0.

    Returns:
        (sum, count), float scalars.
    """
    mask = jnp.asarray(mask) & (step.std > 0)
    kl = kl_divergence(step, mean_ref, **options)
    return jnp.where(mask, kl, 0).sum(), mask.astype(kl.dtype).sum()


def kl_divergence(
    step: StepOutput,
    mean_ref: Float[ArrayLike, 'M *latent'],
    *,
    form: str = 'gaussian',
    noise_level: Float[ArrayLike, 'M'] | Float[ArrayLike, ''] | None = None,
    kernel: str | Kernel = 'sde',
) -> Float[Array, 'M']:
    """KL between the policy's transition and the reference's, two Gaussians of the same std,
    averaged over elements.

        gaussian    mean (mean - mean_ref)^2 / (2 std^2)
        flow_grpo   mean (mean - mean_ref)^2 / (2 sigma^2)

    For the sde kernel std = sigma sqrt(-D). Flow-GRPO's code omits D, and its beta is tuned for
    that.

    Args:
        step: StepOutput. mean_ref: [M, ...].
        form: 'gaussian' or 'flow_grpo'. The second exists only for kernels whose noise level is
            SIGMA, such as the sde kernel, and needs noise_level [M] = sigma.

    Returns:
        [M]; 0 where std is 0.
    """
    if form == 'gaussian':
        scale = step.std
    elif form == 'flow_grpo':
        if as_kernel(kernel).level != SIGMA or noise_level is None:
            raise ValueError(
                f"kl_form 'flow_grpo' divides by the sde kernel's sigma; got kernel {kernel!r}, "
                f'noise_level {noise_level}'
            )
        scale = jnp.asarray(noise_level)
    else:
        raise ValueError(f'unknown kl_form {form!r}; expected one of {KL_FORMS}')
    difference = step.mean - jax.lax.stop_gradient(mean_ref)
    square = jnp.mean(difference**2, tuple(range(1, difference.ndim)))
    return jnp.where(step.std > 0, square / (2 * jnp.where(step.std > 0, scale, 1) ** 2), 0)
