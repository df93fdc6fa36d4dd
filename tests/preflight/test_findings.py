"""Findings where the truth is planted."""

import re

import numpy as np
import pytest
from scipy.stats import binomtest

from densegrpo_jax.preflight.costs import Cost
from densegrpo_jax.preflight.findings import ENOUGH, MOST, Images, _of_last, findings, prices
from densegrpo_jax.preflight.groups import share_without, spread, without_spread
from densegrpo_jax.preflight.measure import Spent
from densegrpo_jax.preflight.signal import Rewards, decided, signals
from tests.preflight.planted import G, P, T, credits_of, planted

COSTS = {'sparse': Cost(4, 1, 12), 'dense': Cost(10, 4, 12), 'dense 1': Cost(4, 4, 12)}
SPEED = Spent(nfe=100, images=100, network_s=100.0, image_s=1.0)


def found_in(rewards, own='dense', trained=(True,) * T, group=G):
    """Findings of raw rewards; `group`: of training."""
    whole, trained = rewards.whole(), np.array(trained)
    found = signals(whole, credits_of(whole), trained, own)
    used, prompts = np.isfinite(whole.terminal).mean(), len(rewards.terminal)
    images, one = Images(rewards.failed(trained), used, prompts), spread(rewards.terminal)
    without = without_spread(rewards, trained, group)
    return findings(images, one, decided(whole, trained), found, trained, without, group)


def test_a_price_is_seconds_by_signal():
    rewards = planted((0.4, 0.3, 0.2, 1.0), error=0.5)
    found = signals(rewards, credits_of(rewards), np.ones(T, bool), 'dense')
    priced = {p.credit: p for p in prices(found, COSTS, SPEED)}
    assert [*priced] == sorted(priced, key=lambda name: priced[name].seconds)
    # 4 evaluations, 12 of the update, at a second each; 0.01 seconds an image
    assert priced['sparse'].seconds == pytest.approx(16.01)
    ratio = found.signal['sparse'].value / found.signal['dense'].value
    assert priced['sparse'].price == pytest.approx(16.01 / 22.04 / ratio)
    assert priced['dense'][3:] == pytest.approx((1, 1, 1))


@pytest.mark.parametrize('error', [0.0, 50.0])
def test_a_reward_that_several_steps_decide_has_no_findings_and_no_advice(error):
    """Exact completions of one step are cheap: that is a measurement, and nothing recommends it."""
    assert found_in(planted((0.4, 0.3, 0.4, 0.5), error=error)) == []


def test_only_the_prompt_matters():
    found = found_in(planted((0.0,) * T, first=0.0))
    assert found[-1].stop and f'100% of groups of {G} samples have no spread' in found[-1].reason


def test_only_the_first_noise_matters():
    found = found_in(planted((0.0,) * T, first=1.0))
    assert found[-1].stop and 'decides 0% of the variance' in found[-1].reason


@pytest.mark.parametrize('prompts', [4, 8])
def test_few_prompts_do_not_say_that_nothing_is_decided(prompts):
    """Of the planted variance the trained transitions decide a fifth."""
    for seed in range(20):
        rewards = planted((0.2 / T,) * T, first=0.8, seed=seed, prompts=prompts)
        assert not [f for f in found_in(rewards) if f.stop]


@pytest.mark.parametrize('group', [2, G, 24])
@pytest.mark.parametrize('value', [0.0, 1.0])
def test_a_constant_reward_stops(group, value):
    same = lambda *shape: np.full((*shape, 32, G), value)
    rewards = Rewards(same(), same(), same(T), {0: same(T), 1: same(T)}, same(T + 1))
    found = found_in(rewards, group=group)
    assert found[-1].stop and f'100% of groups of {group} samples' in found[-1].reason


