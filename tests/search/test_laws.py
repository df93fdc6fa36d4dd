"""Where the velocity is exact and the reward quadratic, every law is Gaussian and known: what a
method draws has it.
"""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import norm

from densegrpo_jax.core.particles import ess
from densegrpo_jax.core.sde_step import sde_step
from densegrpo_jax.search.methods import METHODS, Rule, Sizes, pg, psi, refine, smc, svdd
from densegrpo_jax.search.passes import Weighting, candidate_pass, weighted_pass
from tests.search.gaussian import (
    assert_law,
    base_law,
    gaussian_flow,
    reward,
    tilted_law,
    velocity,
    walk,
)

FLOW = gaussian_flow()
NOTHING = gaussian_flow(r=lambda x: 0 * x)


def drawn(found):
    return np.asarray(found.particles.x)[np.arange(len(found.drawn)), found.drawn, 0]


@pytest.mark.parametrize('backward', [False, True])
def test_particle_gibbs_draws_from_the_tilted_law(backward):
    rule = Rule(temperature=1.0, backward=backward)
    found = pg(walk(FLOW, 4000), Sizes(particles=4, iterations=9), rule)
    assert_law(drawn(found), *tilted_law(FLOW), errors=5)


def test_particle_gibbs_mixes_faster_with_more_particles(record_property):
    """Correlation of the path's end with that of the iteration before."""
    found = {}
    for count in (2, 4):
        runs = [pg(walk(FLOW, 4000), Sizes(particles=count, iterations=m), Rule()) for m in (4, 5)]
        found[count] = float(np.corrcoef(*map(drawn, runs))[0, 1])
        record_property(f'autocorrelation of K = {count}', found[count])
    assert 0.7 < found[2] < 0.95 and 0.4 < found[4] < 0.75, found


@pytest.mark.parametrize('backward', [False, True])
def test_paths_with_a_prediction_without_score_are_left_out(backward):
    """Pictures right of 1.1 have no score. The law is that of paths whose predictions all have one:
    by weighing 200,000 of the sampler's own paths.
    """
    cut = gaussian_flow(r=lambda x: np.where(x < 1.1, reward(x), -np.inf))
    w = walk(FLOW, seed=9)
    whole = weighted_pass(w, w.start(200_000), Weighting(1.0, np.zeros(6, bool)))
    ends = np.stack([np.asarray(w.predict(p))[0, :, 0] for p in whole.states])
    weights = np.exp(reward(ends[-1])) * (ends[cut.stochastic.nonzero()[0]] < 1.1).all(0)
    weights *= ends[-1] < 1.1
    mean = np.average(ends[-1], weights=weights)
    variance = np.average((ends[-1] - mean) ** 2, weights=weights)
    found = drawn(pg(walk(cut, 2000), Sizes(particles=16, iterations=4), Rule(backward=backward)))
    assert found.max() < 1.1
    error = math.sqrt(variance / 2000 + variance / 50_000)
    assert abs(found.mean() - mean) < 5 * error, (found.mean(), mean)
    assert abs(found.var() / variance - 1) < 0.16


@pytest.mark.parametrize(
    'rule, guided',
    [
        (Rule(), False),
        (Rule(), True),
        (Rule(scheme='ssp', threshold=None), False),
        (Rule(scheme='multinomial', threshold=None), True),
        (Rule(potential='max'), False),
        (Rule(potential='sum', every=2), False),
        (Rule(temperature=0.5), True),
    ],
)
def test_smc_draws_from_the_tilted_law(rule, guided):
    flow = gaussian_flow(guide=guided)
    options = dict(guided=guided, temperature=rule.temperature)
    found = smc(walk(flow, 2000, **options), Sizes(particles=64), rule)
    assert_law(drawn(found), *tilted_law(FLOW, rule.temperature))


def test_guided_steps_waste_fewer_particles():
    """The weights of twisted proposals are more even: that is what the gradient is for."""
    even = []
    for guided in (False, True):
        w = walk(gaussian_flow(guide=True), 2000, guided=guided, temperature=0.3)
        never = Weighting(0.3, np.zeros(6, bool))
        even.append(np.asarray(ess(weighted_pass(w, w.start(64), never).logw)).mean())
    assert even[1] > 1.5 * even[0], even


@pytest.mark.parametrize('guided', [False, True])
def test_the_psi_sampler_draws_from_the_tilted_law(guided):
    flow = gaussian_flow(guide=guided)
    w = walk(flow, 2000, guided=guided)
    sizes = Sizes(particles=64, chains=4, burn_in=15, kept=16)
    assert_law(drawn(psi(w, sizes, Rule(step_size=1.0))), *tilted_law(FLOW))


