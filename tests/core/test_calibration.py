"""Where each calibration rule ends on synthetic gains: fair, biased by the noise level, and all
tied.
"""

import numpy as np
import pytest

from densegrpo_jax.config.schema import default_config
from densegrpo_jax.core.calibration import calibrate_step, count_gains, has_settled

ALL = np.ones(1, bool)
BOUNDS = (0.05, 1.5)


def run(rule, draw, iterations=600, samples=24, start=0.7, **options):
    """psi after each iteration when `draw(rng, psi, samples)` gives the gains of one transition."""
    rng, psi, history = np.random.default_rng(0), np.array([start]), []
    for _ in range(iterations):
        p, q = count_gains(draw(rng, psi[0], samples)[None])
        psi = calibrate_step(psi, p, q, ALL, rule=rule, bounds=BOUNDS, **options)
        history.append(psi[0])
    return np.array(history)


def fair(rng, psi, samples):
    return rng.standard_normal(samples)


def tied(rng, psi, samples):
    return np.zeros(samples)


def harmful_above(limit):
    """Gains that turn negative as the noise level rises past `limit`, as the paper's Figure 3
    shows.
    """
    return lambda rng, psi, samples: rng.standard_normal(samples) - 4 * np.maximum(psi - limit, 0)


def test_one_step_by_hand():
    psi, p, q = np.full(4, 0.5), np.array([12, 14, 2, 0]), np.array([11, 10, 22, 0])
    stochastic = np.array([True, True, True, True])
    np.testing.assert_allclose(
        calibrate_step(psi, p, q, stochastic, rule='paper'), [0.51, 0.49, 0.49, 0.51]
    )
    up, down = 0.5 * np.exp(0.01), 0.5 * np.exp(-0.01)
    np.testing.assert_allclose(calibrate_step(psi, p, q, stochastic), [up, up, down, 0.5])
    stochastic[2] = False
    for rule, others in (('paper', [0.51, 0.49, 0.51]), ('scaled', [up, up, 0.5])):
        moved = calibrate_step(psi, p, q, stochastic, rule=rule)
        assert moved[2] == 0.5
        np.testing.assert_allclose(moved[[0, 1, 3]], others)


def test_gains_are_counted_by_strict_sign():
    p, q = count_gains(np.array([[0.0, 0.1, -0.2, 0.3, np.nan], [0, 0, 0, 0, -1e-9]]))
    assert p.tolist() == [2, 0] and q.tolist() == [1, 1]


def test_paper_rule_sinks_on_fair_gains_and_climbs_on_ties():
    assert run('paper', fair)[-1] < BOUNDS[0] + 0.03
    assert run('paper', tied)[-1] == BOUNDS[1]


def test_scaled_rule_keeps_psi_on_ties_and_explores_on_fair_gains():
    np.testing.assert_array_equal(run('scaled', tied), 0.7)
    assert run('scaled', fair)[-1] > 1.4


@pytest.mark.parametrize('limit', [0.3, 0.9])
def test_scaled_rule_rests_where_the_gains_begin_to_lean(limit):
    history = run('scaled', harmful_above(limit))
    assert np.all(np.abs(history[300:] - limit) < 0.15)
    step = {'rule': 'scaled', 'eps2': 0.01}
    assert has_settled(history[:, None], 100, 0.2, **step)
    assert not has_settled(history[:20, None], 10, 0.2, **step)


def test_both_rules_sink_when_almost_every_gain_is_negative():
    for rule in ('paper', 'scaled'):
        history = run(rule, lambda rng, psi, samples: rng.standard_normal(samples) - 2)
        assert history[-1] == pytest.approx(BOUNDS[0])


def test_bad_arguments():
    with pytest.raises(ValueError, match='median'):
        calibrate_step([0.5], [1], [1], [True], rule='median')
    with pytest.raises(ValueError, match='bounds'):
        calibrate_step([0.5], [1], [1], [True], bounds=(0.0, 1.0))
    with pytest.raises(ValueError, match='shapes'):
        calibrate_step([0.5, 0.6], [1], [1], [True])
    assert not has_settled([[0.5]], 1, 0.2, rule='scaled', eps2=0.1)


