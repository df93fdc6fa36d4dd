import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densegrpo_jax.core.credit_rules import (
    CREDIT_RULES,
    CreditRule,
    as_credit_rule,
    coca_shares,
    read_all,
    read_offsets,
    turning_points,
)
from densegrpo_jax.core.dense_reward import dense_reward, every_state, needed_states, state_rewards
from densegrpo_jax.core.masks import StepMasks
from densegrpo_jax.core.plan_kinds import PLAN_KINDS, Setting
from densegrpo_jax.core.prediction_rewards import Predictions
from densegrpo_jax.core.rollout_plan import X0HAT
from tests.shapes import unchecked

REWARDS = np.array([[0.1, 0.5], [0.3, 0.5], [0.2, 0.9], [0.8, 0.4]], np.float32)  # T = 3, B = 2
SIMILARITY = np.array([[0.2, 0.5], [0.4, 0.4], [0.8, 0.9], [1.0, 1.0]], np.float32)


def masks(*trained, num_steps=5):
    mask = np.isin(np.arange(num_steps), trained)
    return StepMasks(np.ones(num_steps, bool), mask)


def test_needed_states():
    assert needed_states('sparse', masks(0, 1, 4)) == (5,)
    assert needed_states('coca_share', masks(0, 1)) == needed_states('coca_to_go', masks(2)) == (5,)
    assert needed_states('dense', masks(1, 3)) == (1, 2, 3, 4, 5)
    assert needed_states('dense', masks(1)) == (1, 2, 5)
    assert needed_states('dense_baseline', masks(1, 3)) == (2, 4, 5)
    assert needed_states('dense', masks(*range(5))) == (0, 1, 2, 3, 4, 5)
    assert needed_states('gae', masks(1, 2)) == (
        1,
        2,
        3,
        4,
        5,
    )  # the later ones too, trained or not
    assert needed_states('gae', masks(3)) == (3, 4, 5)


def test_hand_computed_rules():
    np.testing.assert_allclose(
        dense_reward(REWARDS, 'dense'), [[0.2, 0], [-0.1, 0.4], [0.6, -0.5]], atol=1e-7
    )
    np.testing.assert_array_equal(dense_reward(REWARDS), dense_reward(REWARDS, 'dense'))
    np.testing.assert_array_equal(dense_reward(REWARDS, 'dense_baseline'), REWARDS[1:])
    np.testing.assert_array_equal(dense_reward(REWARDS, 'sparse'), REWARDS[[3, 3, 3]])
    # Shares: (0.2, 0.4, 0.2) / 0.8 and (-0.1, 0.5, 0.1) / 0.5.
    np.testing.assert_allclose(
        dense_reward(REWARDS, 'coca_share', similarity=SIMILARITY),
        [[0.2, -0.08], [0.4, 0.4], [0.2, 0.08]],
        atol=1e-6,
    )
    np.testing.assert_allclose(
        dense_reward(REWARDS, 'coca_to_go', similarity=SIMILARITY),
        [[0.8, 0.4], [0.6, 0.48], [0.2, 0.08]],
        atol=1e-6,
    )
    np.testing.assert_allclose(
        dense_reward(REWARDS, 'coca_to_go', similarity=SIMILARITY, alpha=1.0),
        [[0.8, 0.4]] * 3,
        atol=1e-6,
    )


def test_gae_by_hand():
    # Gains (0.2, 0), (-0.1, 0.4), (0.6, -0.5) from the end, lambda = 0.5.
    expected = [[0.2 + 0.5 * 0.2, 0 + 0.5 * 0.15], [-0.1 + 0.5 * 0.6, 0.4 - 0.5 * 0.5], [0.6, -0.5]]
    np.testing.assert_allclose(dense_reward(REWARDS, 'gae', gae_lambda=0.5), expected, atol=1e-6)
    np.testing.assert_array_equal(
        dense_reward(REWARDS, 'gae'), dense_reward(REWARDS, 'gae', gae_lambda=0.5)
    )


