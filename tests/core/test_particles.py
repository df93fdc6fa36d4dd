"""Particles: resampling by counts, hand tables and the reference's own loop, chains by the exact
Metropolis ratio.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from densegrpo_jax.core.particles import (
    SCHEMES,
    _ssp,
    ancestor_path,
    backward_log_weights,
    best_candidate,
    conditional_resample,
    ess,
    log_normalised,
    pcnl_log_accept,
    pcnl_proposal,
    proposal_log_ratio,
    renoise,
    resample,
)

WEIGHTS = np.array([0.05, 0.4, 0.0, 0.15, 0.3, 0.1])
LOGW = np.log(np.where(WEIGHTS > 0, WEIGHTS, 1), dtype=np.float32)
LOGW[WEIGHTS == 0] = -np.inf


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def counts(ancestors):
    """[N, K] -> how often each particle was chosen, [N, K]."""
    ancestors = np.asarray(ancestors)
    return np.stack([np.bincount(row, minlength=ancestors.shape[1]) for row in ancestors])


def test_weights_are_normalised_in_log_space():
    shifted = LOGW + np.float32(700)
    np.testing.assert_allclose(np.exp(log_normalised(shifted)), WEIGHTS, rtol=1e-4)
    np.testing.assert_allclose(ess(LOGW), 1 / np.sum(WEIGHTS**2), rtol=1e-5)
    assert float(ess(np.zeros(7, np.float32))) == pytest.approx(7)
    assert float(ess(np.array([0.0, -np.inf, -200.0], np.float32))) == pytest.approx(1)


@pytest.mark.parametrize('scheme', SCHEMES)
def test_resampling_is_unbiased_and_never_takes_a_particle_without_weight(scheme):
    many = 20_000
    draw = jax.jit(jax.vmap(lambda key: resample(key, LOGW, scheme)))
    found = counts(draw(keys(many)))
    assert (found.sum(1) == len(WEIGHTS)).all()
    assert (found[:, WEIGHTS == 0] == 0).all()
    expected = len(WEIGHTS) * WEIGHTS
    error = found.std(0) / math.sqrt(many)
    np.testing.assert_array_less(np.abs(found.mean(0) - expected), 4.5 * error + 1e-6)
    if scheme == 'multinomial':  # independent draws: binomial counts
        variance = expected * (1 - WEIGHTS)
        np.testing.assert_allclose(found.var(0), variance, rtol=0.05, atol=1e-9)
    else:
        assert (np.abs(found - expected) < 1).all()


@pytest.mark.parametrize('scheme', ['systematic', 'ssp'])
@pytest.mark.parametrize('count', [1, 2, 7, 10, 1000])
def test_equal_weights_stay_where_they_are(scheme, count):
    draw = jax.jit(jax.vmap(lambda key: resample(key, np.full(count, -3.7, np.float32), scheme)))
    found = np.asarray(draw(keys(200, seed=count)))
    np.testing.assert_array_equal(found, np.tile(np.arange(count), (200, 1)))


@pytest.mark.parametrize('scheme', SCHEMES)
def test_resampling_of_many_particles_holds_its_bounds(scheme):
    """Sums of many float32 weights round; no index may leave the range or hit a weight of 0."""
    logw = np.random.default_rng(1).normal(size=3000).astype(np.float32) * 5
    logw[::3] = -np.inf
    weights = np.exp(np.float64(logw) - np.float64(logw).max())
    share = 3000 * weights / weights.sum()
    draw = jax.jit(jax.vmap(lambda key: resample(key, logw, scheme)))
    found = counts(draw(keys(50)))
    assert (found[:, ::3] == 0).all() and (found.sum(1) == 3000).all()
    if scheme != 'multinomial':
        assert (np.abs(found - share) < 1.01).all()


def test_systematic_resampling_by_hand():
    """One u for all: positions (i + u) / K in the summed weights .1 .3 .35 1."""
    logw = np.log(np.array([0.1, 0.2, 0.05, 0.65], np.float32))
    found, uniforms = jax.jit(
        jax.vmap(lambda key: (resample(key, logw, 'systematic'), jax.random.uniform(key, ())))
    )(keys(30))
    positions = (np.arange(4) + np.asarray(uniforms)[:, None]) / 4
    by_hand = np.searchsorted([0.1, 0.3, 0.35, 1.0], positions, side='right')
    np.testing.assert_array_equal(found, by_hand)


def gerber_ssp(weights, uniforms):
    """The sampling process as a loop over pairs (Gerber, Chopin and Whiteley 2019, Algorithm 3): at
    each meeting i grows and j shrinks, or the other way round, so that no share changes on average.
    """
    count = len(weights)
    shares = count * np.asarray(weights, np.float64)
    children = np.floor(shares)
    fraction = shares - children
    i, j = 0, 1
    for k, u in enumerate(uniforms):
        grow_i, grow_j = min(fraction[j], 1 - fraction[i]), min(fraction[i], 1 - fraction[j])
        if grow_i + grow_j > 0 and u < grow_i / (grow_i + grow_j):
            i, j, grow_i = j, i, grow_j
        if fraction[j] < 1 - fraction[i]:
            fraction[i] += grow_i
            last, j = i, k + 2
        else:
            fraction[j] -= grow_i
            children[i] += 1
            last, i = j, k + 2
    if children.sum() == count - 1:
        children[last] += 1
    return np.repeat(np.arange(count), children.astype(int))


def test_ssp_follows_the_published_loop_for_given_uniforms():
    rng, compiled = np.random.default_rng(0), jax.jit(_ssp)
    for _ in range(60):
        weights = rng.dirichlet(np.full(8, 0.6))
        uniforms = rng.uniform(size=7)
        np.testing.assert_array_equal(
            compiled(jnp.float32(uniforms), jnp.float32(weights)), gerber_ssp(weights, uniforms)
        )


@pytest.mark.parametrize(
    'uniforms, chosen',
    [
        # shares 1.2 .6 1.2: 0 and 1 meet, u < .6 / .8 lets 1 take from 0; then u < .2 lets 2 win
        ((0.5, 0.1), [0, 2, 2]),
        ((0.5, 0.5), [0, 1, 2]),
        ((0.9, 0.1), [0, 2, 2]),
        ((0.9, 0.5), [0, 0, 2]),
    ],
)
def test_ssp_by_hand(uniforms, chosen):
    found = jax.jit(_ssp)(jnp.float32(uniforms), jnp.float32([0.4, 0.2, 0.4]))
    np.testing.assert_array_equal(found, chosen)


def test_conditional_resampling_keeps_the_pinned_particle_and_draws_the_others():
    many, pinned = 20_000, 3
    draw = jax.jit(jax.vmap(lambda key: conditional_resample(key, LOGW, pinned)))
    found = np.asarray(draw(keys(many)))
    assert (found[:, pinned] == pinned).all()
    free = counts(found)
    free[:, pinned] -= 1
    expected = (len(WEIGHTS) - 1) * WEIGHTS
    error = np.sqrt(expected * (1 - WEIGHTS) / many)
    np.testing.assert_array_less(np.abs(free.mean(0) - expected), 4.5 * error + 1e-9)


def test_a_pinned_particle_without_weight_stays_but_has_no_children():
    logw = np.array([-np.inf, 0.0, 0.0], np.float32)
    draw = jax.jit(jax.vmap(lambda key: conditional_resample(key, logw)))
    found = np.asarray(draw(keys(100)))
    assert (found[:, 0] == 0).all() and (found[:, 1:] > 0).all()


def test_ancestor_path_by_hand():
    ancestors = np.array([[0, 0, 2], [1, 2, 2], [0, 2, 1]])
    # slot 1 at the end came from 2, which came from 2, which came from 2
    np.testing.assert_array_equal(ancestor_path(ancestors, 1), [2, 2, 2, 1])
    np.testing.assert_array_equal(ancestor_path(ancestors, 0), [0, 1, 0, 0])
    # rows without resampling are the identity
    np.testing.assert_array_equal(ancestor_path(np.tile(np.arange(3), (4, 1)), 2), [2] * 5)


def test_backward_weights_are_the_joint_density_as_a_function_of_the_ancestor():
    rng = np.random.default_rng(2)
    mean, x_next, std = rng.normal(size=(4, 3)), rng.normal(size=3), 0.7
    carried, reward, reward_next = rng.normal(size=4), rng.normal(size=4), 0.3
    weight, potential = np.exp(carried + reward), np.exp(reward_next - reward)
    joint = weight * potential * norm.pdf(x_next, mean, std).prod(1)
    found = backward_log_weights(*map(np.float32, (carried, x_next, mean, std)))
    np.testing.assert_allclose(np.exp(log_normalised(found)), joint / joint.sum(), rtol=2e-5)
    # a particle that is not finite has weight 0 before, and none after
    carried[1], mean[1] = -np.inf, np.nan
    lost = backward_log_weights(*map(np.float32, (carried, x_next, mean, std)))
    assert lost[1] == -np.inf
    np.testing.assert_array_equal(np.delete(lost, 1), np.delete(np.asarray(found), 1))


def log_target(x, value):
    return -0.5 * np.sum(x**2, axis=-1) + value


@pytest.mark.parametrize('gradient', [True, False])
@pytest.mark.parametrize('step_size', [0.1, 0.5, 2.0, 4.0])
def test_acceptance_is_the_metropolis_ratio_of_the_proposals_density(gradient, step_size):
    """l(x) = sum sin(x); the densities of both moves written out, in float64."""
    rng = np.random.default_rng(3)
    value, slope = (lambda x: np.sin(x).sum(-1)), (np.cos if gradient else np.zeros_like)
    x, noise = rng.normal(size=(2, 20, 5))
    rho = (1 - step_size / 4) / (1 + step_size / 4)
    centre = lambda a: rho * a + math.sqrt(1 - rho**2) * math.sqrt(step_size) / 2 * slope(a)
    given = lambda a: slope(a) if gradient else None
    with jax.enable_x64(True):
        proposed = np.asarray(pcnl_proposal(x, noise, given(x), step_size))
        found = pcnl_log_accept(
            x, proposed, value(x), value(proposed), given(x), given(proposed), step_size
        )
    np.testing.assert_allclose(proposed, centre(x) + math.sqrt(1 - rho**2) * noise, atol=1e-12)
    density = lambda a, b: norm.logpdf(b, centre(a), math.sqrt(1 - rho**2)).sum(-1)
    exact = (
        log_target(proposed, value(proposed))
        + density(proposed, x)
        - log_target(x, value(x))
        - density(x, proposed)
    )
    np.testing.assert_allclose(found, exact, atol=1e-10)


def test_the_chain_is_in_detailed_balance_on_a_grid():
    """pi(x) q(x -> x') a(x -> x') is symmetric at every pair of a grid, for l(x) = cos(2 x)."""
    grid, step_size = np.linspace(-3, 3, 61), 0.8
    value, slope = np.cos(2 * grid), -2 * np.sin(2 * grid)
    rho = (1 - step_size / 4) / (1 + step_size / 4)
    i, j = (a.ravel() for a in np.meshgrid(np.arange(61), np.arange(61), indexing='ij'))
    with jax.enable_x64(True):
        ratio = np.asarray(
            pcnl_log_accept(
                grid[i, None], grid[j, None], value[i], value[j], slope[i, None], slope[j, None],
                step_size,
            )
        )  # fmt: skip
    centre = rho * grid + math.sqrt(1 - rho**2) * math.sqrt(step_size) / 2 * slope
    flow = (
        np.exp(-0.5 * grid[i] ** 2 + value[i])
        * norm.pdf(grid[j], centre[i], math.sqrt(1 - rho**2))
        * np.exp(np.minimum(ratio, 0))
    ).reshape(61, 61)
    np.testing.assert_allclose(flow, flow.T, rtol=1e-10, atol=1e-14)


def chain(key, x, value_and_slope, step_size, steps):
    """Runs the chain; returns its last state and the share of accepted proposals."""

    def step(carry, key):
        x, value, slope = carry
        noise_key, uniform_key = jax.random.split(key)
        proposed = pcnl_proposal(x, jax.random.normal(noise_key, x.shape), slope, step_size)
        there = value_and_slope(proposed)
        ratio = pcnl_log_accept(x, proposed, value, there[0], slope, there[1], step_size)
        accept = jnp.log(jax.random.uniform(uniform_key, ratio.shape)) < ratio
        choose = lambda new, old: jnp.where(accept.reshape(-1, *[1] * (new.ndim - 1)), new, old)
        return jax.tree.map(choose, (proposed, *there), (x, value, slope)), accept.mean()

    start = (x, *value_and_slope(x))
    (x, *_), accepted = jax.lax.scan(step, start, jax.random.split(key, steps))
    return x, accepted


def test_without_reward_every_proposal_is_accepted_and_the_normal_law_stays():
    flat = lambda x: (jnp.zeros(len(x)), jnp.zeros_like(x))
    x = jax.random.normal(jax.random.key(1), (20_000, 1))
    x, accepted = jax.jit(lambda x: chain(jax.random.key(2), x, flat, 0.5, 5))(x)
    assert (np.asarray(accepted) == 1).all()
    x = np.asarray(x, np.float64)
    assert abs(x.mean()) < 4 / math.sqrt(20_000) and abs(x.var() - 1) < 4 * math.sqrt(2 / 20_000)


@pytest.mark.parametrize('gradient', [True, False])
def test_the_chain_reaches_the_tilted_gaussian(gradient):
    """l(x) = -(x - 2)^2 / (2 * .5): posterior variance 1 / (1 + 2), mean 2 * 2 / 3."""

    def value_and_slope(x):
        slope = -(x - 2) / 0.5
        return -jnp.sum((x - 2) ** 2, -1) / (2 * 0.5), slope if gradient else jnp.zeros_like(x)

    x = jax.random.normal(jax.random.key(3), (20_000, 1))
    x, _ = jax.jit(lambda x: chain(jax.random.key(4), x, value_and_slope, 0.5, 60))(x)
    x = np.asarray(x, np.float64)
    assert abs(x.mean() - 4 / 3) < 4 * math.sqrt(1 / 3 / 20_000)
    assert abs(x.var() * 3 - 1) < 4 * math.sqrt(2 / 20_000)


def langevin_accept(x, proposed, value, there, slope, slope_there, step_size):
    """Log ratio of plain Langevin steps (MALA) x' = x + eps/2 grad log pi + sqrt(eps) z."""
    move = lambda a, g: a + step_size / 2 * (g - a)
    density = lambda a, b, g: -jnp.sum((b - move(a, g)) ** 2, -1) / (2 * step_size)
    log_pi = lambda a, value: -0.5 * jnp.sum(a**2, -1) + value
    return (
        log_pi(proposed, there)
        - log_pi(x, value)
        + density(proposed, x, slope_there)
        - density(x, proposed, slope)
    )


