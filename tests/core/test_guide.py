"""Guided exploration: the drift and what it leaves untouched, differences instead of gradients, the
process reward's credit. Closed forms, hand tables, and Euphonium's step in NumPy.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densegrpo_jax.core.branch_plan import branch_plan
from densegrpo_jax.core.grpo_loss import grpo_loss
from densegrpo_jax.core.guide import (
    Guide,
    clip_norm,
    process_credit,
    process_states,
    reward_shift,
    spsa,
)
from densegrpo_jax.core.masks import step_masks
from densegrpo_jax.core.rollout import run_plan
from densegrpo_jax.core.rollout_plan import trajectory_plan
from densegrpo_jax.core.sde_step import sde_step
from tests.core.gaussian import velocity as gaussian_velocity

GRID = np.array([1.0, 0.9, 0.75, 0.5, 0.2, 0.0], np.float32)
T, B = len(GRID) - 1, 4
LEVELS = np.full(T, 0.5, np.float32)
RNG = np.random.default_rng(0)
WEIGHTS = RNG.standard_normal((5, 5)).astype(np.float32) / 2
X_INIT = RNG.standard_normal((B, 3, 5)).astype(np.float32)
NOISE = RNG.standard_normal((T, B, 3, 5)).astype(np.float32)
TARGET = RNG.standard_normal((3, 5)).astype(np.float32)
MASKS = step_masks(GRID)
PLAN = trajectory_plan(MASKS)
ALPHA = 0.5


def velocity(x, s):
    return jnp.tanh(x @ WEIGHTS) + s[:, None, None]


def reward(x, s):
    """Quadratic in x, and it depends on s."""
    return -0.5 * jnp.sum((x - TARGET) ** 2, (1, 2)) + 3 * s


def with_gradient(x, s, k, v):
    score, pull_back = jax.vjp(lambda x: reward(x, s), x)
    return score, pull_back(jnp.ones_like(score))[0]


def shift(gradient, std, s, s_next):
    return reward_shift(gradient, std, ALPHA)


GUIDED = Guide(
    with_gradient, shift, (2, 3), states=(2, 3, 4, 5), score=lambda x, x0hat, s: reward(x, s)
)


def rollout(guide=None, velocity_fn=velocity, **options):
    noise = lambda k: jnp.asarray(NOISE)[k]
    options |= {'guide': guide}
    run = lambda first: run_plan(velocity_fn, first, GRID, LEVELS, PLAN, noise, **options)
    return jax.jit(run)(X_INIT)


def test_the_drift_is_the_variance_times_the_gradient():
    gradient = np.array([[1.0, -2.0], [0.5, 0.0]], np.float32)
    found = reward_shift(gradient, np.float32([0.1, 2.0]), 4.0)
    np.testing.assert_allclose(found, [[0.0025, -0.005], [0.5, 0.0]], rtol=1e-6)
    # lambda Delta grad r with lambda = eta^2 / (2 beta), as published: 0.25^2 / 6.25 = 0.01
    std = np.float32(0.25 * np.sqrt([0.3, 0.1]))
    published = 0.01 * np.array([[0.3], [0.1]]) * gradient
    np.testing.assert_allclose(reward_shift(gradient, std, 2 * 3.125), published, rtol=1e-6)


def test_gradients_are_limited_and_normalised_sample_by_sample():
    given = np.array([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]], np.float32)  # of sizes 5, .5, 0 / sqrt 2
    limit = 1 / math.sqrt(2)
    np.testing.assert_allclose(clip_norm(given, limit), [[0.6, 0.8], [0.3, 0.4], [0, 0]], rtol=1e-6)
    found = clip_norm(given, limit, normalise=True)
    np.testing.assert_allclose(found, [[0.6, 0.8], [0.6, 0.8], [0, 0]], rtol=1e-6)


def test_differences_are_unbiased_for_a_linear_reward_with_the_variance_of_theory():
    d, n, many = 6, 3, 20_000
    g = np.arange(1, d + 1, dtype=np.float32)
    directions = jax.random.normal(jax.random.key(0), (n, many, d))
    found = np.asarray(spsa(lambda x: x @ g, jnp.zeros((many, d)), directions, 0.1))
    variance = (d + 1) * (g @ g) / n
    np.testing.assert_allclose(found.mean(0), g, atol=4 * math.sqrt(variance / many))
    spread = ((found - g) ** 2).sum(1)
    assert abs(spread.mean() - variance) < 4 * spread.std() / math.sqrt(many)


def test_a_difference_of_a_quadratic_reward_is_its_slope_whatever_the_step_is():
    curve = RNG.standard_normal((4, 4)).astype(np.float32)
    curve = curve + curve.T
    quadratic = lambda x: 0.5 * jnp.einsum('bi,ij,bj->b', x, curve, x) + x[:, 0]
    x, u = RNG.standard_normal((2, 3, 4)).astype(np.float32)
    gradient = x @ curve + np.eye(4)[0]
    expected = (u * gradient).sum(1, keepdims=True) * u
    for h in (0.5, 2.0):
        np.testing.assert_allclose(spsa(quadratic, x, u[None], h), expected, rtol=2e-4, atol=1e-4)


def test_process_credit_by_hand():
    r = np.array([[0.0, 1.0], [0.5, 0.8], [0.6, 1.4]], np.float32)
    np.testing.assert_allclose(process_credit(r, 'before'), r[:2])
    np.testing.assert_allclose(process_credit(r, 'after'), r[1:])
    np.testing.assert_allclose(process_credit(r, 'gain'), [[0.5, -0.2], [0.1, 0.6]], atol=1e-6)
    assert process_states((2, 4), 'gain') == (2, 3, 4, 5)
    assert [process_states((1, 2), of) for of in ('none', 'before', 'after')] == [
        (),
        (1, 2),
        (2, 3),
    ]
    with pytest.raises(ValueError, match="expected one of .*'before', 'after', 'gain'"):
        process_credit(r, 'later')


def test_the_drift_moves_samples_and_neither_mean_nor_log_prob():
    """Euphonium's step in float64, its mean and log-probability without the drift."""
    found = rollout(GUIDED, keep_means=True)
    for k in range(T - 1):
        x = np.asarray(found.latents[k], np.float64)
        s, s_next = float(GRID[k]), float(GRID[k + 1])
        v = np.asarray(velocity(jnp.asarray(x, jnp.float32), jnp.full(B, s, jnp.float32)), float)
        delta, eta = s - s_next, 0.5
        std = eta * math.sqrt(delta)
        score = -(x - (x - s * v) * (1 - s)) / s**2
        mean = x - delta * v + 0.5 * eta**2 * score * delta
        moved = eta**2 / ALPHA * delta * (TARGET - x) if k in (2, 3) else np.zeros_like(x)
        x_next = mean + moved + std * NOISE[k]
        np.testing.assert_allclose(found.latents[k + 1], x_next, atol=1e-5)
        np.testing.assert_allclose(found.mean[k], mean, atol=1e-5)
        log_prob = -((x_next - mean) ** 2) / (2 * std**2) - math.log(std * math.sqrt(2 * math.pi))
        np.testing.assert_allclose(found.log_prob[k], log_prob.mean((1, 2)), atol=1e-5)
        size = np.sqrt((moved**2).mean((1, 2))) / std
        np.testing.assert_allclose(found.drift[k], size, rtol=1e-4, atol=1e-7)
        # given x', the log-prob is that of any rollout: it does not depend on the drift
        at = (found.s[k], found.s_next[k], found.noise_level[k])
        again = jax.jit(sde_step)(
            velocity(found.latents[k], found.s[k]),
            found.latents[k],
            *at,
            sample=found.latents[k + 1],
        )
        np.testing.assert_allclose(again.log_prob, found.log_prob[k], atol=1e-6)
    assert not np.asarray(found.drift[:2]).any() and (np.asarray(found.drift[2:4]) > 0.1).all()


