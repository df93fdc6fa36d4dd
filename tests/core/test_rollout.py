"""Rollouts: the dense scan against separate completions, its exact cost, reuse, randomness,
sharding and the flat record.
"""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densegrpo_jax.core.dense_reward import dense_reward, every_state, needed_states, state_rewards
from densegrpo_jax.core.masks import StepMasks, step_masks
from densegrpo_jax.core.ode_rollout import completion_grid, ode_rollout
from densegrpo_jax.core.rollout import run_plan
from densegrpo_jax.core.rollout_plan import state_points, trajectory_plan
from densegrpo_jax.core.sde_step import log_prob_ratio, sde_step
from densegrpo_jax.core.transitions import OUTCOME, transitions

GRID = np.array([1.0, 0.9, 0.75, 0.5, 0.2, 0.0], np.float32)
T = len(GRID) - 1
LEVELS = np.array([0.9, 0.8, 0.7, 0.6, 0.5], np.float32)
SHAPE = (4, 3, 5)
GROUPS = np.array([0, 0, 1, 1])
PAPER = step_masks(GRID, train_end=True)
DEFAULT = step_masks(GRID)
WINDOW = step_masks(GRID, first=1, last=3)
WEIGHTS = np.random.default_rng(0).standard_normal((5, 5)).astype(np.float32) / 2
X_INIT = np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)


MASKS = {'paper': PAPER, 'default': DEFAULT, 'window': WINDOW}
NOISE = np.random.default_rng(2).standard_normal((T, *SHAPE)).astype(np.float32)


def velocity(x, s):
    tanh = np.tanh if isinstance(x, np.ndarray) else jnp.tanh
    return tanh(x @ WEIGHTS) + s[:, None, None]


def noise(k):
    return jnp.asarray(NOISE)[k]


def rollout(masks=PAPER, levels=LEVELS, velocity_fn=velocity, complete=(), n=None, **options):
    plan = trajectory_plan(masks, state_points(complete), n)
    return run_plan(velocity_fn, X_INIT, GRID, levels, plan, noise, **options)


def cost(masks, states, n=None):
    return trajectory_plan(masks, state_points(states), n).nfe


@functools.cache
def all_states(name, n=None):
    return rollout(MASKS[name], complete=range(T + 1), n=n)


def completion_in_numpy(x, indices, grid=GRID):
    """Euler steps over the given grid indices."""
    x = np.asarray(x)
    for here, there in zip(indices[:-1], indices[1:]):
        x = x + (grid[there] - grid[here]) * velocity(x, np.full(len(x), grid[here]))
    return x


@pytest.mark.parametrize('name, n', [('window', None), ('default', None), ('window', 2)])
def test_what_samples_that_begin_alike_share_is_evaluated_once(name, n):
    """The way to the first noise, and completions from there: the rollout is the same."""
    masks = MASKS[name]
    start = np.repeat(X_INIT[::2], 2, 0)  # two prompts of two samples
    states = state_points(needed_states('dense', masks))
    rows = []

    def counted(x, s):
        jax.debug.callback(lambda given: rows.append(len(given)), s)
        return velocity(x, s)

    def run(beside):
        plan = trajectory_plan(masks, states, n, beside)
        found = jax.jit(lambda: run_plan(counted, start, GRID, LEVELS, plan, noise))()
        return plan, jax.block_until_ready(found)

    (alone, expected), (shared, found) = run(1), run(2)
    jax.effects_barrier()
    assert sum(rows) == 4 * (alone.nfe + shared.nfe) and rows.count(2) == 2 * (
        alone.nfe - shared.nfe
    )
    first = int(np.flatnonzero(masks.stochastic)[0])
    completions = [k for k in alone.states if k <= first]
    own = lambda k: (T - k if n is None else min(n, T - k)) - 1
    assert rows.count(2) == first + 1 + sum(own(k) for k in completions) and completions
    for name in ('latents', 'log_prob', 'completions', 'similarity'):
        np.testing.assert_allclose(
            getattr(found, name), getattr(expected, name), rtol=1e-5, atol=2e-6, err_msg=name
        )
    same = found.completions[: len(completions)]
    np.testing.assert_array_equal(same[:, ::2], same[:, 1::2])
    assert np.abs(found.completions[-1][::2] - found.completions[-1][1::2]).max() > 0.1