def test_acceptance_does_not_fall_with_the_dimension():
    """A reward of bounded gradient in 10, 1,000 and 100,000 dimensions; plain Langevin steps of the
    same size accept nothing in the last.
    """
    step_size, shares, plain = 0.5, {}, {}
    for dim in (10, 1000, 100_000):
        along = lambda x: x.sum(-1) / math.sqrt(dim)
        value = lambda x: -((along(x) - 2) ** 2)
        slope = lambda x: jnp.broadcast_to(-2 * (along(x) - 2)[:, None] / math.sqrt(dim), x.shape)

        @jax.jit
        def one(key, step_size=step_size):
            first, second = jax.random.split(key)
            x = jax.random.normal(first, (4, dim))
            noise = jax.random.normal(second, (4, dim))
            proposed = pcnl_proposal(x, noise, slope(x), step_size)
            ratio = pcnl_log_accept(
                x, proposed, value(x), value(proposed), slope(x), slope(proposed), step_size
            )
            langevin = x + step_size / 2 * (slope(x) - x) + math.sqrt(step_size) * noise
            worse = langevin_accept(
                x, langevin, value(x), value(langevin), slope(x), slope(langevin), step_size
            )
            return jnp.exp(jnp.minimum(ratio, 0)).mean(), jnp.exp(jnp.minimum(worse, 0)).mean()

        found = np.array([one(key) for key in keys(10 if dim > 1000 else 60)])
        shares[dim], plain[dim] = found.mean(0)
    assert min(shares.values()) > 0.5, shares
    assert max(shares.values()) - min(shares.values()) < 0.12, shares
    assert plain[10] > 0.3 and plain[100_000] < 1e-6, plain


