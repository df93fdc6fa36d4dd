"""Rollouts: the dense scan against separate completions, reuse, randomness, sharding and the flat
record.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densegrpo_jax.core.dense_reward import dense_reward, state_rewards
from densegrpo_jax.core.ode_rollout import completion_grid, ode_rollout
from densegrpo_jax.core.rollout import run_plan
from densegrpo_jax.core.sde_step import log_prob_ratio, sde_step
from densegrpo_jax.core.transitions import OUTCOME, transitions
from tests.core.small_rollout import GRID, LEVELS, MASKS, NOISE, PAPER, X_INIT, T, rollout, velocity

GROUPS = np.array([0, 0, 1, 1])


@functools.cache
def all_states(name, n=None):
    return rollout(MASKS[name], complete=range(T + 1), n=n)


def completion_in_numpy(x, indices, grid=GRID):
    """Euler steps over the given grid indices."""
    x = np.asarray(x)
    for here, there in zip(indices[:-1], indices[1:]):
        x = x + (grid[there] - grid[here]) * velocity(x, np.full(len(x), grid[here]))
    return x


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
