"""From the scores of several rewards to the advantages of an iteration, as `credit.combine`
says.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from densegrpo_jax.config.schema import default_config
from densegrpo_jax.core.advantages import group_ids_of
from densegrpo_jax.core.masks import step_masks
from densegrpo_jax.core.prediction_rewards import Predictions
from densegrpo_jax.core.rollout import Rollout
from densegrpo_jax.core.rollout_plan import ANCHOR, X0HAT, Point, state_points, trajectory_plan
from densegrpo_jax.core.transitions import OUTCOME
from densegrpo_jax.sampling.schedule import Schedule
from densegrpo_jax.training.learner import make_credit

SIGMAS = np.float32([1, 0.8, 0.4, 0])
P, G = 2, 4
MASKS = step_masks(SIGMAS)
GROUPS = group_ids_of([G] * P)
WEIGHTS = {'a': 1.0, 'b': 2.0}


def rollout(states=(0, 1, 2, 3)):
    """T = 3, of which the last step is not trained: states 0, 1 and the sample, which is state 2's
    too, are scored.
    """
    steps = jnp.ones((3, P * G), jnp.float32)
    plan = trajectory_plan(MASKS, state_points(states))
    return Rollout(
        latents=jnp.zeros((4, P * G, 2)),
        s=steps,
        s_next=steps,
        log_prob=0 * steps,
        std=steps,
        noise_level=steps,
        completions=jnp.zeros((len(plan.completions), P * G, 2)),
        similarity=jnp.ones((4, P * G)),
        plan=plan,
    )


def schedule_of(sampled):
    return Schedule(SIGMAS, np.float32([0.7, 0.7, 0]), MASKS, sampled.plan)


def scores():
    rng = np.random.default_rng(0)
    return {
        'a': rng.random((3, P * G)).astype(np.float32),
        'b': (100 * rng.random((3, P * G))).astype(np.float32),
    }


def credit(
    combine, total, *single, weights=WEIGHTS, sampled=None, ids=GROUPS, valid=None, **changes
):
    config = default_config()
    config.rollout.update(steps=3, prompts=P, group=G, prompts_per_batch=P)
    config.credit.update(**{'combine': combine, 'std_eps': 0.0, 'clip': 100.0, **changes})
    sampled = sampled or rollout()
    batch, metrics = make_credit(config, schedule_of(sampled), weights=weights)(
        [sampled], total, np.ones(total.shape, bool) if valid is None else valid, ids, *single
    )
    return np.asarray(batch.advantage[OUTCOME]).reshape(2, P * G), metrics


def advantages(gains):
    groups = gains.reshape(2, P, G).astype(np.float64)
    return ((groups - groups.mean(2, keepdims=True)) / groups.std(2, keepdims=True)).reshape(
        2, P * G
    )


@pytest.fixture(scope='module')
def expected():
    """By the definitions, in NumPy."""
    gains = {name: np.diff(rows, axis=0) for name, rows in scores().items()}
    return {
        'sum': advantages(gains['a'] + 2 * gains['b']),
        'advantages': advantages(gains['a']) + 2 * advantages(gains['b']),
        'normalised': advantages(advantages(gains['a']) + 2 * advantages(gains['b'])),
    }


@pytest.mark.parametrize('combine', ['sum', 'normalised', 'advantages'])
def test_combinations(combine, expected):
    single = scores()
    total = single['a'] + np.float32(2) * single['b']
    found, metrics = credit(combine, total, single)
    np.testing.assert_allclose(found, expected[combine], atol=2e-4)
    assert all(
        np.abs(found - other).max() > 0.1 for name, other in expected.items() if name != combine
    )
    # Each reward on its own, and the raw total whatever is combined.
    for name, gains in (
        ('gain_of_a', np.diff(single['a'], axis=0)),
        ('gain_of_b', np.diff(single['b'], axis=0)),
    ):
        np.testing.assert_allclose(metrics[name], [*gains.mean(1), np.nan], rtol=1e-4)
    np.testing.assert_allclose(metrics['reward'], total[-1].mean(), rtol=1e-6)


def test_the_sum_needs_the_total_alone():
    total = scores()['a']
    alone, metrics = credit('sum', total, weights=None)
    beside, _ = credit('sum', total, scores())
    np.testing.assert_array_equal(alone, beside)
    assert not any(name.startswith('gain_of') for name in metrics)


def test_every_image_has_a_reward():
    with pytest.raises(ValueError, match='rewards have 4 rows; the plan scores 3 images'):
        credit('sum', np.zeros((4, P * G), np.float32), weights=None)


@pytest.mark.parametrize('decay', [0.0, 0.25, 1.0])
def test_gae(decay):
    """The last transition, which is deterministic and untrained, adds nothing: its states share a
    reward.
    """
    values = scores()['a']
    gains = np.diff(values, axis=0)
    gains = np.stack([gains[0] + decay * gains[1], gains[1]])
    found, metrics = credit('sum', values, rule='gae', gae_lambda=decay)
    np.testing.assert_allclose(found, advantages(gains), atol=2e-4)
    np.testing.assert_allclose(metrics['gain'], [*gains.mean(1), np.nan], atol=1e-6)


def test_metrics_leave_out_a_sample_whose_first_state_has_no_reward():
    """The reward of its final image counts for nothing either, here the best of its group."""
    total = scores()['a']
    valid, total[-1, 2] = np.ones(total.shape, bool), 9.0
    valid[0, 2] = False
    _, metrics = credit('sum', total, valid=valid)
    kept = np.delete(total, 2, axis=1)
    np.testing.assert_allclose(metrics['reward'], kept[-1].mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics['gain'][:2], np.diff(kept, axis=0).mean(1), rtol=1e-5)
    best = (kept[-1, : G - 1].max() + kept[-1, G - 1 :].max()) / 2
    np.testing.assert_allclose(metrics['reward_group_best'], best, rtol=1e-6)
    assert metrics['valid_share'] == 7 / 8
    valid[0, G:] = False  # a group without a score has no best
    _, metrics = credit('sum', total, valid=valid)
    np.testing.assert_allclose(metrics['reward_group_best'], kept[-1, : G - 1].max(), rtol=1e-6)


def test_groups_may_have_different_sizes():
    ids = group_ids_of([3, 5])
    total = scores()['a']
    found, metrics = credit('sum', total, ids=ids)
    gains = np.diff(total, axis=0).astype(np.float64)
    expected = np.concatenate(
        [
            (g - g.mean(1, keepdims=True)) / g.std(1, keepdims=True)
            for g in (gains[:, :3], gains[:, 3:])
        ],
        1,
    )
    np.testing.assert_allclose(found, expected, atol=2e-4)
    best = (total[-1, :3].max() + total[-1, 3:].max()) / 2
    np.testing.assert_allclose(metrics['reward_group_best'], best, rtol=1e-6)


@pytest.mark.parametrize('combine', ['sum', 'advantages'])
def test_gains_between_completed_states_are_shared_evenly(combine):
    """Every second state: 0 and the sample, which is state 2's too. Both trained steps earn half of
    what lies between.
    """
    single = {name: rows[[0, 2]] for name, rows in scores().items()}
    total = single['a'] + np.float32(2) * single['b']
    found, metrics = credit(combine, total, single, sampled=rollout((0, 2, 3)), completion_every=2)
    halves = {
        name: np.repeat(np.diff(rows, axis=0), 2, axis=0) / 2
        for name, rows in {'total': total, **single}.items()
    }
    expected = (
        advantages(halves['total'])
        if combine == 'sum'
        else advantages(halves['a']) + 2 * advantages(halves['b'])
    )
    np.testing.assert_allclose(found, expected, atol=2e-4)
    np.testing.assert_allclose(metrics['gain'], [*halves['total'].mean(1), np.nan], rtol=1e-4)
    np.testing.assert_allclose(metrics['gain_of_a'], [*halves['a'].mean(1), np.nan], rtol=1e-4)


def test_transitions_weigh_what_their_noise_says():
    config = default_config()
    config.rollout.update(steps=3, prompts=P, group=G, prompts_per_batch=P)
    sampled = dataclasses.replace(
        rollout(), std=jnp.asarray(np.repeat([[0.6], [0.2], [0.0]], P * G, 1), jnp.float32)
    )
    for power, expected in ((0.0, [1, 1]), (1.0, [1.5, 0.5])):
        config.loss.noise_power = power
        batch, _ = make_credit(config, schedule_of(sampled))(
            [sampled], scores()['a'], np.ones((3, P * G), bool), GROUPS
        )
        np.testing.assert_allclose(
            np.asarray(batch.weight).reshape(2, P * G), np.repeat([expected], P * G, 0).T, rtol=1e-6
        )


@pytest.mark.parametrize('rule', ['coca_share', 'coca_to_go'])
def test_coca_shares_out_the_normalised_terminal_reward(rule):
    """CoCA's code: the group advantage of the terminal reward times the share, so that a bad
    sample's large share is a large blame.
    """
    similarity = np.array([[0.0] * 8, [0.5] * 4 + [0.2] * 4, [0.9] * 8, [1.0] * 8], np.float32)
    sampled = dataclasses.replace(rollout(states=(3,)), similarity=jnp.asarray(similarity))
    total = scores()['a'][-1:]
    found, _ = credit('sum', total, weights=None, sampled=sampled, rule=rule, coca_signed=True)
    terminal = advantages(np.repeat(total, 2, 0))[0]
    shares = np.diff(similarity, axis=0)
    expected = {
        'coca_share': shares[:2],
        'coca_to_go': np.stack([shares.sum(0), shares[1:].sum(0)]),
    }[rule]
    np.testing.assert_allclose(found, terminal * expected, atol=2e-5)
    raw, _ = credit('sum', total, weights=None, sampled=sampled, rule=rule)
    assert np.abs(raw - found).max() > 0.1
    # states that are less like the sample than the one before have shares to go above 1
    sampled = dataclasses.replace(sampled, similarity=sampled.similarity.at[0].set(0.8))
    far, _ = credit('sum', total, weights=None, sampled=sampled, rule='coca_to_go')
    near, _ = credit('sum', total, weights=None, sampled=sampled, rule='coca_to_go', clip=0.5)
    np.testing.assert_array_equal(np.abs(near).max(), 0.5)
    assert np.abs(far).max() > 0.5


def test_sdpo_credits_the_predictions_of_each_sample():
    """Four pictures, one of each sample's own anchor; the returns are normalised at every step."""
    masks = step_masks(SIGMAS, train_end=True)
    points = [Point(X0HAT, 0), Point(X0HAT, 2), Point(ANCHOR, 0)]
    plan = trajectory_plan(masks, points)._replace(credited=(X0HAT,))
    rng = np.random.default_rng(3)
    anchor = np.int32([[1, 1, 0, 2, 1, 2, 1, 1]])
    cosines = rng.uniform(0.2, 1, (3, P * G, 3)).astype(np.float32)
    sampled = dataclasses.replace(
        rollout(), plan=plan, predictions=Predictions(jnp.asarray(anchor), jnp.asarray(cosines))
    )
    total = rng.random((4, P * G)).astype(np.float32)
    of = dict(zip(plan.points, plan.sources))
    first, last, middle = (total[of[p]].copy() for p in points)
    first[2], last[[3, 5]] = middle[2], middle[[3, 5]]  # the same predictions
    total[of[points[0]]], total[of[points[1]]] = first, last
    config = default_config()
    config.rollout.update(steps=3, prompts=P, group=G, prompts_per_batch=P)
    config.credit.update(rule='sdpo', std_eps=0.0, clip=100.0, sdpo_gamma=0.9)
    schedule = Schedule(SIGMAS, np.float32([0.7, 0.7, 0.7]), masks, plan)
    batch, metrics = make_credit(config, schedule)(
        [sampled], total, np.ones(total.shape, bool), GROUPS
    )
    r = np.einsum('kbj,jb->kb', cosines.astype(np.float64), [first, middle, last]) / cosines.sum(-1)
    r[anchor[0], range(P * G)] = middle
    r[0], r[2] = first, last
    returns = np.stack([r[0] + 0.9 * r[1] + 0.81 * r[2], r[1] + 0.9 * r[2], r[2]])
    groups = returns.reshape(3, P, G)
    expected = (groups - groups.mean(2, keepdims=True)) / groups.std(2, keepdims=True)
    found = np.asarray(batch.advantage[OUTCOME]).reshape(3, P, G)
    np.testing.assert_allclose(found, expected, atol=2e-4)
    np.testing.assert_allclose(metrics['reward'], total[-1].mean(), rtol=1e-6)