def test_a_guided_proposal_is_corrected_to_the_models_kernel():
    rng = np.random.default_rng(4)
    mean, shift, x_next = rng.normal(size=(3, 6, 5))
    std = np.array([0.3, 0.5, 1.0, 2.0, 0.7, 0.0])
    found = proposal_log_ratio(*map(np.float32, (x_next, mean, std, shift)))
    safe = np.where(std > 0, std, 1)[:, None]
    exact = (norm.logpdf(x_next, mean, safe) - norm.logpdf(x_next, mean + shift, safe)).sum(1)
    np.testing.assert_allclose(found[:-1], exact[:-1], rtol=1e-4, atol=1e-4)
    assert found[-1] == 0
    # the form of the Psi-Sampler, with shift = std^2 g / alpha
    alpha, gradient = 0.4, rng.normal(size=(6, 5))
    shift = std[:, None] ** 2 * gradient / alpha
    published = -np.sum((x_next - mean) * gradient, 1) / alpha
    published += std**2 * np.sum(gradient**2, 1) / (2 * alpha**2)
    found = proposal_log_ratio(*map(np.float32, (x_next, mean, std, shift)))
    np.testing.assert_allclose(found[:-1], published[:-1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('s', [0.0, 0.44, 0.76, 1.0])
def test_renoised_data_has_the_paths_marginal(s):
    rng = np.random.default_rng(5)
    x0 = (0.6 + 0.5 * rng.normal(size=(50_000, 1))).astype(np.float32)
    found = np.asarray(renoise(x0, s, rng.normal(size=x0.shape).astype(np.float32)), np.float64)
    mean, variance = (1 - s) * 0.6, (1 - s) ** 2 * 0.25 + s**2
    assert abs(found.mean() - mean) < 4 * math.sqrt(variance / len(x0))
    assert abs(found.var() / variance - 1) < 4 * math.sqrt(2 / len(x0))
    if s == 0:
        np.testing.assert_array_equal(found, x0)


def test_candidates_by_hand():
    scores = np.array([[0.2, 0.9, 0.9], [-np.inf, -5.0, -7.0]], np.float32)
    np.testing.assert_array_equal(best_candidate(jax.random.key(0), scores, 0), [1, 1])
    drawn = jax.vmap(lambda key: best_candidate(key, scores[1], 2.0))(keys(4000))
    share = np.bincount(np.asarray(drawn), minlength=3) / 4000
    expected = np.exp([-5 / 2, -7 / 2]) / np.exp([-5 / 2, -7 / 2]).sum()
    assert share[0] == 0
    np.testing.assert_allclose(share[1:], expected, atol=4 * math.sqrt(0.25 / 4000))


def test_selection_of_designs_has_the_published_probabilities():
    """Refinement's code resamples designs with probability exp(5 r) / sum: alpha = 1 / 5."""
    reward = np.array([0.1, 0.5, 0.7, 0.2], np.float32)
    published = np.exp(5 * reward) / np.exp(5 * reward).sum()
    np.testing.assert_allclose(np.exp(log_normalised(reward / (1 / 5))), published, rtol=1e-5)


def test_what_is_unknown_or_out_of_range_is_named():
    with pytest.raises(ValueError, match="unknown scheme 'stratified'; expected one of"):
        resample(jax.random.key(0), np.zeros(3, np.float32), 'stratified')
    for step_size in (0.0, 4.5, math.nan):
        with pytest.raises(ValueError, match='expected a number above 0 and at most 4'):
            pcnl_proposal(np.zeros((1, 2)), np.zeros((1, 2)), None, step_size)