def chosen_by_grid(candidates, alpha, points=401):
    """The law of SVDD with M candidates by integration over a grid: of M draws from the kernel one
    goes on, with probability softmax(r / alpha) (M = 2) or as the largest (alpha = 0).
    """
    x = np.linspace(-4, 4.5, points)
    law = norm.pdf(x) / norm.pdf(x).sum()
    for k in range(FLOW.steps - 1):
        s, s_next = FLOW.sigmas[k], FLOW.sigmas[k + 1]
        v = np.asarray(velocity(x.astype(np.float32), s), np.float64)
        angle = FLOW.levels[k] * math.pi / 2  # cps: x' = (1 - s') x0hat + s' cos x1hat + s' sin z
        mean = (1 - s_next) * (x - s * v) + s_next * math.cos(angle) * (x + (1 - s) * v)
        step = norm.pdf(x[None], mean[:, None], s_next * math.sin(angle))
        step /= step.sum(1, keepdims=True)
        r = reward(x - s_next * np.asarray(velocity(x.astype(np.float32), s_next), np.float64))
        if alpha == 0:
            # probability that all others are worse, with ties shared
            below = step @ (r[:, None] < r[None])
            upto = step @ (r[:, None] <= r[None])
            step = upto**candidates - below**candidates
            step /= np.maximum((np.abs(r[:, None] - r[None]) == 0).sum(0), 1)
        else:
            wins = expit((r[None] - r[:, None]) / alpha)  # of the column over the row
            step = 2 * step * (step @ wins)
        step /= step.sum(1, keepdims=True)
        law = law @ step
    end = x - FLOW.sigmas[-2] * np.asarray(
        velocity(x.astype(np.float32), FLOW.sigmas[-2]), np.float64
    )
    mean = np.sum(law * end)
    return mean, np.sum(law * (end - mean) ** 2)


@pytest.mark.parametrize('candidates, alpha', [(2, 0.5), (2, 0.05), (4, 0.0)])
def test_svdd_has_the_law_of_numerical_integration(candidates, alpha):
    sizes = Sizes(designs=20_000, candidates=candidates)
    found = svdd(walk(FLOW), sizes, Rule(alpha=alpha))
    mean, variance = chosen_by_grid(candidates, alpha)
    x = np.asarray(found.particles.x, np.float64).ravel()
    assert abs(x.mean() - mean) < 4 * math.sqrt(variance / len(x)) + 1e-3
    assert abs(x.var() / variance - 1) < 0.04


def test_candidates_chosen_at_any_temperature_are_those_of_the_sampler():
    found = svdd(walk(FLOW), Sizes(designs=20_000, candidates=3), Rule(alpha=1e6))
    assert_law(found.particles.x, *base_law(FLOW))


def refined_law(flow, from_state, law):
    """Mean and variance after putting back and denoising, by the affine steps."""
    mean, variance = law
    s = float(flow.sigmas[from_state])
    mean, variance = (1 - s) * mean, (1 - s) ** 2 * variance + s**2
    for k in range(from_state, flow.steps):
        x = np.array([[0.0], [1.0]], np.float32)
        at = (flow.sigmas[k], flow.sigmas[k + 1], flow.levels[k])
        step = sde_step(velocity(x, at[0]), x, *at, noise=0 * x, kernel=flow.kernel)
        offset, one = np.float64(step.mean)[:, 0]
        mean = (one - offset) * mean + offset
        variance = (one - offset) ** 2 * variance + float(step.std[0]) ** 2
    return mean, variance


def test_refinement_leaves_the_data_law_invariant():
    """By the recursion the law that a round keeps nears the data's as steps get finer; and
    rounds without selection have the law of the recursion.
    """
    distance = []
    for steps in (50, 100, 200):
        flow = gaussian_flow(steps, kernel='sde', eta=0.3)
        mean, variance = refined_law(flow, steps // 2, (0.6, 0.25))
        distance.append(abs(variance - 0.25) + abs(mean - 0.6))
    assert distance[-1] < 0.006 and distance[1] < 0.6 * distance[0], distance
    assert distance[2] < 0.6 * distance[1]

    data = 0.6 + 0.5 * np.random.default_rng(0).normal(size=(1, 20_000, 1))
    flow = gaussian_flow(40, kernel='sde', eta=0.3, r=lambda x: 0 * x)
    given = jnp.asarray(data, jnp.float32)
    sizes = Sizes(designs=20_000, rounds=2, from_state=20)
    found = refine(walk(flow), sizes, Rule(keep_best=False), given)
    law = (float(data.mean()), float(data.var()))
    for _ in range(2):
        law = refined_law(flow, 20, law)
    x = np.asarray(found.particles.x, np.float64).ravel()
    assert abs(x.mean() - law[0]) < 4 * math.sqrt(law[1] / 20_000)
    assert abs(x.var() / law[1] - 1) < 4 * math.sqrt(2 / 20_000)


def test_refinement_from_pure_noise_is_independent_sampling():
    w = walk(NOTHING)
    first = candidate_pass(w, w.start(20_000), 1, 0.0)
    sizes = Sizes(designs=20_000, rounds=1, from_state=0)
    found = refine(walk(NOTHING), sizes, Rule(keep_best=False))
    assert_law(found.particles.x, *base_law(FLOW))
    before, after = (np.asarray(x).ravel() for x in (first.x, found.particles.x))
    assert abs(np.corrcoef(before, after)[0, 1]) < 4 / math.sqrt(20_000)


SIZES = {
    'best_of_n': Sizes(particles=4),
    'smc': Sizes(particles=4),
    'pg': Sizes(particles=4, iterations=3),
    'svdd': Sizes(designs=2, candidates=2),
    'refine': Sizes(designs=2, candidates=2, rounds=1, from_state=0),
    'psi': Sizes(particles=4, chains=4, burn_in=2, kept=4),
}


@pytest.mark.parametrize('method', METHODS)
def test_a_reward_of_nothing_leaves_the_samplers_law(method):
    found = METHODS[method](walk(NOTHING, 4000, seed=3), SIZES[method], Rule(alpha=0.5))
    assert_law(drawn(found), *base_law(FLOW))
