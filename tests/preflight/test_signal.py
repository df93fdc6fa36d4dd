"""Credit's signal where the truth is planted: every transition adds a number of known variance."""

import numpy as np
import pytest

from densegrpo_jax.preflight.groups import balance, kept, spread
from densegrpo_jax.preflight.signal import Rewards, decided, signals, within
from tests.preflight.planted import G, P, T, credits_of, planted

ALL = np.ones(T, bool)


def test_a_covariance_within_groups_is_numpys():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 3, 5))
    a[0, 1] = np.nan
    want = np.cov(a[0, [0, 2, 3, 4]], b[0, [0, 2, 3, 4]])[0, 1]
    assert within(a, b)[0] == pytest.approx(want)
    assert np.isnan(within(a[:, :1], b[:, :1])).all()


def test_the_parts_of_the_variance_are_found():
    found = decided(planted())
    inner = 0.5 + 0.3 + 1.0
    wanted = (0.5, 0.0, 0.3, 0.0, 1.0)
    assert found.total == pytest.approx(2 + inner, rel=0.2) and found.reward.value == 0
    assert found.prompt.low <= 2 / (2 + inner) <= found.prompt.high
    assert found.trained.value == pytest.approx(sum(part.value for part in found.steps))
    for one, variance in zip((found.noise, *found.steps), wanted):
        assert one.low - 0.02 <= variance / inner <= one.high + 0.02, (one, variance)
    assert sum(part.value for part in (found.noise, *found.steps)) == pytest.approx(1)


@pytest.mark.parametrize('prompt', [0.0, 8.0])
def test_shares_within_groups_do_not_depend_on_the_prompts(prompt):
    one, other = decided(planted(prompt=prompt)), decided(planted(prompt=2.0))
    assert [p.value for p in one.steps] == pytest.approx([p.value for p in other.steps])


def test_the_signal_of_each_credit_is_that_of_its_formula():
    """Sparse credit carries all of the group's variance as noise, exact completions nothing, and
    completions with errors the errors of both ends.
    """
    d, first, error = np.array([0.4, 0.3, 0.2, 1.0]), 0.5, 0.5
    rewards = planted(tuple(d), first, error=error)
    found = signals(rewards, credits_of(rewards), np.ones(T, bool), 'sparse')
    errors = np.array([2, 2, 2, 1]) * error  # the terminal reward has none
    want = {
        'sparse': (d**2 / (first + d.sum())).sum() / d.sum(),
        'dense': 1.0,
        'dense 1': (d**2 / (d + errors)).sum() / d.sum(),
    }
    assert found.signal.keys() == want.keys()
    for name, value in want.items():
        one = found.signal[name]
        assert one.low <= value <= one.high, (name, one, value)
        assert one.value == pytest.approx(value, rel=0.25)
        parts = [part.value for part in found.parts[name]]
        assert sum(parts) == pytest.approx(one.value) and np.argmax(parts) == 3
    of_steps = d / d.sum()  # dense credit is the effect itself: a part of each step's share
    for part, share in zip(found.parts['dense'], of_steps):
        assert part.low <= share <= part.high
    for name, spreads in {'sparse': first + d.sum(), 'dense': d, 'dense 1': d + errors}.items():
        for square, value in zip(found.squares[name], np.broadcast_to(d / spreads, T)):
            assert square.low <= value <= square.high, (name, square, value)
    assert found.ratio['sparse'] == pytest.approx((1, 1, 1))
    ratio = found.ratio['dense']
    assert ratio.low <= 1 / want['sparse'] <= ratio.high and ratio.low > 1


def test_a_transition_that_decides_nothing_has_no_correlation():
    rewards, trained = planted((0.0, 0.3, 0.0, 1.0)), np.array([True, True, True, False])
    found = signals(rewards, credits_of(rewards), trained, 'dense').squares['dense']
    assert [np.isfinite(square.value) for square in found] == [False, True, False, False]
    assert found[1].value == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize('only', range(T))
def test_a_reward_that_one_step_decides_is_recognised(only):
    variances = tuple(float(k == only) for k in range(T))
    found = decided(planted(variances, first=0.0, prompt=0.0))
    assert [part.value > 0.8 for part in found.steps] == [k == only for k in range(T)]
    # one transition decides all: its credit is the reward itself
    rewards = planted(variances, 0.0, 0.0)
    of = signals(rewards, credits_of(rewards), np.ones(T, bool), 'dense').signal
    assert of['sparse'].value == pytest.approx(1, abs=0.2)


def test_a_reward_that_only_the_prompt_decides_teaches_nothing():
    rewards = planted((0.0,) * T, first=0.0)
    found = decided(rewards)
    assert found.prompt.value == pytest.approx(1) and np.isnan(found.noise.value)
    one = spread(rewards.terminal)
    assert one.ties == (1, 1, 1) and one.zero.value == one.zero.high == 1 and one.zero.low > 0.97
    assert one.deviation.value < 1e-9
    assert all(
        np.isnan(s.value)
        for s in signals(rewards, credits_of(rewards), np.ones(T, bool), 'dense').signal.values()
    )