def test_gae_ends_are_the_gain_and_the_terminal_reward_over_the_value():
    np.testing.assert_array_equal(
        dense_reward(REWARDS, 'gae', gae_lambda=0.0), dense_reward(REWARDS, 'dense')
    )
    np.testing.assert_allclose(
        dense_reward(REWARDS, 'gae', gae_lambda=1.0), REWARDS[-1] - REWARDS[:-1], atol=1e-6
    )


@pytest.mark.parametrize('decay', [0.0, 0.3, 0.9, 1.0])
def test_gae_telescopes_as_a_mixture_of_longer_and_longer_gains(decay):
    """A_k = (1 - lambda) sum_i lambda^(i-1) (V_{k+i} - V_k), with all the weight that is left on
    V_T - V_k.
    """
    rewards = np.random.default_rng(0).standard_normal((8, 3))
    expected = np.zeros((7, 3))
    for k in range(7):
        weights = (1 - decay) * decay ** np.arange(7 - k)
        weights[-1] = 1 - weights[:-1].sum()
        expected[k] = (weights[:, None] * (rewards[k + 1 :] - rewards[k])).sum(0)
    found = jax.jit(lambda r: dense_reward(r, 'gae', gae_lambda=decay))(rewards.astype(np.float32))
    np.testing.assert_allclose(found, expected, atol=1e-5)


# Rewards V_0 ... V_4 of a sample, its turning points for the paper (P) and for the code (C). The
# last transition's gain is all that follows, so the paper has no use for it.
COURSES = {
    'up, down, up to a rise': ([0, 2, 1, 3, 4], 'PC - PC -'),  # after both it rises on
    'down first to a rise': ([1, 0, 3, 2, 4], '- PC - C'),
    'up and up': ([0, 1, 2, 3, 4], 'PC - - -'),
    'too far, and back': ([0, 5, 1, 6, 4], 'C - C -'),  # beyond the end: not the paper's
    'up first to a fall': ([4, 6, 1, 3, 0], '- PC - C'),
    'ends where it began': ([1, 0, 2, 0, 1], '- - - -'),
    'nothing moves before the turn': ([0, 0, -1, 2, 2], '- - C -'),  # nothing is left after it
}


@pytest.mark.parametrize('name', COURSES)
def test_turning_points_by_hand(name):
    course, marks = COURSES[name]
    rewards = np.float32(course)[:, None]
    paper, code = (np.array([[key in mark] for mark in marks.split()]) for key in 'PC')
    np.testing.assert_array_equal(turning_points(rewards), paper)
    np.testing.assert_array_equal(turning_points(rewards, consistent=False), code)
    gains = np.diff(rewards, axis=0)
    expected = np.where(paper, rewards[-1] - rewards[:-1], gains)
    np.testing.assert_array_equal(dense_reward(rewards, 'turning'), expected)
    expected = rewards[-1] - rewards[0] + np.where(code, gains, 0)
    np.testing.assert_array_equal(dense_reward(rewards, 'turning_code'), expected)


def test_without_turning_points_tp_grpo_is_dense_and_its_code_sparse_with_a_baseline():
    # Down, level, up: no transition against the whole is followed by one along it.
    rewards = np.random.default_rng(0).random((4, 50)).astype(np.float32)
    rewards[1] = rewards[2] = rewards[0] - rewards[1]
    rewards[3] = rewards[0] + rewards[3]
    assert not np.asarray(turning_points(rewards, consistent=False)).any()
    np.testing.assert_array_equal(dense_reward(rewards, 'turning'), dense_reward(rewards))
    np.testing.assert_array_equal(
        dense_reward(rewards, 'turning_code'), dense_reward(rewards, 'sparse') - rewards[0]
    )


def test_a_turning_point_is_never_worth_less_than_its_gain_in_the_direction_of_the_whole():
    rewards = np.random.default_rng(1).random((8, 400)).astype(np.float32)
    found = np.asarray(turning_points(rewards))
    assert 0.1 < found.mean() < 0.5
    course = np.sign(rewards[-1] - rewards[0])
    more = (np.asarray(dense_reward(rewards, 'turning')) - np.diff(rewards, axis=0)) * course
    assert (more[found] > 0).all() and (more[~found] == 0).all()
    # turned upside down it is the same with the other sign
    np.testing.assert_array_equal(
        dense_reward(-rewards, 'turning'), -dense_reward(rewards, 'turning')
    )


