"""What a rollout costs: its count of network evaluations, and the evaluations that happen."""

import collections

import jax
import numpy as np
import pytest

from densegrpo_jax.core.dense_reward import every_state, needed_states
from densegrpo_jax.core.masks import StepMasks, step_masks
from densegrpo_jax.core.rollout import run_plan
from densegrpo_jax.core.rollout_plan import state_points, trajectory_plan
from tests.core.small_rollout import (
    DEFAULT,
    GRID,
    LEVELS,
    MASKS,
    PAPER,
    SHAPE,
    WINDOW,
    X_INIT,
    T,
    noise,
    rollout,
    velocity,
)


def cost(masks, states, n=None):
    return trajectory_plan(masks, state_points(states), n).nfe


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