def test_without_completions_nothing_is_shared():
    assert trajectory_plan(PAPER, beside=4) == trajectory_plan(PAPER)


def test_completion_grid():
    assert completion_grid(10, 0) == tuple(range(11))
    assert completion_grid(10, 7) == (7, 8, 9, 10)
    assert completion_grid(10, 0, 1) == (0, 10)
    assert completion_grid(10, 3, 2) == (3, 7, 10)  # timesteps 7, floor(7 / 2) = 3, 0
    assert completion_grid(10, 0, 3) == (0, 4, 7, 10)  # timesteps 10, 6, 3, 0
    assert completion_grid(10, 10) == (10,)
    for num_steps in (1, 5, 10):
        for k in range(num_steps):
            for n in range(1, num_steps - k + 1):
                grid = completion_grid(num_steps, k, n)
                assert (
                    len(grid) == n + 1
                    and grid[0] == k
                    and grid[-1] == num_steps
                    and list(grid) == sorted(set(grid))
                )
    for k, n in ((0, 0), (0, 11), (8, 3), (11, None), (-1, None), (10, 1)):
        with pytest.raises(ValueError, match='state'):
            completion_grid(10, k, n)


@pytest.mark.parametrize('n', [None, 1, 2])
@pytest.mark.parametrize('name', MASKS)
def test_completions_are_those_of_a_separate_integration(name, n):
    dense = all_states(name, n)
    for k in range(T + 1):
        indices = completion_grid(T, k, None if n is None or k == T else min(n, T - k))
        expected = completion_in_numpy(dense.latents[k], indices)
        np.testing.assert_allclose(
            dense.completions[dense.plan.sources_of()[k]], expected, atol=2e-6, err_msg=f'state {k}'
        )
    np.testing.assert_array_equal(dense.completions[-1], dense.latents[-1])


@pytest.mark.parametrize('name', MASKS)
def test_trajectory_is_the_same_whether_states_are_completed_or_not(name):
    dense, masks = all_states(name), MASKS[name]
    plain = rollout(masks)
    assert plain.nfe == T and len(plain.completions) == 1
    for field in ('latents', 'log_prob', 'std', 'noise_level'):
        np.testing.assert_allclose(
            getattr(dense, field), getattr(plain, field), atol=2e-6, err_msg=field
        )
    np.testing.assert_array_equal(np.asarray(dense.std > 0).all(1), masks.stochastic)
    x = X_INIT
    for k in range(T):  # a host loop over the public step is the same sampler
        v = velocity(x, np.full(len(x), GRID[k]))
        level = LEVELS[k] * masks.stochastic[k]
        step = sde_step(v, x, GRID[k], GRID[k + 1], level, noise=NOISE[k])
        x = step.sample
        for found, expected in (
            (dense.latents[k + 1], x),
            (dense.log_prob[k], step.log_prob),
            (dense.std[k], step.std),
        ):
            np.testing.assert_allclose(found, expected, atol=2e-6)


def test_ode_rollout_equals_separate_integration():
    expected = completion_in_numpy(X_INIT, range(T + 1))
    np.testing.assert_allclose(ode_rollout(velocity, X_INIT, GRID), expected, atol=2e-6)
    np.testing.assert_allclose(
        ode_rollout(velocity, X_INIT, GRID, 1, 2), completion_in_numpy(X_INIT, (1, 3, 5)), atol=2e-6
    )
    np.testing.assert_array_equal(ode_rollout(velocity, X_INIT, GRID, T), X_INIT)
    one_step = X_INIT - velocity(X_INIT, np.ones(4, np.float32))
    np.testing.assert_allclose(ode_rollout(velocity, X_INIT, GRID, n=1), one_step, atol=1e-6)