def test_states_are_scored_on_the_way_or_afterwards():
    found = rollout(GUIDED)
    for k in range(T + 1):
        expected = reward(found.latents[k], np.full(B, GRID[k])) if k >= 2 else np.zeros(B)
        np.testing.assert_allclose(found.process[k], expected, rtol=1e-5, atol=1e-5)
    assert GUIDED.scored_on_the_way == (2, 3) and GUIDED.scored_after == (4, 5)
    # by the prediction x0hat = x - s v, and the sample itself at the end; without any drift
    predicted = dataclasses.replace(
        GUIDED, steps=(), states=(1, 5), score=lambda x, x0hat, s: x0hat.sum((1, 2)) + 0 * s
    )
    plain, scored = rollout(), rollout(predicted)
    np.testing.assert_array_equal(scored.latents, plain.latents)
    x = plain.latents[1]
    expected = (x - GRID[1] * velocity(x, jnp.full(B, GRID[1]))).sum((1, 2))
    np.testing.assert_allclose(scored.process[1], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(scored.process[5], plain.latents[5].sum((1, 2)), rtol=1e-5)
    assert not np.asarray(scored.drift).any()


def test_a_drift_of_zero_moves_nothing():
    """To rounding: they are two programs."""
    still = dataclasses.replace(GUIDED, shift=lambda gradient, *_: 0 * gradient)
    plain, found = (jax.jit(lambda g=g: rollout(g))() for g in (None, still))
    np.testing.assert_allclose(found.latents, plain.latents, atol=1e-6)
    np.testing.assert_allclose(found.log_prob, plain.log_prob, atol=1e-6)


def test_a_guide_that_evaluates_the_network_itself_is_the_same():
    def evaluated(x, s, k):
        return velocity(x, s), *with_gradient(x, s, k, None)

    calls = []

    def counted(x, s):
        calls.append(1)
        return velocity(x, s)

    own = dataclasses.replace(GUIDED, fn=evaluated, evaluates=True)
    expected, found = rollout(GUIDED), rollout(own, counted)
    np.testing.assert_allclose(found.latents, expected.latents, atol=1e-6)
    np.testing.assert_allclose(found.process, expected.process, rtol=1e-5, atol=1e-5)
    assert len(calls) == 1  # traced once, for the jobs that do not drift


def test_what_is_evaluated_is_counted():
    """As it is executed: the network once a step, the process reward once a state."""
    found = dict.fromkeys(('network', 'gradient', 'score'), 0)

    def counted(name, fn):
        def count():
            found[name] += 1

        def counting(*args):
            jax.debug.callback(count)
            return fn(*args)

        return counting

    guide = dataclasses.replace(
        GUIDED, fn=counted('gradient', with_gradient), score=counted('score', GUIDED.score)
    )
    jax.block_until_ready(jax.jit(lambda: rollout(guide, counted('network', velocity)))())
    jax.effects_barrier()
    assert found == {'network': T, 'gradient': 2, 'score': 2}


def test_a_guided_pair_of_velocities_drifts_too():
    """Classifier-free guidance and the drift add up; the mean stays the policy's."""
    pair = lambda x, s: (velocity(x, s), 1.5 * velocity(x, s))
    alone, found = rollout(None, pair, keep_means=True), rollout(GUIDED, pair, keep_means=True)
    np.testing.assert_allclose(found.mean[:3], alone.mean[:3], atol=1e-6)  # up to the first drift
    std = 0.5 * math.sqrt(GRID[2] - GRID[3])
    moved = std**2 / ALPHA * (TARGET - alone.latents[2])
    np.testing.assert_allclose(found.latents[3] - alone.latents[3], moved, atol=1e-5)


def test_a_gradient_that_is_not_finite_drifts_nowhere():
    def broken(x, s, k, v):
        score, gradient = with_gradient(x, s, k, v)
        return score, gradient.at[1, 0, 0].set(jnp.nan)

    found = rollout(dataclasses.replace(GUIDED, fn=broken))
    assert np.isfinite(found.latents).all() and not np.asarray(found.drift[:, 1]).any()
    np.testing.assert_allclose(found.latents[:, 1], rollout().latents[:, 1], atol=1e-6)


def test_branches_do_not_drift():
    plan = branch_plan(T, (0, 1), (1, 2, 3, 4, 5), (1,), B)
    with pytest.raises(ValueError, match='only trajectories drift'):
        run_plan(
            velocity, X_INIT, GRID, LEVELS, plan, lambda k: jnp.asarray(NOISE)[k], guide=GUIDED
        )


def test_the_guided_marginal_of_gaussian_data_is_a_linear_recursion():
    """Affine steps and a quadratic reward, of which row i of the batch is the answer to unit noise
    i: with gain a - std^2 q / alpha at drifting steps.
    """
    grid = np.linspace(1, 0, 9).astype(np.float32)
    count, q, centre, alpha, eta = 8, 1.5, 0.8, 0.6, 0.7
    steps = (3, 4, 5, 6)
    noises = np.eye(count + 2, dtype=np.float32)[:, 1:, None]  # [row, noise, 1]; row 0 has none
    guide = Guide(
        lambda x, s, k, v: (jnp.zeros_like(s), -q * (x - centre)),
        lambda g, std, *_: reward_shift(g, std, alpha),
        steps,
        states=(),
        score=lambda x, x0hat, s: s,
    )
    masks = step_masks(grid)

    def run(guide):
        plan, noise = trajectory_plan(masks), lambda k: jnp.asarray(noises)[:, k + 1]
        given = grid, np.full(count, eta, np.float32), plan, noise
        of = lambda first: run_plan(gaussian_velocity, first, *given, guide=guide)
        return jax.jit(of)(noises[:, 0])

    found = run(guide)
    end = np.asarray(found.latents[-1], np.float64)[:, 0]
    mean, variance = end[0], ((end[1:] - end[0]) ** 2).sum()

    m, var = 0.0, 1.0
    for k in range(count):
        s, s_next = float(grid[k]), float(grid[k + 1])
        std = eta * math.sqrt(s - s_next) if masks.stochastic[k] else 0.0
        v0, v1 = (
            float(gaussian_velocity(np.array([[x]]), np.array([s]))[0, 0]) for x in (0.0, 1.0)
        )
        slope = v1 - v0
        c = std**2 / (2 * s)
        a = 1 - (s - s_next) * slope - c * (1 + (1 - s) * slope)
        b = -(s - s_next) * v0 - c * (1 - s) * v0
        gain = std**2 / alpha * q if k in steps else 0.0
        m = (a - gain) * m + b + gain * centre
        var = (a - gain) ** 2 * var + std**2
    np.testing.assert_allclose([mean, variance], [m, var], rtol=1e-4)
    plain = run(None)
    assert abs(mean - centre) < 0.8 * abs(float(plain.latents[-1][0, 0]) - centre)  # it was drawn


@jax.jit
def on_policy_gradient(x, moved, z, advantage):
    """d loss / d theta at theta = 1 of samples mean + moved + std z, by autodiff; and the mean's
    own derivative [M, ...], and std.
    """
    s, s_next, level = np.full(len(x), 0.8), np.full(len(x), 0.5), np.full(len(x), 0.5)

    def step(theta, **given):
        return sde_step(theta * jnp.tanh(x @ WEIGHTS), x, s, s_next, level, **given)

    sampled = step(1.0, noise=z, shift=moved)

    def loss(theta):
        again = step(theta, sample=sampled.sample)
        sums = grpo_loss(
            again, sampled.log_prob, advantage, mask=np.ones(len(x), bool), clip_range=1e-2
        )
        return sums.policy_sum

    slope = jax.jvp(lambda theta: step(theta, sample=sampled.sample).mean, (1.0,), (1.0,))[1]
    return jax.grad(loss)(1.0), slope, sampled.std[:, None, None]


def test_on_policy_the_update_learns_from_noise_and_drift():
    with jax.enable_x64(True):
        x, z, moved = RNG.standard_normal((3, 6, 3, 5))
        moved = 0.1 * moved
        advantage = RNG.standard_normal(6)
        gradient, slope, std = on_policy_gradient(x, moved, z, advantage)
        by_hand = -(advantage * ((z + moved / std) * slope / std).mean((1, 2))).sum()
        np.testing.assert_allclose(gradient, by_hand, rtol=1e-10)
        without, *_ = on_policy_gradient(x, 0 * moved, z, advantage)
        assert abs(float(gradient - without)) > 1e-3


def test_siblings_of_one_state_that_drift_alike_learn_nothing_from_it():
    with jax.enable_x64(True):
        x, moved = (np.repeat(a[None], 4, 0) for a in RNG.standard_normal((2, 3, 5)))
        z = RNG.standard_normal((4, 3, 5))
        advantage = np.array([1.5, -0.5, 0.25, -1.25])
        together, *_ = on_policy_gradient(x, moved, z, advantage)
        without, *_ = on_policy_gradient(x, 0 * moved, z, advantage)
        np.testing.assert_allclose(together, without, rtol=1e-12)
        # a part of the group alone drifts: then its mean is learned
        part = np.where(np.arange(4)[:, None, None] < 2, moved, 0)
        some, *_ = on_policy_gradient(x, part, z, advantage)
        assert abs(float(some - without)) > 1e-3