def test_rules_read_only_the_states_they_declare():
    partial = np.array(REWARDS)
    partial[:3] = np.nan
    for credit in ('sparse', 'coca_share', 'coca_to_go'):
        assert np.isfinite(dense_reward(partial, credit, similarity=SIMILARITY)).all()
    partial = np.array(REWARDS)
    partial[0] = np.nan
    gains = dense_reward(partial, 'dense')
    assert np.isnan(gains[0]).all() and np.isfinite(gains[1:]).all()
    advantages = np.asarray(dense_reward(partial, 'gae'))
    assert np.isnan(advantages[0]).all()
    np.testing.assert_array_equal(advantages[1:], dense_reward(REWARDS, 'gae')[1:])


def test_coca_windows():
    c = np.array([0.1, 0.2, 0.4, 0.5, 0.9, 1.0], np.float32)[:, None]
    # Windows (0.2, 0.4), (0.5, 0.9), (1.0): means 0.3, 0.7, 1.0; gains 0.2, 0.4, 0.3 of 0.9.
    expected = np.array([0.2 / 2, 0.2 / 2, 0.4 / 2, 0.4 / 2, 0.3]) / 0.9
    np.testing.assert_allclose(coca_shares(c, 2)[:, 0], expected, atol=1e-6)
    np.testing.assert_allclose(coca_shares(c, 5)[:, 0], 0.2, atol=1e-6)
    random = np.random.default_rng(0).uniform(0, 0.9, (11, 6)).astype(np.float32)
    random[-1] = 1
    for window in (1, 3, 5, 10):
        shares = jax.jit(coca_shares, static_argnums=1)(random, window)
        usable = np.asarray(shares).std(0) > 0
        np.testing.assert_allclose(shares.sum(0), 1, atol=1e-5)
        assert usable.any() or window == 10
    ramp = np.linspace(0.2, 1, 6, dtype=np.float32)[:, None]
    np.testing.assert_allclose(coca_shares(ramp), 0.2, atol=1e-6)


def test_coca_shares_do_not_explode_when_nothing_rises():
    c = np.array([[1.0, 1.0], [0.3, 0.99999], [1.0, 1.0]], np.float32)
    shares = coca_shares(c)
    np.testing.assert_array_equal(shares, 0.5)


def test_state_rewards_spreads_shared_completions():
    values = np.array([[1.0, 2.0], [3.0, 4.0]])
    rewards = state_rewards(values, (0, 0, -1, 1))
    np.testing.assert_array_equal(rewards, [[1, 2], [1, 2], [np.nan, np.nan], [3, 4]])
    with pytest.raises(ValueError, match='1 rows; the rollout has at least 2'):
        state_rewards(values[:1], (0, 0, -1, 1))


def test_every_state():
    assert every_state((0, 1, 2, 3, 4, 5, 6), 1) == (0, 1, 2, 3, 4, 5, 6)
    assert every_state((0, 1, 2, 3, 4, 5, 6), 2) == (0, 2, 4, 5, 6)
    assert every_state((0, 1, 2, 3, 4, 5, 6), 3) == (0, 3, 5, 6)
    # a window: its last state bounds what is shared
    assert every_state((2, 3, 4, 5, 10), 2) == (2, 4, 5, 10)
    assert every_state((2, 3, 10), 9) == (2, 3, 10)
    assert every_state((10,), 2) == (10,)  # sparse
    with pytest.raises(ValueError, match='every is 0'):
        every_state((0, 1), 0)


GAINS_OF_ALL = CreditRule(lambda rewards: rewards[1:] - rewards[:-1], read_all)


