"""Closed forms on Gaussian data x_0 ~ N(m, tau^2), where the exact velocity is affine and every
answer is known.

With V(s) = (1 - s)^2 tau^2 + s^2 the marginal at s is N((1 - s) m, V), the ODE maps a quantile onto
the same quantile, and every step of the sampler is affine plus Gaussian noise, so its marginal
follows a two-number recursion exactly.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densegrpo_jax.core.masks import step_masks
from densegrpo_jax.core.ode_rollout import ode_rollout
from densegrpo_jax.core.rollout import run_plan
from densegrpo_jax.core.rollout_plan import trajectory_plan
from densegrpo_jax.core.schedules import constant_noise_levels, flow_grpo_noise_levels
from densegrpo_jax.core.sde_step import sde_step
from tests.core.gaussian import TAU, M, velocity


def uniform_grid(num_steps):
    return np.linspace(1, 0, num_steps + 1).astype(np.float32)


def moments(sigmas, levels, kernel='sde'):
    """Mean and variance at the end of the chain, from the affine coefficients of all steps (the
    batch axis is k).
    """

    @jax.jit
    def step(x):
        return sde_step(
            velocity(x, sigmas[:-1]),
            x,
            sigmas[:-1],
            sigmas[1:],
            levels,
            noise=jnp.zeros_like(x),
            kernel=kernel,
        )

    zero, one = (step(np.full((len(sigmas) - 1, 1), value, np.float32)) for value in (0, 1))
    offset = np.asarray(zero.mean, np.float64)[:, 0]
    slope = np.asarray(one.mean, np.float64)[:, 0] - offset
    mean, variance = 0.0, 1.0
    for a, b, std in zip(slope, offset, np.asarray(zero.std, np.float64)):
        mean, variance = a * mean + b, a**2 * variance + std**2
    return mean, variance


def measured_orders(errors):
    errors = np.abs(np.asarray(errors))
    return np.log2(errors[:-1] / errors[1:])


def test_ode_converges_to_the_exact_solution_at_order_one():
    x = np.linspace(-2, 2, 9, dtype=np.float32)[:, None]
    errors = [
        np.abs(ode_rollout(velocity, x, uniform_grid(n)) - (M + TAU * x)).max()
        for n in (16, 32, 64, 128)
    ]
    assert errors[-1] < 0.03
    np.testing.assert_allclose(measured_orders(errors), 1, atol=0.1)


def test_completion_from_the_middle_converges_to_the_exact_solution_at_order_one():
    x = np.linspace(-1, 1, 5, dtype=np.float32)[:, None]
    errors = []
    for n in (32, 64, 128):
        s = 0.5
        exact = M + TAU * (x - (1 - s) * M) / np.sqrt((1 - s) ** 2 * TAU**2 + s**2)
        errors.append(np.abs(ode_rollout(velocity, x, uniform_grid(n), n // 2) - exact).max())
    np.testing.assert_allclose(measured_orders(errors), 1, atol=0.1)


@pytest.mark.parametrize(
    'table',
    [
        lambda g: constant_noise_levels(g, 0.7),
        lambda g: 0.7 * np.sqrt(g[:-1]),
        lambda g: 0 * g[:-1],
    ],
)
def test_bounded_noise_tables_converge_at_order_one(table):
    ends = [moments(g, table(g)) for g in map(uniform_grid, (32, 64, 128, 256))]
    np.testing.assert_allclose([mean for mean, _ in ends], M, atol=1e-5)
    errors = [variance - TAU**2 for _, variance in ends]
    assert abs(errors[-1]) < 0.004
    np.testing.assert_allclose(measured_orders(errors), 1, atol=0.1)


def test_flow_grpo_table_follows_its_discrete_recursion_and_does_not_converge_at_order_one():
    a, errors = 0.7, []
    for num_steps in (32, 64, 128, 256):
        s = np.linspace(1, 0, num_steps + 1)
        mean, variance = 0.0, 1.0
        for k in range(num_steps):
            # Flow-GRPO as published, applied to v = p x + q.
            level = a * np.sqrt(s[k] / (1 - (s[1] if k == 0 else s[k])))
            marginal = (1 - s[k]) ** 2 * TAU**2 + s[k] ** 2
            p = (s[k] - (1 - s[k]) * TAU**2) / marginal
            q = -p * (1 - s[k]) * M - M
            dt = s[k + 1] - s[k]
            on_x = 1 + level**2 / (2 * s[k]) * dt
            on_v = (1 + level**2 * (1 - s[k]) / (2 * s[k])) * dt
            mean, variance = (
                (on_x + on_v * p) * mean + on_v * q,
                (on_x + on_v * p) ** 2 * variance + level**2 * -dt,
            )
        grid = uniform_grid(num_steps)
        np.testing.assert_allclose(
            moments(grid, flow_grpo_noise_levels(grid, a)), (mean, variance), atol=2e-5
        )
        errors.append(variance - TAU**2)
    assert np.all(np.abs(measured_orders(errors) - 1) > 0.4)


@pytest.mark.parametrize('kernel, level', [('sde', 0.7), ('cps', 0.8)])
def test_sampled_trajectories_have_the_moments_of_the_recursion(kernel, level):
    grid = uniform_grid(6)
    plan = trajectory_plan(step_masks(grid, train_end=True))
    levels = (
        flow_grpo_noise_levels(grid, level)
        if kernel == 'sde'
        else constant_noise_levels(grid, level)
    )
    shape, key = (100_000, 1), jax.random.key(0)
    x_init = jax.random.normal(jax.random.fold_in(key, 99), shape)

    def noise(k):
        return jax.random.normal(jax.random.fold_in(key, k), shape)

    run = jax.jit(
        lambda x: run_plan(velocity, x, grid, levels, plan, noise, kernel=kernel).latents[-1]
    )
    sample = np.asarray(run(x_init), np.float64)
    mean, variance = moments(grid, levels, kernel)
    assert abs(sample.mean() - mean) < 4 * np.sqrt(variance / len(sample))
    assert abs(sample.var() / variance - 1) < 4 * np.sqrt(2 / len(sample))
    assert jnp.isfinite(sample).all()
