"""The policy: one stochastic denoising step, the same function for sampling and for re-scoring."""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Shaped

from densegrpo_jax.core.kernels import Kernel, as_kernel

LOG_PROBS = ('gaussian', 'unscaled')

PerSample = Float[ArrayLike, 'B'] | Float[ArrayLike, '']  # a number for each sample, or for all


class StepOutput(NamedTuple):
    """One transition x -> sample. If std is 0 the transition is deterministic and log_prob is 0."""

    sample: Float[Array, 'B *latent']  # x' = mean + shift + std * noise
    mean: Float[Array, 'B *latent']
    std: Float[Array, 'B']
    log_prob: Float[Array, 'B']  # averaged (not summed) over the elements


def sde_step(
    velocity: Float[ArrayLike, 'B *latent'],
    x: Float[ArrayLike, 'B *latent'],
    s: PerSample,
    s_next: PerSample,
    noise_level: PerSample,
    *,
    noise: Float[ArrayLike, 'B *latent'] | None = None,
    sample: Float[ArrayLike, 'B *latent'] | None = None,
    kernel: str | Kernel = 'sde',
    log_prob: str = 'gaussian',
    shift: Float[ArrayLike, 'B *latent'] | None = None,
) -> StepOutput:
    """Samples one transition (give `noise`) or re-scores a stored one (give `sample`).

    With D = s_next - s < 0 and the predicted noise end x1hat = x + (1 - s) v, every kernel is the
    Euler step, minus part of x1hat, plus fresh noise:

        mean = x + D v - c x1hat,    x' = mean + shift + std z
        sde: std = sigma sqrt(-D),           c = std^2 / (2 s)
        cps: std = s_next sin(eta pi / 2),   c = s_next (1 - cos(eta pi / 2))
        ode: std = 0,                        c = 0

    sde is DenseGRPO Eq. 6 (Flow-GRPO), and Eq. 11 with a table psi. cps is coefficients-preserving
    sampling, arXiv 2509.05952. Nothing here is singular at s = 1; Flow-GRPO's table is (see
    `flow_grpo_noise_levels`).

    Args:
        velocity: [B, ...] network output v = eps - x_0 at (x, s).
        x: [B, ...] current latent.
        s, s_next: [B] or scalar, noise levels of the grid, s > s_next.
        noise_level: [B] or scalar; sigma of the `sde` kernel, eta in [0, 1] of `cps`, ignored by
            `ode`.
        noise: [B, ...] standard normal z.
        sample: [B, ...] a stored x' to re-score.
        kernel: 'sde', 'cps', 'ode' or a `Kernel`.
        log_prob: 'gaussian', the log density; or 'unscaled', -mean (x' - mean)^2 (the CPS paper's
            code).
        shift: [B, ...] optional guided drift, added when sampling; it never enters the log-prob.

    Returns:
        StepOutput, float32.

    Raises:
        ValueError: unknown kernel or log_prob, or not exactly one of noise and sample.
    """
    given = noise if sample is None else sample
    if given is None or (noise is not None and sample is not None):
        raise ValueError('sde_step needs exactly one of noise (to sample) and sample (to re-score)')
    if sample is not None and shift is not None:
        raise ValueError('shift applies to sampling only: a re-scored sample already contains it')
    velocity, x = at_least_f32(velocity), at_least_f32(x)
    if x.shape != velocity.shape:
        raise ValueError(f'velocity has shape {velocity.shape} and x {x.shape}; they must agree')
    s, s_next, noise_level = (
        jnp.broadcast_to(at_least_f32(a), x.shape[:1]) for a in (s, s_next, noise_level)
    )

    std, taken = as_kernel(kernel).coefficients(s, s_next, noise_level)
    mean = x + over(s_next - s, x) * velocity - over(taken, x) * (x + over(1 - s, x) * velocity)
    x_next = at_least_f32(given)
    if sample is None:
        centre = mean if shift is None else mean + shift
        x_next = centre + over(std, x) * x_next
    element_mean, constant = _log_prob_parts(x_next, mean, std, log_prob)
    return StepOutput(x_next, mean, std, jnp.where(std > 0, element_mean + constant, 0.0))