def hits(chance, prompts=P):
    """A reward of 0 or 1 of which nothing is decided before the end."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: (rng.random((*shape, prompts, G)) < chance).astype(float)
    terminal = draw()
    return Rewards(terminal, terminal, draw(T), {0: draw(T), 1: draw(T)}, draw(T + 1))


def test_groups_smaller_than_those_of_training_do_not_stop_it():
    """Successes of 1 in 100: groups of 96 mostly have a spread. 8 samples have 32 twins."""
    rewards = hits(0.01)
    assert found_in(rewards)[-1].stop
    found = found_in(rewards, group=96)
    assert not any(f.stop for f in found) and '--group=96' in found[0].reason
    assert 'of groups of 40 samples' in found[0].reason
    found = found_in(rewards, group=24)  # 0.99^24 = 0.79
    assert not any(f.stop for f in found) and 'of groups of 24 samples' in found[0].reason


@pytest.mark.parametrize('size', [2, 5, 8, 24])
def test_groups_of_the_size_of_training_are_judged(size):
    rewards = hits(0.1)
    found = without_spread(rewards, np.ones(T, bool), size)
    assert found.size == size and found.share.low < 0.9**size + 0.1**size < found.share.high
    said = [f.reason for f in found_in(rewards, group=size) if 'no spread' in f.reason]
    assert bool(said) == (size < 8)


def test_the_share_without_a_spread_is_that_of_all_choices():
    rewards = np.array([[1, 1, 2, 1, np.nan], [0.3, 0.3, 0.3, 0.3, 0.3], [np.nan] * 4 + [1]])
    found = share_without(rewards, 3)  # one choice of four, all, and no group
    assert found.value == pytest.approx((1 / 4 + 1) / 2) and 0 < found.low < found.high < 1
    of_all = share_without(rewards, 5)
    assert of_all.value == 0.5
    assert of_all[1:] == pytest.approx(binomtest(1, 2).proportion_ci(), abs=1e-9)


@pytest.mark.parametrize('scale', [1e-12, 1e12])
def test_the_scale_of_a_reward_changes_nothing(scale):
    rewards = planted(prompts=32)
    times = lambda a: scale * a
    scaled = Rewards(
        *map(times, (rewards.terminal, rewards.again, rewards.twins)),
        {n: times(a) for n, a in rewards.completions.items()},
        rewards.similarity,
    )
    assert found_in(scaled) == found_in(rewards)


def test_images_without_a_score_are_told():
    rewards = planted()
    rewards = rewards._replace(terminal=rewards.terminal.copy())
    rewards.terminal[:, 0] = np.nan
    assert ' and 12% of the samples:' in found_in(rewards)[0].reason


def test_few_failed_images_leave_few_samples():
    """A sample has 14 images here: one in twenty without a score, and half of the samples go."""
    rewards, rng = planted(), np.random.default_rng(5)
    lost = lambda a: np.where(rng.random(a.shape) < 0.05, np.nan, a)
    twins, completions = lost(rewards.twins), {n: lost(a) for n, a in rewards.completions.items()}
    found = found_in(rewards._replace(twins=twins, completions=completions))
    assert re.match('4% of all images have no score, and 0% of the samples', found[0].reason)
    assert re.search('measured on the 5[0-9]% of samples', found[0].reason)
    nothing = rewards._replace(twins=np.full_like(twins, np.nan))
    assert 'what decides the reward is unknown' in found_in(nothing)[-1].reason


def noise(seed, prompt=0.0, **again):
    """Scores that have nothing to do with the images; prompts differ by a variance."""
    rng = np.random.default_rng(seed)
    of_prompt = np.sqrt(prompt) * rng.standard_normal((P, 1))
    draw = lambda *shape: rng.standard_normal((*shape, P, G)) + of_prompt
    terminal = draw()
    scored = again['again'] + of_prompt if again else terminal
    return Rewards(terminal, scored, draw(T), {0: draw(T), 1: draw(T)}, draw(T + 1))


@pytest.mark.parametrize('prompt', [0.0, 2.0])
def test_a_judge_that_answers_at_random_stops(prompt):
    rng = np.random.default_rng(9)
    found = found_in(noise(3, prompt, again=rng.standard_normal((P, G))))
    assert found[-1].stop and 'is noise of the reward itself' in found[-1].reason


@pytest.mark.parametrize('prompt', [0.0, 3.0])
def test_a_judge_of_whose_variance_most_is_noise_takes_more_samples(prompt):
    """80 % within groups, whatever tells prompts apart: advantages do not see that."""
    rewards = planted((0.3, 0.3, 0.2, 0.2), first=0.0, prompt=5 * prompt)
    rng = np.random.default_rng(3)
    heard = lambda a: a + 2 * rng.standard_normal(a.shape)
    found = found_in(
        rewards._replace(
            terminal=heard(rewards.terminal), again=heard(rewards.again), twins=heard(rewards.twins)
        )
    )
    assert not found[0].stop and 'is noise of the reward itself' in found[0].reason
    assert re.search('takes about [4-6](\\.[0-9])? times the samples with sparse', found[0].reason)


def test_noise_of_the_reward_takes_more_from_dense_credit_than_from_sparse():
    """Half of the variance is noise: sparse credit keeps half of its signal."""
    rewards = planted((0.1,) * 10, first=0.0, prompts=600)
    rng = np.random.default_rng(3)
    heard = lambda a: a + rng.standard_normal(a.shape)
    noisy = Rewards(
        *map(heard, (rewards.terminal, rewards.again, rewards.twins)),
        {n: heard(a) for n, a in rewards.completions.items()},
        rewards.similarity,
    )
    of = lambda r: signals(r, credits_of(r), np.ones(10, bool), 'dense').signal
    before, after = of(rewards), of(noisy)
    times = {name: before[name].value / after[name].value for name in ('sparse', 'dense')}
    assert 1.5 < times['sparse'] < 3 and times['dense'] > 10


@pytest.mark.parametrize('prompt', [0.0, 2.0])
def test_a_reward_of_fine_noise_is_told(prompt):
    """The same image always scores alike, and images that differ by nothing visible do not."""
    found = found_in(noise(3, prompt))
    assert not any(a.stop for a in found)
    assert (
        'the last one decides' in found[0].reason and 'may respond to fine noise' in found[0].reason
    )


def positive(variances, seed, prompts, group=G):
    """Whether a sum of parts is positive: of the first noise, and of each transition."""
    rng = np.random.default_rng(seed)
    parts = lambda: [np.sqrt(v) * rng.standard_normal((prompts, group)) for v in variances]
    own, steps = parts(), len(variances) - 1
    of_twin = lambda k: sum(own[: k + 1] + parts()[k + 1 :])
    above = [(total > 0).astype(float) for total in (sum(own), *map(of_twin, range(steps)))]
    twins = np.stack(above[1:])
    completions = {n: twins for n in (0, 1)}
    return Rewards(above[0], above[0], twins, completions, np.ones((steps + 1, prompts, group)))


def test_few_groups_with_a_spread_tell_nothing_of_shares():
    """Successes of 4 in 100, most of them decided by the first noise or by the prompt's luck."""
    for seed in range(20):
        rng, rare = np.random.default_rng(seed), positive((0.4, 0.2, 0.2, 0.2), seed, 32)
        keep = rng.random((32, 1)) < 0.3  # other prompts never succeed
        rare = Rewards(
            rare.terminal * keep,
            rare.again * keep,
            rare.twins * keep,
            {n: a * keep for n, a in rare.completions.items()},
            rare.similarity,
        )
        telling = decided(rare.whole()).telling
        found = found_in(rare, trained=(True,) * 3)
        assert telling == (np.ptp(rare.terminal, axis=1) > 0).sum()
        if telling < ENOUGH:
            assert found[-1].reason.startswith(f'of 32 groups {telling} have a spread')
            assert not any('last one decides' in f.reason or f.stop for f in found)


