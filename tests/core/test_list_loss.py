"""The listwise loss: LIRE's own numbers, its gradient against formulas and against PPO, what must
not change it, and who belongs to a list.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densegrpo_jax.core.grpo_loss import LossSums, grpo_loss
from densegrpo_jax.core.list_loss import (
    EFFECTIVE,
    LOGIT_MAX,
    list_loss,
    list_temperature_of,
    listwise_loss,
)
from densegrpo_jax.core.lists import list_ids, list_softmax, sample_rows
from densegrpo_jax.core.sde_step import sde_step

RNG = np.random.default_rng(0)
M, ELEMENTS = 12, 10
IDS = np.repeat([0, 1, 2], 4)
ALL = np.ones(M, bool)
LOG_RATIO = RNG.normal(size=M).astype(np.float32)
REWARD = RNG.normal(size=M).astype(np.float32)


@functools.partial(jax.jit, static_argnames=('temperature', 'reward_temperature'))
def terms(log_ratio, reward, ids=IDS, used=ALL, temperature=0.5, reward_temperature=1.0):
    options = {'temperature': temperature, 'reward_temperature': reward_temperature}
    return listwise_loss(log_ratio, reward, ids, used, **options)


@functools.partial(jax.jit, static_argnames=('temperature', 'reward_temperature'))
def slope(*args, **options):
    return jax.grad(lambda *args: terms(*args, **options).sum())(*args)


def test_the_numbers_of_its_source():
    """The loss of its trainer on two prompts with four answers: summed log-probabilities over 2,
    and rewards.
    """
    log_probs = jnp.float32([-9, -10, -8, -11, -3, -3.5, -3, -2])
    rewards = jnp.float32([0.2, 1, 0.5, 0, 2, -1, 0, 1])
    ids, used = np.repeat([0, 1], 4), np.ones(8, bool)
    p = list_softmax(log_probs / 2, ids, used)
    np.testing.assert_allclose(p[:4], [0.276004, 0.167405, 0.455054, 0.101536], rtol=1e-5)
    found = terms(log_probs, rewards, ids, used, temperature=2.0)
    # a list of 4 counts as 4 transitions
    np.testing.assert_allclose(found.reshape(2, 4).sum(1) / 4, [-0.249523, -0.258966], rtol=1e-5)


def test_two_members():
    """P_1 P_2 (R_1 - R_2) (dz_1 - dz_2), with the minus sign, twice for two transitions."""
    log_ratio, reward = jnp.float32([0.3, -0.2]), jnp.float32([1.0, 0.25])
    found = slope(log_ratio, reward, np.zeros(2, int), np.ones(2, bool), temperature=0.5)
    p1 = 1 / (1 + np.exp(-1.0))  # z = 0.6, -0.4
    r1 = 1 / (1 + np.exp(-0.75))
    each = -2 * p1 * (1 - p1) * (2 * r1 - 1) / 0.5
    np.testing.assert_allclose(found, [each, -each], rtol=1e-5)


def test_what_changes_nothing():
    plain = slope(LOG_RATIO, REWARD)
    np.testing.assert_allclose(slope(LOG_RATIO + 3, REWARD), plain, atol=1e-5)
    np.testing.assert_allclose(slope(LOG_RATIO, REWARD - 7), plain, atol=1e-5)
    shuffled = RNG.permutation(4)
    order = np.concatenate([4 * g + shuffled for g in range(3)])
    np.testing.assert_allclose(slope(LOG_RATIO[order], REWARD[order]), plain[order], atol=1e-6)
    np.testing.assert_allclose(plain.reshape(3, 4).sum(1), 0, atol=1e-6)
    assert np.abs(plain).min() > 1e-3


def test_rewards_that_say_nothing_move_nothing():
    equal = np.repeat(np.float32([3, 0, -1]), 4)
    np.testing.assert_allclose(slope(LOG_RATIO, equal), 0, atol=1e-6)
    np.testing.assert_allclose(slope(LOG_RATIO, REWARD, reward_temperature=1e7), 0, atol=1e-6)


def test_a_cold_softmax_of_rewards_has_the_best_alone():
    found = terms(LOG_RATIO, REWARD, reward_temperature=1e-4).reshape(3, 4)
    best = REWARD.reshape(3, 4).argmax(1)
    p = np.exp(LOG_RATIO.reshape(3, 4) / 0.5)
    p /= p.sum(1, keepdims=True)
    expected = np.where(np.arange(4) == best[:, None], -4 * p, 0)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_members_that_do_not_count_leave_their_list():
    """And a list of one, or of none, has no gradient."""
    used = np.array([1, 1, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0], bool)
    bad = lambda a: jnp.where(used, a, jnp.nan)
    found = slope(bad(LOG_RATIO), bad(REWARD), IDS, used)
    rest = [0, 1, 3]
    alone = slope(LOG_RATIO[rest], REWARD[rest], np.zeros(3, int), np.ones(3, bool))
    np.testing.assert_allclose(found[jnp.array(rest)], alone, rtol=1e-5)
    np.testing.assert_array_equal(np.delete(found, rest), 0)


@jax.jit
def steps_and_noise(policy):
    x = RNG_X
    v = jnp.tanh(x @ policy) + 0.3 * x
    return sde_step(v, x, 0.8, 0.6, 0.7, sample=x + NOISE)


RNG_X = RNG.normal(size=(M, 2, 5)).astype(np.float32)
NOISE = 0.3 * RNG.normal(size=(M, 2, 5)).astype(np.float32)
POLICY = RNG.normal(size=(5, 5)).astype(np.float32) / 2
OLD = steps_and_noise(POLICY).log_prob
WEIGHT = np.repeat(np.float32([1, 2, 0.5]), 4)


@functools.partial(jax.jit, static_argnames='temperature')
def loss_at(policy, reward=REWARD, mask=ALL, **changes):
    options = {'temperature': 0.0, 'reward_temperature': 1.0, **changes}
    step = steps_and_noise(policy)
    return list_loss(step, OLD, {'outcome': reward}, IDS, mask=mask, weight=WEIGHT, **options)


@pytest.mark.parametrize('temperature', [0.0, 0.03])
def test_on_policy_it_is_ppo_with_softmax_advantages(temperature):
    tau = list_temperature_of(temperature, ELEMENTS)
    assert tau == (temperature or 0.2)  # 2 / 10 elements
    r = np.exp(REWARD.reshape(3, 4).astype(np.float64))
    advantage = (r / r.sum(1, keepdims=True) - 1 / 4).reshape(-1) / tau

    def ppo(policy):
        step = steps_and_noise(policy)
        kept = {'mask': ALL, 'weight': WEIGHT, 'clip_range': 1e-4}
        return grpo_loss(step, OLD, jnp.float32(advantage), **kept).policy_sum

    expected = jax.jit(jax.grad(ppo))(POLICY)
    found = jax.jit(jax.grad(lambda p: loss_at(p, temperature=temperature).policy_sum))(POLICY)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_metrics():
    sums = loss_at(POLICY)
    assert sums.policy_count == M and sums.clip_sum == 0
    assert float(sums.sums[EFFECTIVE] / M) == pytest.approx(4, abs=1e-3)
    # the rounding of an unchanged policy, against the temperature
    assert sums.maxima[LOGIT_MAX] <= 1e-6 / 0.2 and sums.ratio_deviation_max <= 1e-6
    moved = POLICY + np.float32(0.2)
    sums, mask = loss_at(moved), ALL & (np.arange(M) != 5)
    log_ratio = np.asarray(steps_and_noise(moved).log_prob - OLD, np.float64)
    p = np.exp(log_ratio.reshape(3, 4) / 0.2)
    effective = p.sum(1) ** 2 / (p**2).sum(1)
    assert float(sums.sums[EFFECTIVE] / M) == pytest.approx(effective.mean(), rel=1e-3)
    assert float(sums.maxima[LOGIT_MAX]) == pytest.approx(np.abs(log_ratio).max() / 0.2, rel=1e-3)
    left = loss_at(moved, np.where(mask, REWARD, np.nan), mask)
    p[1, 1] = 0
    effective = p.sum(1) ** 2 / (p**2).sum(1)
    expected = effective @ [4, 3, 4] / 11
    assert float(left.sums[EFFECTIVE] / left.policy_count) == pytest.approx(expected, rel=1e-3)
    assert left.policy_count == M - 1


def by_sample(transitions=2):
    """(prompt, s, s_next) of whole trajectories: two prompts, transitions, three samples."""
    prompt = np.repeat(np.int32([4, 1]), 3 * transitions)
    s = np.tile(np.repeat(np.linspace(1, 0.5, transitions), 3), 2).astype(np.float32)
    return prompt, s, s - np.float32(0.25)


def test_the_samples_of_whole_trajectories():
    found = sample_rows(*by_sample())
    np.testing.assert_array_equal(found.row, [0, 1, 2, 0, 1, 2, 6, 7, 8, 6, 7, 8])
    np.testing.assert_array_equal(found.ids, np.repeat([0, 1], 6))
    alone = sample_rows(*(a[:3] for a in by_sample()))
    np.testing.assert_array_equal(alone.row, [0, 1, 2])
    one = sample_rows(*by_sample(1))
    np.testing.assert_array_equal(one.row, np.arange(6))


@pytest.mark.parametrize('used', [ALL, np.arange(M) % 6 != 4, np.arange(M) % 3 != 1])
def test_a_list_over_whole_trajectories(used):
    """With log-ratios that add up, the weight inside, and the mean of a sample's advantages."""
    samples = sample_rows(*by_sample())
    reward = np.where(used, REWARD, np.nan)

    @jax.jit
    def loss(policy):
        options = {'temperature': 0.4, 'reward_temperature': 2.0, 'samples': samples}
        step, given = steps_and_noise(policy), {'outcome': reward}
        return list_loss(step, OLD, given, IDS, mask=used, weight=WEIGHT, **options)

    @jax.jit
    def expected(policy):
        log_ratio = (WEIGHT * (steps_and_noise(policy).log_prob - OLD)).reshape(2, 2, 3)
        there = used.reshape(2, 2, 3)
        total = 0.0
        for p in range(2):
            kept = [i for i in range(3) if there[p, :, i].any()]
            moved = [(log_ratio[p, :, i] * there[p, :, i]).sum() / 0.4 for i in kept]
            r = [np.mean(REWARD.reshape(2, 2, 3)[p, there[p, :, i], i]) / 2 for i in kept]
            share = jax.nn.softmax(jnp.stack(moved)) * jax.nn.softmax(jnp.float32(r))
            for i, part in zip(kept, share):
                total -= len(kept) * there[p, :, i].sum() * part
        return total

    moved = POLICY + np.float32(0.1)
    assert float(loss(moved).policy_sum) == pytest.approx(float(expected(moved)), rel=1e-4)
    slope, wanted = (jax.jit(jax.grad(f))(moved) for f in (lambda p: loss(p).policy_sum, expected))
    np.testing.assert_allclose(slope, wanted, atol=1e-4 * np.abs(wanted).max())
    sums = loss(POLICY)
    assert sums.policy_count == used.sum() and sums.maxima[LOGIT_MAX] < 2e-5
    members = 3 if (used.reshape(2, 2, 3).any(1)).all() else 2
    assert float(sums.sums[EFFECTIVE] / used.sum()) == pytest.approx(members, abs=1e-3)


def test_batches_merge():
    a, b = loss_at(POLICY), loss_at(POLICY + np.float32(0.2))
    both = LossSums.zeros(sums=(EFFECTIVE,), maxima=(LOGIT_MAX,)).merge(b).merge(a)
    assert both.maxima == b.maxima
    np.testing.assert_allclose(both.sums[EFFECTIVE], a.sums[EFFECTIVE] + b.sums[EFFECTIVE])


def test_who_belongs_to_a_list():
    """Rows of one prompt at one transition; a microbatch may go from the end of a transition to the
    same prompt at the next.
    """
    prompts = jnp.int32([2, 2, 3, 3, 3, 3, 0, 0])
    s = jnp.float32([1, 1, 1, 1, 0.8, 0.8, 0.8, 0.8])
    s_next = jnp.float32([0.8, 0.8, 0.8, 0.8, 0.5, 0.2, 0.2, 0.2])
    np.testing.assert_array_equal(list_ids(prompts, s, s_next), [0, 0, 1, 1, 2, 3, 4, 4])
    merged = jnp.full(8, 0.1)  # steps of several lengths that end at one level
    np.testing.assert_array_equal(list_ids(prompts, s, merged), [0, 0, 1, 1, 2, 2, 3, 3])