def guided_shift(
    guided: Float[ArrayLike, 'B *latent'],
    velocity: Float[ArrayLike, 'B *latent'],
    x: Float[ArrayLike, 'B *latent'],
    s: PerSample,
    s_next: PerSample,
    noise_level: PerSample,
    *,
    kernel: str | Kernel = 'sde',
) -> Float[Array, 'B *latent']:
    """The `shift` that moves the mean of `sde_step(velocity, ...)` to that of `guided`: (D - c
    (1 - s)) (guided - velocity).

    With it the sampler follows a guided velocity, while the policy, whose log-prob is stored,
    remains the plain network. Arguments as in `sde_step`. The result is at least float32.
    """
    guided, velocity, x = at_least_f32(guided), at_least_f32(velocity), at_least_f32(x)
    s, s_next, noise_level = (
        jnp.broadcast_to(at_least_f32(a), x.shape[:1]) for a in (s, s_next, noise_level)
    )
    _, taken = as_kernel(kernel).coefficients(s, s_next, noise_level)
    return over(s_next - s - taken * (1 - s), x) * (guided - velocity)


def step_std(
    s: Float[ArrayLike, 'B'],
    s_next: Float[ArrayLike, 'B'],
    noise_level: Float[ArrayLike, 'B'],
    *,
    kernel: str | Kernel = 'sde',
) -> Float[Array, 'B']:
    """The standard deviation of a step's noise, before the step is made. Arguments as in
    `sde_step`.
    """
    given = (at_least_f32(a) for a in (s, s_next, noise_level))
    return as_kernel(kernel).coefficients(*given)[0]


def log_prob_ratio(
    step: StepOutput, log_prob_old: Float[ArrayLike, 'B'], *, log_prob: str = 'gaussian'
) -> Float[Array, 'B']:
    """log p(x') - log p_old(x') of a re-scored transition, with x' and p_old's value as the sampler
    stored them.

    One expression over the residuals: the constants of the density are removed from the stored
    value before the subtraction. Both terms are then small, and float32 round-off stays near 1e-7
    however many elements a latent has.

    Args:
        step: StepOutput of `sde_step(..., sample=x')` under the current policy.
        log_prob_old: [B] the sampler's StepOutput.log_prob.
        log_prob: as given to both calls of `sde_step`.

    Returns:
        [B] log ratio; 0 where std is 0.
    """
    element_mean, constant = _log_prob_parts(step.sample, step.mean, step.std, log_prob)
    return jnp.where(step.std > 0, element_mean - (log_prob_old - constant), 0.0)


def _log_prob_parts(sample, mean, std, log_prob):
    """(varying part [B], constant [B]) whose sum is the log-prob.

    The squared residual is centred on its expectation before the mean over elements: a sum of
    zero-mean terms keeps float32 round-off near eps in any order of addition, a sum of n positive
    terms does not.
    """
    axes = tuple(range(1, sample.ndim))
    safe_std = jnp.where(std > 0, std, 1)
    if log_prob == 'gaussian':
        z = (sample - mean) / over(safe_std, sample)
        return -0.5 * jnp.mean(z**2 - 1, axes), -0.5 - jnp.log(safe_std) - 0.5 * math.log(
            2 * math.pi
        )
    if log_prob == 'unscaled':
        variance = safe_std**2
        return -jnp.mean((sample - mean) ** 2 - over(variance, sample), axes), -variance
    raise ValueError(f'unknown log_prob {log_prob!r}; expected one of {LOG_PROBS}')


def over(per_sample: Shaped[Any, 'B'], x: Shaped[Any, 'B *rest']) -> Shaped[Any, 'B *ones']:
    """A number for each sample as [B, 1, ...], which broadcasts against x [B, ...]."""
    return per_sample.reshape(-1, *(1,) * (x.ndim - 1))


def at_least_f32(a: ArrayLike) -> Array:
    """An array in float32, or in its own dtype if that is wider: arithmetic on latents is never in
    bfloat16.
    """
    a = jnp.asarray(a)
    return a.astype(jnp.promote_types(a.dtype, jnp.float32))
