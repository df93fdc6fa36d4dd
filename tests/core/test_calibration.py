"""Where each calibration rule ends on synthetic gains: fair, biased by the noise level, and all tied."""

import numpy as np
import pytest

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
    """Gains that turn negative as the noise level rises past `limit`, as the paper's Figure 3 shows."""
    return lambda rng, psi, samples: rng.standard_normal(samples) - 4 * np.maximum(psi - limit, 0)


def test_one_step_by_hand():
    psi, p, q = np.full(4, 0.5), np.array([12, 14, 2, 0]), np.array([11, 10, 22, 0])
    stochastic = np.array([True, True, True, True])
    np.testing.assert_allclose(calibrate_step(psi, p, q, stochastic, rule='paper'), [0.51, 0.49, 0.49, 0.51])
    up, down = 0.5 * np.exp(0.01), 0.5 * np.exp(-0.01)
    np.testing.assert_allclose(calibrate_step(psi, p, q, stochastic), [up, up, down, 0.5])
    stochastic[2] = False
    for rule, others in (('paper', [0.51, 0.49, 0.51]), ('scaled', [up, up, 0.5])):
        moved = calibrate_step(psi, p, q, stochastic, rule=rule)
        assert moved[2] == 0.5
        np.testing.assert_allclose(moved[[0, 1, 3]], others)


def test_gains_are_counted_by_strict_sign():
    p, q = count_gains([[0.0, 0.1, -0.2, 0.3, np.nan], [0, 0, 0, 0, -1e-9]])
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
    assert has_settled(history[:, None], 100, 0.1)
    assert not has_settled(history[:20, None], 10, 0.01)


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
    assert not has_settled([[0.5]], 1, 0.1)
