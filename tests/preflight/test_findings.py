"""Findings where the truth is planted."""

import numpy as np
import pytest

from densegrpo_jax.config.schema import default_config
from densegrpo_jax.preflight import signal
from densegrpo_jax.preflight.costs import Cost
from densegrpo_jax.preflight.findings import findings, prices, unbalanced
from densegrpo_jax.preflight.measure import Spent
from densegrpo_jax.preflight.signal import Rewards, balance, decided, signals, spread
from tests.preflight.planted import G, P, T, credits_of, planted

COSTS = {'sparse': Cost(4, 1, 4), 'dense': Cost(10, 4, 4), 'dense 1': Cost(4, 4, 4)}
SPEED = Spent(nfe=100, images=100, network_s=100.0, image_s=1.0)


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(signal, 'RESAMPLES', 200)


def found_in(rewards, own='dense', **changes):
    config, trained = default_config(), np.ones(rewards.steps, bool)
    config.update_from_flattened_dict(changes)
    found = signals(rewards, credits_of(rewards), trained, own)
    priced = prices(found, COSTS, SPEED)
    parts = spread(rewards), decided(rewards, trained)
    return priced, findings(config, *parts, found, priced, balance(rewards), trained)


def test_a_price_is_seconds_by_signal():
    rewards = planted((0.4, 0.3, 0.2, 1.0), error=0.5)
    found = signals(rewards, credits_of(rewards), np.ones(T, bool), 'dense')
    priced = {p.credit: p for p in prices(found, COSTS, SPEED)}
    assert [*priced] == sorted(priced, key=lambda name: priced[name].price)
    # 4 evaluations, 3 x 4 of the update, at a second each; 0.01 seconds an image
    assert priced['sparse'].seconds == pytest.approx(16.01)
    ratio = found.signal['sparse'].value / found.signal['dense'].value
    assert priced['sparse'].price == pytest.approx(16.01 / 22.04 / ratio)
    assert priced['dense'][3:] == pytest.approx((1, 1, 1))


def test_exact_one_step_completions_are_cheaper_than_dear_ones():
    _, found = found_in(planted((0.4, 0.3, 0.2, 1.0)))
    assert not any(a.stop for a in found)
    assert 'below that of dense, which is 1: dense 1 0.7' in found[0].reason


def test_completions_that_tell_nothing_are_not_cheaper():
    priced, found = found_in(planted((0.4, 0.3, 0.2, 1.0), error=50.0))
    assert priced[-1].credit == 'dense 1'
    assert 'no credit is measured to be cheaper than the dense credit' in found[0].reason


def test_only_the_prompt_matters():
    _, found = found_in(planted((0.0,) * T, first=0.0))
    assert found[-1].stop and '100% of the groups have no spread' in found[-1].reason


def test_only_the_first_noise_matters():
    _, found = found_in(planted((0.0,) * T, first=1.0))
    assert found[-1].stop and 'decides 0% of the reward' in found[-1].reason


def test_a_constant_reward_stops():
    same = lambda *shape: np.ones((*shape, P, G))
    _, found = found_in(
        Rewards(same(), same(), same(T), {0: same(T), 1: same(T)}, same(T + 1)).whole()
    )
    assert found[-1].stop


def test_images_without_a_score_are_told():
    rewards = planted()
    rewards = rewards._replace(terminal=rewards.terminal.copy())
    rewards.terminal[:, 0] = np.nan
    _, found = found_in(rewards.whole())
    assert '12% of the samples have no score' in found[0].reason


def test_losses_at_most_transitions_speak_for_calibration():
    rewards = planted((0.4, 0.3, 0.2, 1.0))
    for k in range(T):  # every completion is worse than the one before
        rewards.completions[0][k] -= 2.0 * k
    lower = rewards.terminal - 2.0 * T
    sunk = rewards._replace(terminal=lower, again=lower, twins=rewards.twins - 2.0 * T)
    _, found = found_in(sunk)
    assert 'noise.calibrate=True would lower' in found[-1].reason
    assert unbalanced(balance(sunk)).all() and not unbalanced(balance(planted())).any()
    _, found = found_in(sunk, **{'noise.calibrate': True})
    assert not any('noise.calibrate' in a.reason for a in found)


def noise(seed, **again):
    """Scores that have nothing to do with the images."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.standard_normal((*shape, P, G))
    terminal = draw()
    scored = again.get('again', terminal)
    return Rewards(terminal, scored, draw(T), {0: draw(T), 1: draw(T)}, draw(T + 1)).whole()


def test_a_judge_that_answers_at_random_stops():
    rng = np.random.default_rng(9)
    _, found = found_in(noise(3, again=rng.standard_normal((P, G))))
    assert found[-1].stop and 'is noise of the reward itself' in found[-1].reason


def test_a_reward_of_fine_noise_is_told():
    """The same image always scores alike, and images that differ by nothing visible do not."""
    _, found = found_in(noise(3))
    assert not any(a.stop for a in found)
    assert (
        'the last one decides' in found[0].reason and 'may respond to fine noise' in found[0].reason
    )


def test_a_signal_that_is_not_measured_says_so():
    _, found = found_in(planted((0.05, 0.05, 0.05, 0.05), first=20.0), own='sparse')
    assert 'is not told from 0' in found[-1].reason


def test_untrained_transitions_do_not_count():
    rewards = planted((0.0, 0.0, 0.0, 1.0), first=1.0)
    trained, config = np.array([True, True, True, False]), default_config()
    found = signals(rewards, credits_of(rewards), trained, 'dense')
    parts = spread(rewards), decided(rewards, trained)
    priced = prices(found, COSTS, SPEED)
    last = findings(config, *parts, found, priced, balance(rewards), trained)[-1]
    assert last.stop and 'decides 0% of the reward' in last.reason


def test_without_any_score_it_stops():
    rewards = planted()
    lost = rewards._replace(terminal=np.full_like(rewards.terminal, np.nan)).whole()
    _, found = found_in(lost)
    assert found[-1].stop and 'no group has two samples with a score' in found[-1].reason