@pytest.mark.parametrize(
    'masks, complete, n, expected',
    [
        (PAPER, range(T + 1), None, T + T * (T - 1) // 2),
        (PAPER, range(T + 1), 1, T),
        (PAPER, range(T + 1), 2, T + (T - 1)),
        (PAPER, needed_states('sparse', PAPER), None, T),
        (PAPER, needed_states('coca_share', PAPER), None, T),
        (PAPER, needed_states('dense', PAPER), None, T + T * (T - 1) // 2),
        (PAPER, needed_states('dense_baseline', PAPER), None, T + (T - 1) * (T - 2) // 2),
        (DEFAULT, range(T + 1), None, T + T * (T - 1) // 2),
        # states 1 and 2; state 3 is the sample
        (WINDOW, needed_states('dense', WINDOW), None, T + 3 + 2),
        # states 3 and 4, after the window, are the sample
        (WINDOW, needed_states('gae', WINDOW), None, T + 3 + 2),
        (PAPER, needed_states('gae', PAPER), None, T + T * (T - 1) // 2),
        (WINDOW, range(T + 1), None, T + 3 + 2),  # states 0 and 1 share a completion
    ],
)
def test_velocity_evaluations_are_counted_as_they_happen(masks, complete, n, expected):
    """The static count, and every real call of a running rollout."""
    calls = []

    def counting(x, s):
        jax.debug.callback(lambda: calls.append(1))
        assert x.shape == SHAPE and s.shape == SHAPE[:1]
        return velocity(x, s)

    dense = jax.block_until_ready(rollout(masks, velocity_fn=counting, complete=complete, n=n))
    jax.effects_barrier()
    assert len(calls) == dense.nfe == expected
    assert cost(masks, complete, n) == expected


@pytest.mark.parametrize(
    'every, states, expected',
    [(1, (1, 2, 3, 4), 36), (2, (1, 3), 24), (3, (1, 4), 23), (9, (1,), 18)],
)
def test_an_sde_window_completes_states_inside_it_alone(every, states, expected):
    """Of T = 10: 10 calls for the trajectory, 10 - k - 1 for a completed state k; state 5, where
    the window ends, is the sample.
    """
    grid = np.linspace(1, 0, 11)
    masks = step_masks(grid, first=1, last=5)
    needed = needed_states('dense', masks)
    assert needed == (1, 2, 3, 4, 5, 10)
    found = trajectory_plan(masks, state_points(every_state(needed, every)))
    assert found.states == (*states, 10)
    sources = found.sources_of()
    assert sources[0] == -1 and sources[5] == sources[10] == len(found.completions) - 1
    assert found.nfe == expected


def test_completing_every_second_state_at_the_sizes_of_the_paper_and_of_flux():
    for num_steps, every, expected in ((10, 2, 35), (10, 3, 28), (6, 2, 15), (6, 3, 13)):
        masks = step_masks(np.linspace(1, 0, num_steps + 1))
        assert cost(masks, every_state(needed_states('dense', masks), every)) == expected
        completed = range(0, num_steps - 1, every)
        assert expected == num_steps + sum(num_steps - k - 1 for k in completed)


def test_cost_at_the_sizes_of_the_paper_and_of_flux():
    for num_steps, expected in ((10, 55), (6, 21)):
        grid = np.linspace(1, 0, num_steps + 1)
        for masks in (step_masks(grid, train_end=True), step_masks(grid)):
            assert cost(masks, needed_states('dense', masks)) == expected
            assert cost(masks, needed_states('dense', masks), n=1) == num_steps
        # one trained step: its own state and its right neighbour
        two = StepMasks(masks.stochastic, np.arange(num_steps) == 2)
        assert cost(two, needed_states('dense', two)) == num_steps + (num_steps - 3) + (
            num_steps - 4
        )


def test_compiled_calls_equal_the_count_and_the_body_is_compiled_once():
    calls = collections.Counter()

    def counting(x, s):
        jax.debug.callback(lambda: calls.update(['all']))
        return velocity(x, s)

    run = jax.jit(lambda: rollout(velocity_fn=counting, complete=range(T + 1)))
    dense = jax.block_until_ready(run())
    jax.effects_barrier()
    assert calls['all'] == dense.nfe == T + T * (T - 1) // 2
    # The network is the only matrix product here: one copy of it in the whole program.
    program = jax.make_jaxpr(lambda: rollout(complete=range(T + 1)).latents)()
    assert str(program).count('dot_general') == 1
    # jit = no jit, and the static fields survive it.
    with jax.disable_jit():
        plain = rollout(complete=range(T + 1))
    assert dense.plan == plain.plan and hash(dense.plan) == hash(plain.plan)
    assert dense.plan.states == dense.plan.sources_of() == tuple(range(T + 1))
    for name in ('latents', 'completions', 'log_prob', 'similarity'):
        np.testing.assert_allclose(
            getattr(dense, name), getattr(plain, name), atol=2e-6, err_msg=name
        )


@pytest.mark.parametrize('kernel', ['sde', 'cps'])
def test_zero_noise_gives_exactly_zero_gains(kernel):
    dense = rollout(levels=np.zeros(T), kernel=kernel, complete=range(T + 1))
    assert len(dense.completions) == T + 1  # nothing was reused: the equality below is computed
    rewards = state_rewards(jnp.sin(10 * dense.completions).sum((2, 3)), dense.plan.sources_of())
    np.testing.assert_array_equal(dense_reward(rewards, 'dense'), 0)
    np.testing.assert_array_equal(dense.log_prob, 0)


def test_gains_telescope():
    dense = all_states('paper')
    rewards = state_rewards(dense.completions.mean((2, 3)), dense.plan.sources_of())
    gains = dense_reward(rewards, 'dense')
    assert np.abs(gains).min() > 0
    np.testing.assert_allclose(gains.sum(0), rewards[-1] - rewards[0], atol=1e-6)


def test_deterministic_transitions_have_zero_gain_by_reuse():
    dense = all_states('window')
    assert dense.plan.states == (1, 2, 5) and dense.plan.sources_of() == (0, 0, 1, 2, 2, 2)
    gains = np.asarray(
        dense_reward(
            state_rewards(dense.completions.mean((2, 3)), dense.plan.sources_of()), 'dense'
        )
    )
    np.testing.assert_array_equal(gains[[0, 3, 4]], 0)
    assert np.abs(gains[[1, 2]]).min() > 0


def test_similarity_is_the_cosine_of_the_predicted_clean_latent_with_the_sample():
    dense = all_states('paper')
    sample = np.asarray(dense.latents[-1]).reshape(4, -1)
    for k in range(T):
        s = np.full(4, GRID[k])
        predicted = np.asarray(dense.latents[k] - GRID[k] * velocity(dense.latents[k], s)).reshape(
            4, -1
        )
        cosine = (
            (predicted * sample).sum(1)
            / np.linalg.norm(predicted, axis=1)
            / np.linalg.norm(sample, axis=1)
        )
        np.testing.assert_allclose(dense.similarity[k], cosine, atol=1e-6)
    np.testing.assert_array_equal(dense.similarity[T], 1)


@pytest.mark.parametrize('name', MASKS)
def test_noise_levels_are_kept_where_noise_was_added(name):
    kept = np.asarray(all_states(name).noise_level)
    expected = np.where(MASKS[name].stochastic, LEVELS, 0).astype(np.float32)
    np.testing.assert_array_equal(kept, np.tile(expected[:, None], (1, 4)))


def test_noise_levels_per_sample_allow_one_window_per_group():
    levels = np.tile(LEVELS[:, None], (1, 4))
    levels[:2, :2] = 0
    levels[2:, 2:] = 0
    dense = rollout(levels=levels)
    np.testing.assert_array_equal(np.asarray(dense.std) > 0, levels > 0)
    alone = rollout(levels=levels[:, 0])
    np.testing.assert_allclose(dense.latents[:, 0], alone.latents[:, 0], atol=2e-6)


def test_eight_devices_equal_one():
    devices = jax.devices()
    if len(devices) < 8:
        pytest.skip('needs 8 devices')
    mesh = jax.sharding.Mesh(np.array(devices[:8]), ('data',))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
    x = np.tile(X_INIT, (2, 1, 1))

    def run(x):
        def noise(k):
            return jax.random.normal(jax.random.fold_in(jax.random.key(3), k), x.shape)

        dense = run_plan(velocity, x, GRID, LEVELS, all_states('paper').plan, noise)
        return dense.completions, dense.log_prob

    sharded = jax.jit(run)(jax.device_put(x, sharding))
    single = jax.jit(run)(jax.device_put(x, devices[0]))
    assert len(sharded[0].sharding.device_set) == 8
    for ours, expected in zip(sharded, single):
        np.testing.assert_allclose(ours, expected, atol=2e-6)


def test_transitions_are_flat_and_rescoring_them_gives_ratio_one():
    dense = all_states('default')
    advantages = np.arange(T * 4, dtype=np.float32).reshape(T, 4)
    valid = np.array([True, True, False, True])
    record = transitions(dense, {OUTCOME: advantages}, GROUPS, weight=np.arange(T) / 2, valid=valid)
    trained, samples = 4, 4
    assert all(leaf.shape[0] == trained * samples for leaf in jax.tree.leaves(record))
    for m in (0, 5, 11, 15):
        k, b = divmod(m, samples)
        np.testing.assert_array_equal(record.x[m], dense.latents[k, b])
        np.testing.assert_array_equal(record.x_next[m], dense.latents[k + 1, b])
        assert (record.s[m], record.s_next[m]) == (GRID[k], GRID[k + 1])
        assert (
            record.advantage[OUTCOME][m] == advantages[k, b]
            and record.weight[m] == k / 2
            and record.mask[m] == (b != 2)
        )
        assert record.prompt_id[m] == b // 2
    step = sde_step(
        velocity(record.x, record.s),
        record.x,
        record.s,
        record.s_next,
        record.noise_level,
        sample=record.x_next,
    )
    np.testing.assert_array_equal(step.std, record.std)
    assert np.abs(np.exp(log_prob_ratio(step, record.log_prob)) - 1)[record.mask].max() <= 1e-6


def test_what_is_masked_holds_nothing_that_is_not_finite():
    dense = all_states('default')
    dense = dataclasses.replace(dense, latents=dense.latents.at[2:, 2].set(jnp.nan))
    record = transitions(dense, {}, GROUPS, valid=np.array([True, True, False, True]))
    assert np.isfinite(record.x).all() and np.isfinite(record.x_next).all()
    assert (np.abs(record.x).max((1, 2)) > 0).tolist() == record.mask.tolist()


@pytest.mark.parametrize('kernel', ['sde', 'cps'])
def test_guidance_moves_the_samples_but_not_the_policy(kernel):
    guided_velocity = lambda x, s: velocity(x, s) + 0.3 * jnp.sin(x)
    pair = lambda x, s: (velocity(x, s), guided_velocity(x, s))
    both = rollout(velocity_fn=pair, complete=range(T + 1), kernel=kernel)
    guided = rollout(velocity_fn=guided_velocity, complete=range(T + 1), kernel=kernel)
    for field in ('latents', 'completions', 'similarity', 'std'):
        np.testing.assert_allclose(getattr(both, field), getattr(guided, field), atol=2e-6)
    # Re-scored by the plain network, every stored log-prob comes back; the guided one's is another.
    for k in range(T - (kernel == 'cps')):
        x, s, s_next = both.latents[k], np.full(4, GRID[k]), GRID[k + 1]
        step = sde_step(
            velocity(x, s), x, s, s_next, LEVELS[k], sample=both.latents[k + 1], kernel=kernel
        )
        assert np.abs(np.exp(log_prob_ratio(step, both.log_prob[k])) - 1).max() <= 1e-6
        assert np.abs(both.log_prob[k] - guided.log_prob[k]).max() > 1e-3


def test_transitions_with_zero_std_are_masked():
    # cps ends with std 0
    record = transitions(rollout(PAPER, kernel='cps'), {}, GROUPS)
    np.testing.assert_array_equal(
        np.asarray(record.mask).reshape(T, 4).all(1), [True] * (T - 1) + [False]
    )


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match='noise levels'):
        rollout(levels=LEVELS[:3])
    with pytest.raises(ValueError, match='state 0 ... 5'):
        rollout(complete=(T + 1,))
    with pytest.raises(ValueError, match='n is 0'):
        rollout(complete=(0,), n=0)
    with pytest.raises(ValueError, match='advantages'):
        transitions(all_states('paper'), {OUTCOME: np.zeros((T, 3))}, GROUPS[:3])
    with pytest.raises((ValueError, TypeError), match='group_ids'):
        transitions(all_states('paper'), {}, GROUPS[:2])
