"""What methods cost, where they are one another, and what they refuse."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densegrpo_jax.config.schema import KEYS, default_config
from densegrpo_jax.rewards.base import RewardError
from densegrpo_jax.search.budget import Cost, cost, sizes_for
from densegrpo_jax.search.loop import Particles, Scored, Walk
from densegrpo_jax.search.methods import METHODS, Rule, Sizes, best_of_n, pg, psi, refine, smc, svdd
from densegrpo_jax.search.passes import Weighting, default_states, path, weighted_pass
from densegrpo_jax.search.run import rule_of
from tests.search.gaussian import gaussian_flow, reward, walk

FLOW = gaussian_flow(dim=3)
CASES = {
    'best_of_n': [Sizes(particles=5)],
    'smc': [Sizes(particles=6)],
    'pg': [Sizes(particles=4, iterations=1), Sizes(particles=3, iterations=4)],
    'svdd': [Sizes(designs=2, candidates=4), Sizes(designs=3, candidates=1)],
    'refine': [
        Sizes(designs=2, candidates=3, rounds=2, from_state=3),
        Sizes(designs=1, candidates=1, rounds=3, from_state=5),
        Sizes(designs=2, candidates=2, rounds=1, from_state=6),
    ],
    'psi': [Sizes(particles=5, chains=2, burn_in=3, kept=4)],
}


def test_beta_is_the_temperature_in_the_rewards_own_units():
    config = default_config()
    plain, config.search.beta = rule_of(config, 3.0), 0.7
    assert rule_of(config, 3.0) == plain._replace(temperature=0.7)


@pytest.mark.parametrize('name', Rule._fields)
def test_a_key_reaches_the_field_of_its_name_alone(name):
    key, config, spread = KEYS[f'search.{name}'], default_config(), 3.0
    plain, value = rule_of(config, spread), key.default
    if key.choices:
        value = next(other for other in key.choices if other != value)
    elif isinstance(value, bool):
        value = not value
    else:
        value = value / 2 if isinstance(value, float) else value + 1
    config.search[name] = value
    if name in ('temperature', 'alpha', 'selection'):  # in units of the spread
        value *= spread
    assert rule_of(config, spread) == plain._replace(**{name: value})


@pytest.mark.parametrize('every', [1, 2])
@pytest.mark.parametrize(
    'method, guided', [*((method, False) for method in METHODS), ('smc', True), ('psi', True)]
)
def test_the_cost_is_the_formulas_and_no_velocity_is_taken_twice(method, guided, every):
    for sizes in CASES[method]:
        flow = gaussian_flow(dim=3, counted=True, guide=guided)
        if guided:
            network, plain = flow.velocity, flow.guide
            flow = dataclasses.replace(flow, guide=lambda x, k: (network(x, k), *plain(x, k)[1:]))
        seen = []
        w = walk(flow, 3, guided=guided, record=seen.append)
        METHODS[method](w, sizes, Rule(alpha=0.3, every=every))
        formula = cost(method, sizes, flow.stochastic, every=every, guided=guided)
        assert Cost(w.evaluations, w.images, w.gradients) == formula
        rows = flow.velocity.rows
        assert len(rows) == 3 * formula.evaluations
        assert len(set(rows)) == len(rows)
        assert sum(len(event.slots) for event in seen) == formula.images
        assert seen[-1].k == flow.steps and seen[-1].evaluations == formula.evaluations


def test_costs_of_the_papers_pages():
    six = np.array([True] * 5 + [False])
    assert cost('pg', Sizes(particles=8, iterations=5), six).evaluations == 216
    first = cost('svdd', Sizes(designs=1, candidates=4), six).evaluations
    assert first == 21
    whole = Sizes(designs=4, candidates=4, rounds=5, from_state=3)
    assert cost('refine', whole, six).evaluations == 84 + 180


@pytest.mark.parametrize('budget', [60, 120, 240, 1000])
@pytest.mark.parametrize('method', METHODS)
def test_a_budget_is_spent_and_never_exceeded(method, budget):
    stochastic = np.array([True] * 5 + [False])
    sizes = sizes_for(method, budget, stochastic, from_state=3)
    spent = cost(method, sizes, stochastic).evaluations
    least = (
        budget - cost(method, Sizes(particles=1, designs=1, candidates=4), stochastic).evaluations
    )
    assert max(least, 0.65 * budget) <= spent <= budget, (sizes, spent)


def test_budgets_that_buy_nothing_say_what_would():
    stochastic = np.array([True] * 5 + [False])
    with pytest.raises(ValueError, match='search.nfe=20 is too small for pg.*takes 24 evaluations'):
        sizes_for('pg', 20, stochastic)
    with pytest.raises(ValueError, match='search.nfe=5 is too small for best_of_n.*takes 6'):
        sizes_for('best_of_n', 5, stochastic)
    with pytest.raises(ValueError, match='search.particles=1: a pass'):
        sizes_for('pg', 60, stochastic, particles=1)
    with pytest.raises(ValueError, match='from_level=0: a round from the finished image'):
        sizes_for('refine', 60, stochastic, from_state=6)


def same(a, b):
    np.testing.assert_array_equal(np.asarray(a.particles.x), np.asarray(b.particles.x))
    np.testing.assert_array_equal(a.particles.reward, b.particles.reward)


def test_degenerate_cases_are_other_methods_bit_for_bit():
    plain = best_of_n(walk(FLOW, 3), Sizes(particles=4), Rule())
    same(plain, svdd(walk(FLOW, 3), Sizes(designs=4, candidates=1), Rule()))
    same(plain, smc(walk(FLOW, 3), Sizes(particles=4), Rule(threshold=0.0)))
    once = Sizes(particles=4, iterations=1)
    always = Rule(scheme='multinomial', threshold=None)
    same(pg(walk(FLOW, 3), once, Rule()), smc(walk(FLOW, 3), once, always))
    several = Sizes(designs=3, candidates=3, rounds=0)
    same(refine(walk(FLOW, 3), several, Rule()), svdd(walk(FLOW, 3), several, Rule()))
    # of one particle there is nothing to choose
    alone = pg(walk(FLOW, 3), Sizes(particles=1), Rule())
    same(alone, best_of_n(walk(FLOW, 3), Sizes(particles=1), Rule()))


def test_without_gradient_a_guided_search_is_the_plain_one():
    level = lambda x: 0 * x + 0.3
    flow = gaussian_flow(dim=3, guide=True, r=level)
    guided, plain = (
        smc(walk(flow, 3, guided=guided), Sizes(particles=4), Rule(threshold=None))
        for guided in (True, False)
    )
    np.testing.assert_allclose(guided.particles.x, plain.particles.x, rtol=1e-6)


def test_a_prompts_search_is_the_same_in_any_company():
    """Keys belong to prompts: the second of three is the first of one."""
    for method in ('pg', 'refine'):
        sizes, rule = CASES[method][-1], Rule(alpha=0.3, temperature=0.5)
        whole = METHODS[method](walk(FLOW, 3), sizes, rule)
        w = walk(FLOW, 3)
        w._keys = w._keys[1:2]
        alone = METHODS[method](w, sizes, rule)
        np.testing.assert_allclose(
            np.asarray(whole.particles.x)[1], np.asarray(alone.particles.x)[0], rtol=1e-6
        )
        assert whole.drawn[1] == alone.drawn[0]


def reference_pass(temperature=0.7):
    w = walk(FLOW, 3)
    how = Weighting(temperature, default_states(FLOW.stochastic))
    result = weighted_pass(w, w.start(5), how)
    last = np.array([0, 3, 4])
    return w, how, result, last, path(result, last)


def test_the_pinned_path_stays_bit_for_bit_and_leads_where_it_led():
    w, how, result, last, reference = reference_pass()
    second = weighted_pass(w, w.start(4, 1, first=1), how, iteration=1, reference=reference)
    for k, p in enumerate(second.states):
        np.testing.assert_array_equal(np.asarray(p.x)[:, 0], np.asarray(reference[k].x)[:, 0])
    assert (second.ancestors[:, :, 0] == 0).all()
    back = path(second, np.zeros(3, int))
    np.testing.assert_array_equal(np.asarray(back[2].x), np.asarray(reference[2].x))


def test_stored_rewards_are_those_of_the_states_and_weights_telescope():
    w, how, result, last, reference = reference_pass()
    for p in result.states:
        if p.reward is not None:
            again = reward(np.asarray(w.predict(p), np.float64)[..., 0])
            np.testing.assert_allclose(p.reward, again, rtol=1e-6)
    # log weight increments along a path: r_k - r_k-1 between resamplings, r_T - r_4 at the end
    rewards = [p.reward[:, 0] for p in reference if p.reward is not None]
    increments = [rewards[0], *np.diff(rewards, axis=0)]
    np.testing.assert_allclose(np.sum(increments, axis=0), rewards[-1])
    chosen = np.take_along_axis(result.logw, last[:, None], axis=1)[:, 0]
    np.testing.assert_allclose(chosen, increments[-1] / how.temperature, rtol=1e-6, atol=1e-9)


def test_without_resampling_the_weight_of_a_path_is_its_ends_reward():
    w = walk(FLOW, 3)
    result = weighted_pass(w, w.start(5), Weighting(0.7, np.zeros(6, bool)))
    np.testing.assert_allclose(result.logw, result.particles.reward / 0.7)


def test_free_particles_may_be_in_any_order():
    """Permuting the particles of the last state permutes what a draw by weight is drawn from."""
    w, how, result, *_ = reference_pass()
    order = np.array([2, 0, 4, 1, 3])
    shuffled = result.particles.take(order)
    np.testing.assert_array_equal(shuffled.reward, result.particles.reward[:, order])
    np.testing.assert_array_equal(np.asarray(shuffled.x), np.asarray(result.particles.x)[:, order])


def test_the_best_design_never_gets_lost():
    sizes, seen = Sizes(designs=3, candidates=2, rounds=6, from_state=2), []
    w = walk(FLOW, 3, record=seen.append)
    found = refine(w, sizes, Rule(alpha=0.5, keep_best=True))
    ends = [event.scored.reward.max(1) for event in seen if event.k == FLOW.steps]
    best = np.maximum.accumulate(ends)
    np.testing.assert_array_equal(found.particles.reward.max(1), best[-1])
    assert (best[-1] > best[0]).any()
    lossy = refine(walk(FLOW, 3), sizes, Rule(alpha=0.5, keep_best=False))
    assert (lossy.particles.reward.max(1) < best[-1]).any()


def test_designs_may_be_given():
    given = jnp.asarray(np.random.default_rng(0).normal(size=(3, 3, 3)), jnp.float32)
    sizes = Sizes(designs=3, candidates=2, rounds=2, from_state=3)
    flow = gaussian_flow(dim=3, counted=True)
    w = walk(flow, 3)
    refine(w, sizes, Rule(), given)
    expected = cost('refine', sizes, flow.stochastic, given=True)
    assert (w.evaluations, w.images) == expected[:2]
    # noise level 0 changes nothing
    still = Sizes(designs=3, candidates=2, rounds=1, from_state=6)
    found = refine(walk(FLOW, 3), still, Rule(keep_best=False, selection=1e9), given)
    kept = {row.tobytes() for row in np.asarray(given).reshape(-1, 3)}
    assert {row.tobytes() for row in np.asarray(found.particles.x).reshape(-1, 3)} <= kept


def test_pictures_without_score_are_never_chosen():
    """A tenth of the images have none; a design all of whose candidates have none goes on."""

    def cut(x):
        return np.where(np.cos(40 * x) > -0.95, reward(x), -np.inf)

    flow = gaussian_flow(dim=3, r=cut)
    for seed in range(2):
        for method, (*_, sizes) in CASES.items():
            found = METHODS[method](walk(flow, 3, seed), sizes, Rule(alpha=0.2))
            if method in ('smc', 'pg', 'psi'):  # of the others the first stands for all
                assert np.isfinite(found.particles.reward[np.arange(3), found.drawn]).all()
    w = walk(flow, 3)
    pick = w.choose(np.array([[[-np.inf] * 2, [1, 2]]] * 3), 0.0, 0, 0)
    np.testing.assert_array_equal(pick, [[0, 1]] * 3)


@pytest.mark.parametrize('potential', ['difference', 'max', 'sum'])
def test_a_prediction_without_score_ends_its_path_at_that_state_alone(potential):
    flow = gaussian_flow(dim=3, r=lambda x: np.where(np.cos(40 * x) > 0.3, reward(x), -np.inf))
    states = default_states(flow.stochastic)
    result = weighted_pass(
        w := walk(flow, 3), w.start(8), Weighting(0.7, states, potential=potential)
    )
    without = 0
    for k in np.flatnonzero(states):
        scored = np.isfinite(result.states[k].reward)
        without += (~scored).sum()
        kept = np.take_along_axis(scored, result.ancestors[k], axis=1)
        assert kept[scored.any(1)].all()
    assert without > 10
    ended = np.isfinite(result.particles.reward)
    assert ended.any() and np.isfinite(result.logw[ended]).all()


def test_psi_weighs_a_start_without_a_score_as_nothing():
    """Of 50 prompts none draws the path of such a start."""
    calls = []

    def score(x0):
        calls.append(x0.shape)
        values = np.full(x0.shape[:2], 0.5, np.float32)
        if len(calls) <= 2:  # the start of the chains, and their one proposal
            values[:, 3] = -np.inf
        return Scored(values)

    w = walk(dataclasses.replace(FLOW, score=score), 50)
    found = psi(w, Sizes(particles=4, chains=4), Rule(temperature=0.125, threshold=0.0))
    assert (found.drawn != 3).all() and len(np.unique(found.drawn)) == 3


@pytest.mark.parametrize('method', ['smc', 'pg', 'svdd', 'refine', 'psi'])
def test_where_no_picture_has_a_score_the_search_says_so(method):
    flow = gaussian_flow(r=lambda x: np.full_like(x, -np.inf))
    w = walk(flow, 3)
    w._names = ['a red cube', 'a cat', 'a dog']
    with pytest.raises(RewardError, match="'a red cube', 'a cat', 'a dog': none of .* valid score"):
        METHODS[method](w, CASES[method][0], Rule(alpha=0.2))


def test_a_guided_search_needs_a_gradient():
    with pytest.raises(ValueError, match='has no gradient to follow'):
        walk(FLOW, guided=True)


def test_states_that_are_weighed():
    stochastic = np.array([True, True, True, True, True, False])
    np.testing.assert_array_equal(default_states(stochastic), stochastic)
    np.testing.assert_array_equal(default_states(stochastic, 2), [1, 0, 1, 0, 1, 0])
    window = np.array([False, True, True, True, False, False])
    np.testing.assert_array_equal(default_states(window, 2), [0, 1, 0, 1, 0, 0])


def test_particles_are_taken_joined_and_chosen_with_all_that_they_have():
    x = jnp.arange(12.0).reshape(2, 3, 2)
    p = Particles(x, x + 100, 1, np.arange(6.0).reshape(2, 3), None)
    taken = p.take(np.array([[2, 0], [1, 1]]))
    np.testing.assert_array_equal(taken.x[:, :, 0], [[4, 0], [8, 8]])
    np.testing.assert_array_equal(taken.reward, [[2, 0], [4, 4]])
    both = p.join(taken)
    assert both.x.shape == (2, 5, 2) and both.v.shape == both.x.shape
    np.testing.assert_array_equal(both.reward[:, 3:], taken.reward)
    assert p._replace(reward=None).join(taken).reward is None
    other = p._replace(x=-x, reward=-p.reward)
    mixed = p.where(np.array([[True, False, True]] * 2), other)
    np.testing.assert_array_equal(mixed.reward, [[0, -1, 2], [3, -4, 5]])
    np.testing.assert_array_equal(mixed.x[0, 1], -x[0, 1])


def test_the_scored_prediction_is_the_clean_latent():
    scored = []
    flow = dataclasses.replace(
        FLOW, score=lambda x0: scored.append(x0) or Scored(np.zeros(x0.shape[:2]))
    )
    w = walk(flow, 2)
    p = w.start(3)
    w.score(p, 0)
    np.testing.assert_allclose(scored[0], p.x - p.v, rtol=1e-6)
    assert isinstance(scored[0], jax.Array)


def test_incremental_refinement_selects_by_what_a_round_gained(monkeypatch):
    """The first round selects alike, by the reward; in the second its logits are smaller by the
    reward that the selected designs had then.
    """
    found, resample = {}, Walk.resample
    for incremental in (False, True):
        seen = found[incremental] = []

        def seeing(walk, logw, *arguments):
            result = resample(walk, logw, *arguments)
            seen.append((np.asarray(logw), np.asarray(result[0])))
            return result

        monkeypatch.setattr(Walk, 'resample', seeing)
        rule = Rule(incremental=incremental, keep_best=False, selection=0.5)
        refine(walk(FLOW, 3), Sizes(designs=4, candidates=2, rounds=2, from_state=3), rule)
    (first, ancestors), (rewards, _) = found[False]
    np.testing.assert_array_equal(found[True][0][0], first)
    np.testing.assert_array_equal(found[True][0][1], ancestors)
    kept = np.take_along_axis(first, ancestors, 1)
    np.testing.assert_allclose(found[True][1][0], rewards - kept, rtol=1e-5, atol=1e-5)
    assert np.abs(kept).max() > 0.1