def test_failed_scores_leave_too_few_groups():
    """One image in ten without a score: few of 32 groups have two whole samples."""
    for seed in range(20):
        rewards = planted((0.2 / 6,) * 6, first=0.8, seed=seed, prompts=32)
        rng = np.random.default_rng(seed)
        lost = lambda a: np.where(rng.random(a.shape) < 0.1, np.nan, a)
        rewards = rewards._replace(
            twins=lost(rewards.twins),
            completions={n: lost(a) for n, a in rewards.completions.items()},
        )
        telling = decided(rewards.whole()).telling
        found = found_in(rewards, trained=(True,) * 6)
        assert telling < ENOUGH and not any(f.stop for f in found)
        assert found[-1].reason.startswith(f'of 32 groups {telling} have a spread')


def test_few_groups_that_all_have_a_spread_are_judged():
    found = found_in(planted((0.0,) * T, first=1.0, prompts=12))
    assert found[-1].stop and 'decides 0% of the variance' in found[-1].reason


def last_told(variances, prompts, seeds):
    """In how many data sets the last of three trained transitions is told."""
    trained = np.array([True, True, True])
    found = [positive(variances, seed, prompts).whole() for seed in range(seeds)]
    return sum(bool(_of_last(decided(rewards, trained), trained)) for rewards in found)


