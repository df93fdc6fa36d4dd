"""One step: its density against scipy, its kernels against the formulas as published, sampling
against re-scoring.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from densegrpo_jax.core.kernels import KERNELS, SIGMA, Kernel
from densegrpo_jax.core.schedules import flow_grpo_noise_levels
from densegrpo_jax.core.sde_step import guided_shift, log_prob_ratio, sde_step
from tests.shapes import unchecked

S = np.array([1.0, 0.9, 0.5, 0.05], np.float32)
S_NEXT = np.array([0.9, 0.5, 0.05, 0.0], np.float32)


def arrays(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((len(S), *shape)).astype(np.float32) for _ in range(3)]


def published(kernel, v, x, s, s_next, level):
    """(mean, std) in float64 as the papers write them: Flow-GRPO's expanded form, CPS by predicted
    ends, Euler.
    """
    v, x = v.astype(np.float64), x.astype(np.float64)
    s, s_next = (a.astype(np.float64)[:, None, None] for a in (s, s_next))
    dt = s_next - s
    if kernel == 'sde':
        mean = x * (1 + level**2 / (2 * s) * dt) + v * (1 + level**2 * (1 - s) / (2 * s)) * dt
        return mean, level * np.sqrt(-dt)
    if kernel == 'cps':
        std = s_next * np.sin(level * np.pi / 2)
        return (1 - s_next) * (x - s * v) + np.sqrt(s_next**2 - std**2) * (x + (1 - s) * v), std
    return x + v * dt, np.zeros_like(s)


@pytest.mark.parametrize('kernel', ['sde', 'cps', 'ode'])
def test_mean_std_and_log_prob_match_the_published_formulas(kernel):
    v, x, z = arrays(5, 7)
    step = sde_step(v, x, S, S_NEXT, 0.7, noise=z, kernel=kernel)
    mean, std = published(kernel, v, x, S, S_NEXT, 0.7)
    np.testing.assert_allclose(step.mean, mean, atol=1e-6)
    np.testing.assert_allclose(step.std, std[:, 0, 0], atol=1e-7)
    np.testing.assert_allclose(step.sample, mean + std * z, atol=1e-6)
    assert all(a.dtype == jnp.float32 for a in step)
    for b in range(len(S)):
        if std[b] == 0:
            assert step.log_prob[b] == 0
        else:
            expected = stats.norm.logpdf(
                np.asarray(step.sample[b], np.float64), mean[b], std[b, 0, 0]
            ).mean()
            assert step.log_prob[b] == pytest.approx(expected, abs=2e-5 if std[b] < 0.05 else 2e-6)
    assert (np.asarray(step.std) == 0).tolist() == [kernel == 'ode'] * 3 + [kernel != 'sde']


@pytest.mark.parametrize('kernel', ['sde', 'cps'])
def test_zero_noise_is_the_euler_step(kernel):
    v, x, z = arrays(5, 7)
    step = sde_step(v, x, S, S_NEXT, 0.0, noise=z, kernel=kernel)
    euler = sde_step(v, x, S, S_NEXT, 0.3, noise=z, kernel='ode')
    np.testing.assert_array_equal(step.sample, euler.sample)
    np.testing.assert_array_equal(step.std, 0)
    np.testing.assert_array_equal(step.log_prob, 0)


def test_cps_keeps_the_noise_coefficient():
    """For a network whose predicted noise end is x itself, mean^2 coefficient + std^2 = s_next^2 at
    every eta.
    """
    eta = np.linspace(0, 1, 4).astype(np.float32)
    s_next = np.array([0.9, 0.5, 0.3, 0.05], np.float32)
    ones = np.ones((4, 1), np.float32)
    # x = 1 and v = 1 at s = 1 make x0hat = 0 and x1hat = 1, so the mean is the coefficient of the
    # noise end.
    step = sde_step(ones, ones, np.ones(4, np.float32), s_next, eta, noise=ones, kernel='cps')
    np.testing.assert_allclose(step.mean[:, 0] ** 2 + step.std**2, s_next**2, atol=1e-6)


def test_no_singularity_at_full_noise():
    v, x, z = arrays(6)
    grid = np.array([1.0, 0.9, 0.5, 0.05, 0.0], np.float32)
    step = sde_step(v, x, S, S_NEXT, flow_grpo_noise_levels(grid, 0.7), noise=z)
    assert all(np.isfinite(a).all() for a in step)


@pytest.mark.parametrize('log_prob', ['gaussian', 'unscaled'])
@pytest.mark.parametrize('kernel', ['sde', 'cps'])
def test_rescoring_a_sample_gives_its_log_prob(kernel, log_prob):
    v, x, z = arrays(64, 64)
    step = sde_step(v, x, S, S_NEXT, 0.7, noise=z, kernel=kernel, log_prob=log_prob)
    again = sde_step(v, x, S, S_NEXT, 0.7, sample=step.sample, kernel=kernel, log_prob=log_prob)
    np.testing.assert_array_equal(again.sample, step.sample)
    np.testing.assert_allclose(again.log_prob, step.log_prob, atol=1e-6)
    ratio = np.exp(log_prob_ratio(again, step.log_prob, log_prob=log_prob))
    assert np.abs(ratio - 1).max() <= 1e-6
    if log_prob == 'unscaled':
        expected = -np.mean((np.asarray(step.sample, np.float64) - step.mean) ** 2, axis=(1, 2))
        np.testing.assert_allclose(step.log_prob, np.where(step.std > 0, expected, 0), atol=1e-6)


def test_log_prob_is_exact_for_large_latents():
    """A million elements: the float32 mean stays within 3e-7 of float64, so ratios can be held to a
    1e-5 clip range.
    """
    rng = np.random.default_rng(1)
    v, x, z = (rng.standard_normal((1, 4096, 256)).astype(np.float32) for _ in range(3))
    step = sde_step(v, x, 0.7, 0.5, 0.8, noise=z)
    residual = np.asarray(step.sample, np.float64) - np.asarray(step.mean, np.float64)
    std = np.float64(step.std[0])
    expected = np.mean(-0.5 * (residual / std) ** 2) - np.log(std) - 0.5 * np.log(2 * np.pi)
    assert abs(float(step.log_prob[0]) - expected) < 3e-7


def test_log_ratio_of_a_small_change_is_resolved():
    """A policy change far below float32 resolution of the log-probs themselves still gives the
    right log-ratio.
    """
    v, x, z = arrays(64, 64)
    old = sde_step(v, x, S, S_NEXT, 0.7, noise=z)
    direction = np.random.default_rng(5).standard_normal(v.shape).astype(np.float32) + z
    changed = v + 1e-3 * direction
    log_ratio = log_prob_ratio(
        sde_step(changed, x, S, S_NEXT, 0.7, sample=old.sample), old.log_prob
    )
    mean_old, std = published('sde', v, x, S, S_NEXT, 0.7)
    mean_new, _ = published('sde', changed, x, S, S_NEXT, 0.7)
    sample = np.asarray(old.sample, np.float64)
    expected = np.mean(
        ((sample - mean_old) ** 2 - (sample - mean_new) ** 2) / (2 * std**2), axis=(1, 2)
    )
    assert np.abs(expected).min() > 1e-5
    np.testing.assert_allclose(log_ratio, expected, atol=5e-7)


def test_shift_moves_the_sample_but_not_the_density():
    v, x, z = arrays(6)
    shift = np.full_like(x, 0.25)
    plain = sde_step(v, x, S, S_NEXT, 0.7, noise=z)
    guided = sde_step(v, x, S, S_NEXT, 0.7, noise=z, shift=shift)
    np.testing.assert_array_equal(guided.mean, plain.mean)
    np.testing.assert_allclose(guided.sample, plain.sample + shift, atol=1e-6)
    rescored = sde_step(v, x, S, S_NEXT, 0.7, sample=guided.sample)
    np.testing.assert_array_equal(rescored.log_prob, guided.log_prob)
    assert np.abs(guided.log_prob - plain.log_prob).min() > 1e-3


def test_gradient_is_finite_where_std_is_zero():
    v, x, z = arrays(6)

    def total(v):
        return sde_step(v, x, S, S_NEXT, 0.5, sample=z, kernel='cps').log_prob.sum()

    gradient = jax.grad(total)(v)
    assert np.isfinite(gradient).all() and np.abs(gradient[0]).min() > 0
    np.testing.assert_array_equal(gradient[3], 0)


def test_half_precision_inputs_are_raised_to_float32():
    v, x, z = (jnp.asarray(a, jnp.bfloat16) for a in arrays(6))
    step = sde_step(v, x, S, S_NEXT, 0.7, noise=z)
    assert all(a.dtype == jnp.float32 for a in step)
    wide = sde_step(
        *(a.astype(jnp.float32) for a in (v, x)), S, S_NEXT, 0.7, noise=z.astype(jnp.float32)
    )
    np.testing.assert_array_equal(step.log_prob, wide.log_prob)


def test_a_kernel_of_ones_own():
    """Half the sde kernel's noise at the same level, with what that takes out."""

    def coefficients(s, s_next, noise_level):
        std = noise_level * jnp.sqrt(s - s_next) / 2
        return std, std**2 / (2 * s)

    v, x, z = arrays(2, 3)
    own = sde_step(v, x, S, S_NEXT, 0.7, noise=z, kernel=Kernel(coefficients))
    half = sde_step(v, x, S, S_NEXT, 0.35, noise=z, kernel='sde')
    for found, expected in zip(own, half):
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    guided = guided_shift(2 * v, v, x, S, S_NEXT, 0.7, kernel=Kernel(coefficients))
    np.testing.assert_allclose(
        guided, guided_shift(2 * v, v, x, S, S_NEXT, 0.35, kernel='sde'), rtol=1e-5
    )