@pytest.mark.parametrize(
    'rule, noisy, options, completed, values, expected',
    [
        # SD3.5's grid, silent from state 8 on: there a completion is the sample. The last gain is
        # made by 6 and 7 alone, and lambda = 0.5 sums from the end
        ('gae', range(8), {'gae_lambda': 0}, (0, 3, 6), (0, 0, 0, 1), {6: 0.5, 7: 0.5}),
        ('gae', range(8), {}, (0, 3, 6), (0, 0, 0, 1), {7: 0.5, 6: 0.75, 5: 0.375}),
        # rollout.last=3, every 4th state: states 3 and 4 are the sample
        (
            'gae',
            range(3),
            {'every': 4, 'gae_lambda': 0},
            (0,),
            (0, 1),
            dict.fromkeys(range(3), 1 / 3),
        ),
        # moving.steps=random: between 1 and 4 nothing adds noise, so V_2 = V_4
        ('dense', (1, 4), {'every': 2}, (1, 4), (0, 1, 1.5), {1: 1, 4: 0.5}),
        ('gae', (1, 4), {'every': 3, 'gae_lambda': 0}, (1, 4), (0, 1, 1.5), {1: 1, 4: 0.5}),
        # a window [2, 5): the states before it have the completion of state 2
        (GAINS_OF_ALL, (2, 3, 4), {'every': 4}, (2, 4), (0, 1, 3), {2: 0.5, 3: 0.5, 4: 2}),
        # completions of two steps end at the sample from state 8 on; of one step, from 9 on
        ('gae', range(8), {'n': 2, 'gae_lambda': 0}, (0, 3, 6), (0, 0, 0, 1), {6: 0.5, 7: 0.5}),
        ('gae', range(8), {'n': 1, 'gae_lambda': 0}, (0, 3, 6), (0, 0, 0, 1), {6: 1 / 3, 7: 1 / 3}),
    ],
)
def test_a_state_whose_reward_is_known_is_not_interpolated(
    rule, noisy, options, completed, values, expected
):
    """T = 10; every 3rd state is completed unless said otherwise. By hand: a gain goes to the noisy
    transitions between the completed states, and no more is completed for it.
    """
    options = {'every': 3, 'n': 0, **options}
    every, n = options.pop('every'), options.pop('n')
    on = np.isin(np.arange(10), noisy)
    setting = Setting(
        np.linspace(1, 0, 11), np.ones(10), StepMasks(on, on), max(noisy) + 1, as_credit_rule(rule)
    )
    plan = PLAN_KINDS['trajectory'].make(setting, completion_every=every, completion_steps=n)
    assert plan.states == (*completed, 10)
    assert plan.nfe == 10 + sum(min(n or 10, 10 - k) - 1 for k in completed)
    rewards = state_rewards(
        np.array(values, np.float32)[:, None], plan.sources_of(), interpolate=True
    )
    given = dense_reward(rewards, rule, **options)[:, 0]
    for k, credit in expected.items():
        assert given[k] == pytest.approx(credit, abs=1e-6)


def test_a_prediction_is_no_completion():
    """The prediction at a state costs an image of its own also where nothing adds noise."""
    on = np.arange(6) < 2
    rule = CreditRule(lambda rewards: rewards[1:], read_all, reads=X0HAT)
    setting = Setting(np.linspace(1, 0, 7), np.ones(6), StepMasks(on, on), 2, rule)
    plan = PLAN_KINDS['trajectory'].make(setting, completion_every=3)
    assert [k for k, c in enumerate(plan.sources_of(X0HAT)) if c >= 0] == [0, 3, 5, 6]


def test_rewards_between_completed_states_lie_on_a_line():
    values = np.array([[1.0, 2.0], [4.0, 0.0], [0.0, 1.0]], np.float32)
    rewards = state_rewards(values, (-1, 0, -1, -1, 1, -1, 2), interpolate=True)
    np.testing.assert_allclose(
        rewards[1:], [[1, 2], [2, 4 / 3], [3, 2 / 3], [4, 0], [2, 0.5], [0, 1]], atol=1e-6
    )
    assert np.isnan(rewards[0]).all()
    # what was scored stays exactly that
    np.testing.assert_array_equal(rewards[np.array([1, 4, 6])], values)
    gains = dense_reward(rewards, 'dense')[1:]
    np.testing.assert_allclose(gains[:3], np.tile(gains[:1], (3, 1)), atol=1e-6)  # shared evenly
    np.testing.assert_allclose(gains.sum(0), values[-1] - values[0], atol=1e-6)
    # Nothing is between: the same, also where completions are shared.
    for sources in ((0, 0, 1, 2), (-1, 0, 1, 2, 2)):
        np.testing.assert_array_equal(
            state_rewards(values, sources, interpolate=True), state_rewards(values, sources)
        )