def balanced_share(rule, samples, lean=0.0, rounds=4000):
    """How often a transition is found balanced when a gain is positive with probability (1 + lean)
    / 2.
    """
    rng, psi, on = np.random.default_rng(1), np.full(rounds, 0.5), np.ones(rounds, bool)
    positives = rng.binomial(samples, (1 + lean) / 2, rounds)
    return np.mean(calibrate_step(psi, positives, samples - positives, on, rule=rule) > psi)


def test_the_scaled_threshold_grows_with_the_root_of_n_and_the_printed_one_does_not():
    """Fair gains: P(|p - q| < 2) = P(p = N/2) falls as sqrt(2 / (pi N)); P(|p - q| <= sqrt(N))
    stays near 0.68 whatever N is.
    """
    for samples in (24, 96, 1536):
        assert balanced_share('paper', samples) == pytest.approx(
            np.sqrt(2 / (np.pi * samples)), abs=0.02
        )
        assert balanced_share('scaled', samples) == pytest.approx(0.68, abs=0.07)
    # A lean of one in ten drowns in 24 gains, shows in 96 and is certain in 1536: what rests
    # depends on N only through this.
    found = [balanced_share('scaled', samples, lean=0.1) for samples in (24, 96, 1536)]
    assert (
        found[0] > 0.5 > found[1] - 0.05
        and found[2] < 0.01
        and found == sorted(found, reverse=True)
    )


@pytest.mark.parametrize('samples', [24, 96, 384])
def test_scaled_rule_rests_at_the_same_level_for_every_n(samples):
    history = run('scaled', harmful_above(0.5), samples=samples, eps2=0.05, iterations=200)
    assert abs(history[100:].mean() - 0.5) < 0.12


def test_the_mean_of_a_window_is_steadier_than_where_psi_stands():
    history = run('scaled', harmful_above(0.5), samples=96, eps2=0.05, iterations=400)[100:]
    assert history.reshape(-1, 10).mean(1).std() < 0.8 * history.std()


@pytest.mark.parametrize('rule', ['scaled', 'paper'])
@pytest.mark.parametrize('eps2', [0.01, 0.05])
@pytest.mark.parametrize('sign', [1, -1])
def test_a_drift_at_full_speed_never_settles_and_a_walk_to_and_fro_does(rule, eps2, sign):
    """Also if a step is small beside psi, as the printed 0.01 is beside Flow-GRPO's 3.5."""
    start, steps = np.array([[3.5, 1.2, 0.65]]), np.arange(20)[:, None]
    moved = lambda by: start * np.exp(by) if rule == 'scaled' else start + by
    how = {'rule': rule, 'eps2': eps2}
    assert not has_settled(moved(sign * eps2 * steps), 10, 0.2, **how)
    # a third of the steps the other way: a third of the speed
    assert not has_settled(moved(sign * eps2 * steps / 3), 10, 0.2, **how)
    assert has_settled(moved(sign * eps2 * steps / 6), 10, 0.2, **how)
    assert has_settled(moved(eps2 * (steps % 2)), 10, 0.2, **how)


def test_the_default_drift_tells_a_walk_from_a_drift():
    """Window means of a driftless walk of steps e differ by e sqrt(2 / pi) sqrt((2 w^2 + 1) / (3
    w)) on average: 0.2 of the e w of a drift at the default window.
    """
    c = default_config().calibration
    steps = c.eps2 * np.random.default_rng(0).choice([-1, 1], (400, 20 * c.window))
    means = steps.cumsum(1).reshape(400, -1, c.window).mean(2)
    assert np.abs(np.diff(means, axis=1)).mean() == pytest.approx(
        c.drift * c.eps2 * c.window, rel=0.05
    )
    drifting = 0.7 * np.exp(c.eps2 * np.arange(2 * c.window))[:, None]
    step = {'rule': 'scaled', 'eps2': c.eps2}
    assert not has_settled(drifting, c.window, c.drift, **step)
    # of 200 transitions: gains that lean as psi leaves 0.5, and fair ones, which drift up
    for bias, settled in ((4, True), (0, False)):
        rng, psi, history = np.random.default_rng(0), np.full(200, 0.5), []
        for _ in range(4 * c.window):
            p, q = count_gains(
                rng.standard_normal((200, 96)) - bias * np.maximum(psi - 0.5, 0)[:, None]
            )
            psi = calibrate_step(
                psi, p, q, np.ones(200, bool), rule='scaled', eps2=c.eps2, z=c.z, bounds=(0.02, 50)
            )
            history.append(psi)
        assert has_settled(history, c.window, c.drift, **step) == settled