@pytest.mark.parametrize('kernel', KERNELS.values(), ids=KERNELS)
def test_kernels_are_what_they_say(kernel):
    """No noise and nothing taken out at level 0; into s = 0 as declared."""
    s, s_next = jnp.float32([0.9, 0.4]), jnp.float32([0.4, 0.0])
    level = jnp.full(2, min(kernel.max_level, 0.7))
    for coefficient in kernel.coefficients(s, s_next, 0 * level):
        np.testing.assert_array_equal(coefficient, 0)
    std, _ = kernel.coefficients(s, s_next, level)
    assert (std > 0).tolist() == [kernel.noisy, kernel.noisy and kernel.noise_into_zero]
    if kernel.noisy and kernel.level == SIGMA:  # what the KL form 'flow_grpo' divides by
        np.testing.assert_allclose(std, level * jnp.sqrt(s - s_next), rtol=1e-6)


def test_bad_arguments():
    v, x, z = arrays(6)
    for extra in ({}, {'noise': z, 'sample': z}):
        with pytest.raises(ValueError, match='exactly one'):
            sde_step(v, x, S, S_NEXT, 0.7, **extra)
    with pytest.raises(ValueError, match='ddim'):
        sde_step(v, x, S, S_NEXT, 0.7, noise=z, kernel='ddim')
    with pytest.raises(ValueError, match='summed'):
        sde_step(v, x, S, S_NEXT, 0.7, noise=z, log_prob='summed')
    with pytest.raises(ValueError, match='shift'):
        sde_step(v, x, S, S_NEXT, 0.7, sample=z, shift=z)
    with pytest.raises(ValueError, match='shape'):
        unchecked(sde_step)(v[:, :3], x, S, S_NEXT, 0.7, noise=z)