@pytest.mark.parametrize('prompts', [8, 32])
def test_a_last_step_that_decides_little_more_than_half_is_hardly_ever_told(prompts):
    """Var(E[1(x > 0) | x_k]) of a normal x is arcsin(rho_k) / 2 pi, rho_k the share of Var(x) that
    x_k decides.
    """
    variances = np.array([0.9, 0.1 / 3, 0.1 / 3, 0.1 / 3])
    known = np.arcsin(np.minimum(np.cumsum(variances), 1))
    of_all, of_trained = np.diff(known)[-1] / known[-1], np.diff(known)[-1] / (known[-1] - known[0])
    assert of_trained == pytest.approx(0.57, abs=0.005)
    many = decided(positive(variances, 0, 2000).whole())
    assert many.steps[-1].value == pytest.approx(of_all, abs=0.03)
    assert many.last.low < of_trained < many.last.high < MOST
    assert last_told(variances, prompts, seeds=100) <= 2


def test_a_reward_of_fine_noise_is_told_of_the_prompts_that_are_the_default():
    assert last_told([0, 0, 0, 1], prompts=32, seeds=50) >= 45


def test_the_fewest_prompts_and_samples_end_without_an_error():
    """Where what the trained transitions decide comes out as 0 or less, too."""
    trained = np.array([True, True, False])
    found = [positive((0.4, 0.2, 0.2, 0.2), seed, prompts=4, group=2) for seed in range(40)]
    together = [decided(rewards.whole(), trained).trained.value for rewards in found]
    assert 0 in together and np.nanmin(together) < 0
    for rewards in found:
        found_in(rewards, trained=trained)


@pytest.mark.parametrize('prompt', [0.0, 20.0])
def test_little_that_transitions_decide_is_enough_beside_any_prompts(prompt):
    """They decide a third within groups, and with prompts that differ a hundredth of all."""
    found = found_in(planted((0.1, 0.1, 0.1, 0.2), first=1.0, prompt=prompt))
    assert not any(a.stop for a in found)


def test_a_signal_that_is_not_measured_says_so():
    found = found_in(planted((0.05, 0.05, 0.05, 0.05), first=2.0, prompts=16), own='sparse')
    assert 'is not told from 0' in found[-1].reason


def test_untrained_transitions_do_not_count():
    rewards = planted((0.0, 0.0, 0.0, 1.0), first=1.0)
    last = found_in(rewards, trained=(True, True, True, False))[-1]
    assert last.stop and 'decides 0% of the variance' in last.reason


def test_without_any_score_it_stops():
    rewards = planted()
    found = found_in(rewards._replace(terminal=np.full_like(rewards.terminal, np.nan)))
    assert found[-1].stop and 'no group has two samples with a score' in found[-1].reason