def test_noise_of_the_reward_is_told_from_what_transitions_decide():
    """A judge that contradicts itself: half of the variance is its own."""
    rewards = planted((0.3, 0.3, 0.2, 0.2), first=0.0, prompt=2.0)
    rng = np.random.default_rng(3)
    noisy = lambda a: a + rng.standard_normal(a.shape)
    heard = rewards._replace(
        terminal=noisy(rewards.terminal), again=noisy(rewards.again), twins=noisy(rewards.twins)
    )
    found = decided(heard)
    assert found.reward.low < 0.5 < found.reward.high
    for one, share in zip(found.steps, (0.15, 0.15, 0.1, 0.1)):
        assert one.low - 0.02 <= share <= one.high + 0.02


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Completions with errors, ten transitions; 60 data sets of 32 prompts and of 8."""
    d, error = np.full(10, 0.1), 0.1
    errors = np.append(np.full(9, 2), 1) * error
    truth = {
        'sparse': (d**2 / d.sum()).sum() / d.sum(),
        'dense 1': (d**2 / (d + errors)).sum() / d.sum(),
        'first': 0.1,
        'trained': 0.9,
    }
    for prompts in (32, 8):
        hits = dict.fromkeys(truth, 0)
        for seed in range(60):
            rewards = planted(tuple(d), 0.0, 0.0, error, seed, prompts=prompts)
            parts = decided(rewards, np.arange(10) > 0)
            found = {'first': parts.steps[0], 'trained': parts.trained}
            if prompts == 32:
                found |= signals(rewards, credits_of(rewards), np.ones(10, bool), 'dense 1').signal
            for name in truth.keys() & found:
                hits[name] += found[name].low <= truth[name] <= found[name].high
        assert all(hits[name] >= 54 for name in truth.keys() & found), (prompts, hits)


def test_what_cannot_be_scored_is_left_out_alike():
    rewards = planted()
    holes = rewards._replace(twins=rewards.twins.copy())
    holes.twins[2, :, 0] = np.nan
    whole = holes.whole()
    assert np.isnan(whole.terminal[:, 0]).all() and np.isfinite(whole.terminal[:, 1:]).all()
    assert spread(whole.terminal).valid == pytest.approx(1 - 1 / G)
    assert spread(holes.terminal).valid == 1
    images = P * G * (1 + 1 + T + T + T - 1)  # of one step from the last state is the full one
    assert holes.failed(np.ones(T, bool)) == pytest.approx(P / images)
    # without noise there is no twin, but the image of the next state
    assert holes.failed(np.arange(T) != 2) == 0
    assert decided(whole).total == pytest.approx(decided(rewards).total, rel=0.15)
    for n in (0, 1):
        holes.completions[n][-1, 0, 1] = np.nan
    assert holes.failed(np.ones(T, bool)) == pytest.approx((P + 1) / images)


def flat(found):
    return np.concatenate([np.ravel(part) for part in found])


def test_prompts_without_whole_samples_are_no_observations():
    """Counted as such they narrow the intervals: 95 % ones held the truth in 76 to 89 %."""
    few = planted(prompts=4)
    lost = lambda a: np.concatenate([a, np.full_like(np.repeat(a[..., :1, :], 20, -2), np.nan)], -2)
    holes = Rewards(
        *map(lost, few[:3]), {n: lost(a) for n, a in few.completions.items()}, lost(few.similarity)
    )
    np.testing.assert_allclose(flat(decided(holes)), flat(decided(few)), rtol=1e-9)
    of = [signals(r, credits_of(r), ALL, 'dense') for r in (few, holes)]
    for one, other in zip(*(s.signal.values() for s in of)):
        np.testing.assert_allclose(other, one, rtol=1e-9)
    np.testing.assert_allclose(*(spread(r.terminal).deviation for r in (few, holes)), rtol=1e-9)


def test_ranks_and_balance():
    rewards = planted(error=4.0)
    found = kept(rewards, np.ones(T, bool))
    full, one = ([r.value for r in found.rank[n]] for n in (0, 1))
    assert full == sorted(full)  # later states have decided more
    assert full[0] == pytest.approx(np.sqrt(0.5 / 1.8), abs=0.1)
    assert found.rank[0][0].low < full[0] < found.rank[0][0].high
    assert all(noisy < exact for noisy, exact in zip(one, full))
    assert found.below[1].value == pytest.approx(np.mean(full) - np.mean(one))
    assert found.below[1].low > 0 and found.cheapest == 0
    more, less = balance(rewards)
    assert more[0] == less[0] == 0  # the first transition decides nothing
    assert abs(more[1] - less[1]) < 4 * np.sqrt(P * G) and more[1] + less[1] == P * G


def test_the_cheapest_completion_is_the_shortest_that_keeps_the_ranks():
    rewards = planted(error=4.0)
    exact = rewards.completions[0] + 1e-9 * rewards.completions[1]
    several = rewards._replace(completions=rewards.completions | {2: exact, 3: exact})
    assert kept(several, np.ones(T, bool)).cheapest == 2


def test_a_completion_that_scores_a_group_alike_keeps_no_order():
    """In 28 of 32 groups it is constant, as of a picture too blurred to be read."""
    rewards = planted(prompts=32)
    blurred = rewards.completions[0].copy()
    blurred[:, :28] = 0
    found = kept(rewards._replace(completions={0: rewards.completions[0], 1: blurred}), ALL)
    assert found.rank[1][-1].value < 0.2 and found.cheapest == 0


def test_few_prompts_do_not_make_a_completion_keep_the_order():
    for seed in range(10):
        assert kept(planted(error=1.0, prompts=4, seed=seed), ALL).cheapest == 0


def test_the_spread_of_hand_made_groups():
    r = np.array([[0.0, 0.0, 1.0], [2.0, 2.0, 2.0], [0.0, 3.0, np.nan], [5.0, np.nan, np.nan]])
    found = spread(r)
    assert found.zero.value == pytest.approx(1 / 3)  # a single sample is no group
    assert found.ties.value == pytest.approx((2 + 6) / (6 + 6 + 2))
    assert found.best.value == pytest.approx((2 / 3 + 0 + 1.5) / 3)
    assert found.deviation.value == pytest.approx(np.sqrt((1 / 3 + 0 + 4.5) / 3))
    assert found.valid == pytest.approx(9 / 12)
    assert found.zero.low <= found.zero.value <= found.zero.high