def test_bad_arguments():
    with pytest.raises(ValueError, match='densee'):
        dense_reward(REWARDS, 'densee')
    for decay in (-0.1, 1.1):
        with pytest.raises(ValueError, match=f'gae_lambda is {decay}'):
            dense_reward(REWARDS, 'gae', gae_lambda=decay)
    with pytest.raises(ValueError, match='similarity'):
        dense_reward(REWARDS, 'coca_share')
    with pytest.raises(ValueError, match='shape'):
        unchecked(dense_reward)(REWARDS[0], 'dense')
    with pytest.raises(ValueError, match='window'):
        coca_shares(SIMILARITY, 4)
    with pytest.raises(ValueError, match=r"credit 'gae' has no option 'window'; it has \['gae_l"):
        dense_reward(REWARDS, 'gae', window=2)
    assert set(CREDIT_RULES) == {
        'sparse',
        'branch',
        'dense_baseline',
        'dense',
        'gae',
        'turning',
        'turning_code',
        'sdpo',
        'coca_share',
        'coca_to_go',
    }


def ahead(rewards, *, similarity, scale=1.0):
    return scale * (rewards[-1] - rewards[:-1]) * similarity[1:]


AHEAD = CreditRule(ahead, states=read_offsets(0), reads_similarity=True)


def test_a_rule_of_ones_own():
    assert needed_states(AHEAD, masks(1, 3)) == (1, 3, 5)
    expected = 2 * (REWARDS[3] - REWARDS[:3]) * SIMILARITY[1:]
    found = dense_reward(REWARDS, AHEAD, similarity=SIMILARITY, scale=2.0)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert AHEAD.options == {'scale': True}
    with pytest.raises(ValueError, match='credit ahead needs similarity'):
        dense_reward(REWARDS, AHEAD)
    with pytest.raises(ValueError, match=r"credit ahead has no option 'sacle'; it has \['scale'\]"):
        dense_reward(REWARDS, AHEAD, similarity=SIMILARITY, sacle=2.0)


def test_a_rule_that_is_none():
    whole = CreditRule(lambda rewards: rewards)
    with pytest.raises(ValueError, match=r'gave the shape \(4, 2\); expected \(3, 2\)'):
        dense_reward(REWARDS, whole)
    for offset in (-1, 2):
        beyond = CreditRule(lambda rewards: rewards[1:], states=read_offsets(offset))
        with pytest.raises(ValueError, match=r'reads the states \[.*\] of 0 \.\.\. 5'):
            needed_states(beyond, masks(0, 4))
    for assign, reads in ((ahead, False), (lambda rewards: rewards[1:], True)):
        with pytest.raises(ValueError, match=f'reads_similarity is {reads}; expected'):
            CreditRule(assign, reads_similarity=reads)
    with pytest.raises(ValueError, match='expected a CreditRule or one of'):
        needed_states('densee', masks(0))


def test_which_rules_share_out_the_terminal_reward():
    """Shares do not depend on V: the result is linear in V_T alone."""
    other = np.full_like(REWARDS, np.nan)
    other[-1] = 3 * REWARDS[-1]
    for name, rule in CREDIT_RULES.items():
        given = {'similarity': SIMILARITY} if rule.reads_similarity else {}
        if rule.reads_predictions:
            steps, batch = len(REWARDS) - 1, REWARDS.shape[1]
            anchor, alike = np.ones((1, batch), np.int32), np.ones((steps, batch, 3), np.float32)
            given['predictions'] = Predictions(jnp.asarray(anchor), jnp.asarray(alike))
        found, scaled = (np.asarray(dense_reward(v, rule, **given)) for v in (REWARDS, other))
        linear = np.allclose(3 * found, scaled, rtol=1e-5)
        assert linear == (rule.shares or rule.per_sample), name
        assert rule.per_sample == bool((found == found[0]).all()), name
        assert (needed_states(rule, masks(0, 2)) == (5,)) == linear, name
