"""Branches: their tables, cost and completions against the equations of G2RPO and E-GRPO, closed
forms on Gaussian data, and the degenerate cases that are a dense rollout.
"""

import collections
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densegrpo_jax.core.advantages import group_advantages
from densegrpo_jax.core.branch_plan import (
    BRANCH,
    branch_plan,
    merged_targets,
    step_spread,
    stride_grid,
    stride_kind,
)
from densegrpo_jax.core.combine import combined_advantages
from densegrpo_jax.core.dense_reward import dense_reward, state_rewards
from densegrpo_jax.core.masks import StepMasks
from densegrpo_jax.core.rollout import run_plan
from densegrpo_jax.core.rollout_plan import check_plan, state_points, trajectory_plan
from densegrpo_jax.core.schedules import flow_grpo_noise_levels
from tests.core.gaussian import TAU, velocity

GRID = np.array([1.0, 0.9, 0.75, 0.5, 0.2, 0.0], np.float32)
T, B = 5, 6
LEVELS = np.array([0.9, 0.8, 0.7, 0.6, 0.5], np.float32)
NOISE = np.random.default_rng(0).standard_normal((T, B, 3)).astype(np.float32)
START = np.repeat(np.random.default_rng(1).standard_normal((1, 3)), B, 0).astype(np.float32)


def flux_grid(steps=16, shift=3.0):
    s = np.linspace(1, 1 / steps, steps)
    return np.append(shift * s / (1 + (shift - 1) * s), 0)


def rollout(plan, levels=LEVELS, velocity_fn=velocity):
    noise = lambda k: jnp.asarray(NOISE)[k]
    return jax.jit(lambda: run_plan(velocity_fn, START, GRID, levels, plan, noise))()


@pytest.mark.parametrize(
    'steps, active, strides, shared, images',
    [
        (16, 8, (1,), 93.3, 8),
        (16, 8, (1, 2), 133.3, 16),
        (16, 8, (1, 2, 3), 158.3, 24),
        (6, 5, (1,), 15.5, 5),
        (6, 3, (1,), 12.5, 3),
        (6, 5, (1, 2), 19.5, 9),
    ],
)
def test_cost_of_the_paper(steps, active, strides, shared, images):
    """T/G + the sum over the branches, G = 12; our anchor ends with the last branch."""
    plan = branch_plan(steps, range(active), strides=strides)
    shared_plan = branch_plan(steps, range(active), strides=strides, copies=12)
    check_plan(shared_plan)
    assert shared_plan.nfe == pytest.approx(shared - (steps - active) / 12, abs=0.05)
    assert plan.nfe == pytest.approx(shared_plan.nfe + active * 11 / 12)
    assert plan.nfe == active + sum(
        steps - k - 1 + sum(math.ceil((steps - k - 1) / n) - 1 for n in strides if n > 1)
        - sum(stride_grid(steps, k + 1, n) == stride_grid(steps, k + 1, 1) for n in strides[1:])
        * (steps - k - 2)
        for k in range(active)
    )  # fmt: skip
    assert len(plan.completions) == images and len(plan.transitions.job) == active
    assert plan.trained_steps == tuple(k < active for k in range(steps))


def test_grids_of_strides():
    """T = 16. The paper visits the timesteps 1, 1 + n, 1 + 2n ...; ours are those of an n-step
    completion, which are the same for stride 2 where 2 divides t - 1.
    """
    assert stride_grid(16, 1, 2) == (1, 3, 5, 7, 9, 11, 13, 15, 16)
    assert stride_grid(16, 2, 2) == (2, 4, 6, 8, 10, 12, 14, 16)
    assert stride_grid(16, 3, 2) == (3, 5, 7, 9, 11, 13, 15, 16)
    assert stride_grid(16, 1, 3) == (1, 4, 7, 10, 13, 16)
    assert stride_grid(16, 3, 3) == (3, 6, 9, 11, 14, 16)
    assert stride_grid(16, 6, 3) == (6, 9, 11, 14, 16)
    assert stride_grid(16, 15, 3) == (15, 16)
    for k in range(1, 16):
        assert stride_grid(16, k, 1) == (*range(k, 17),)
        if k % 2:
            assert stride_grid(16, k, 2) == (*range(k, 16, 2), 16)


# Granular-GRPO's `run_ode_sample_step`, T = 16: the grid indices that a completion evaluates after
# the noisy step k = 0 ... 7, by stride. From the last of them it jumps to the clean latent.
VISITED = {
    1: [tuple(range(k + 1, 16)) for k in range(8)],
    2: [
        (1, 2, 4, 6, 8, 10, 12, 14),
        (2, 3, 5, 7, 9, 11, 13),
        (3, 4, 6, 8, 10, 12, 14),
        (4, 5, 7, 9, 11, 13),
        (5, 6, 8, 10, 12, 14),
        (6, 7, 9, 11, 13),
        (7, 8, 10, 12, 14),
        (8, 9, 11, 13),
    ],
    3: [
        (1, 2, 5, 8, 11),
        (2, 3, 6, 9, 12),
        (3, 4, 7, 10, 13),
        (4, 5, 8, 11),
        (5, 6, 9, 12),
        (6, 7, 10, 13),
        (7, 8, 11),
        (8, 9, 12),
    ],
}
# Where rounding to our grid is another: (stride, k) -> how much later the indices are there.
ROUNDED = {(3, 2): (0, 2, 2, 1, 1), (3, 5): (0, 2, 1, 1)}


@pytest.mark.parametrize('stride', [1, 2, 3])
@pytest.mark.parametrize('k', range(8))
def test_indices_of_the_released_code(k, stride):
    """As many evaluations from the same state to the clean end. The code's second evaluation is
    always the next grid point, which leaves a long jump at the end; ours are even, so that all but
    the first are later by the stride less one.
    """
    *ours, end = stride_grid(16, k + 1, stride)
    visited = VISITED[stride][k]
    # its list of indices, of which it does not evaluate the last
    assert visited == (k + 1, *range(k + 2, 17, stride))[:-1]
    later = ROUNDED.get((stride, k), (0, *[stride - 1] * (len(visited) - 1)))
    assert end == 16 and tuple(np.subtract(ours, visited)) == later
    assert max(np.diff([*ours, end])) <= stride


def test_merged_steps_of_the_paper():
    """E-GRPO's table for T = 16, shift 3, a = 0.7."""
    grid = flux_grid()
    levels = flow_grpo_noise_levels(grid, 0.7)
    spread = [step_spread(grid, levels, k, k + 1) for k in range(8)]
    np.testing.assert_allclose(spread, [2.89, 2.99, 2.14, 1.76, 1.54, 1.39, 1.28, 1.19], atol=5e-3)
    np.testing.assert_allclose(
        spread,
        math.sqrt(2 * math.pi * math.e) * levels[:8] * np.sqrt(-np.diff(grid)[:8]),
        rtol=1e-6,
    )
    table = {
        0: [1, 1, 1, 1, 1, 1, 1, 1],
        1.8: [1, 1, 1, 2, 2, 2, 2, 3],
        2.0: [1, 1, 1, 2, 2, 2, 3, 3],
        2.2: [1, 1, 2, 2, 2, 3, 3, 3],
        2.6: [1, 1, 2, 3, 3, 4, 4, 4],
    }
    for tau, lengths in table.items():
        targets = merged_targets(grid, levels, range(8), tau, 15)
        assert np.subtract(targets, range(16)).tolist() == lengths + [1] * 8
    plan = branch_plan(16, range(8), merged_targets(grid, levels, range(8), 2.2, 15))
    assert plan.nfe - 8 == 83 and plan.transitions.k_to[2] == 4


def test_merged_steps_end_where_noise_may():
    """The miniature's grid at T = 6: the last step stays below tau, and ends at 5."""
    grid = np.array([1, 0.88776731, 0.75984782, 0.61270529, 0.44165471, 0.24035396, 0])
    levels = flow_grpo_noise_levels(grid, 0.7)
    targets = merged_targets(grid, levels, range(5), 2.0, 5)
    assert targets == (1, 2, 4, 5, 5, 6)
    spread = [step_spread(grid, levels, k, k + 1) for k in range(6)]
    np.testing.assert_allclose(spread, [2.89, 2.91, 1.97, 1.50, 1.15, 0.80], atol=6e-3)
    assert branch_plan(6, range(5), targets).nfe == 5 + 13
    longer = [merged_targets(grid, levels, range(5), tau) for tau in np.linspace(0, 4, 9)]
    assert all(np.less_equal(a, b).all() for a, b in zip(longer, longer[1:]))
    assert longer[-1][:3] == (2, 3, 6)  # without a bound, up to the clean end


@pytest.mark.parametrize('targets', [None, [1, 3, 4, 4, 5]])
@pytest.mark.parametrize('strides', [(1,), (2, 1)])
def test_what_is_executed_is_what_the_plan_says(targets, strides):
    calls = collections.Counter()

    def counted(x, s):
        jax.debug.callback(lambda: calls.update(rows=len(x)))
        return velocity(x, s)

    plan, shared = (branch_plan(T, [0, 1, 2], targets, strides, copies) for copies in (1, 3))
    every, once = (rollout(p, velocity_fn=counted) for p in (plan, shared))
    jax.effects_barrier()
    assert calls['rows'] == B * (plan.nfe + shared.nfe) and shared.nfe == plan.nfe - 2
    # one evaluation for three samples gives what three give
    np.testing.assert_allclose(once.latents, every.latents, atol=1e-6)
    np.testing.assert_allclose(once.completions[-1], every.completions[-1], atol=1e-6)
    np.testing.assert_allclose(once.log_prob, every.log_prob, atol=1e-6)


def test_guided_samples_share_their_evaluation_too():
    """A pair (v, guided): the samples follow the second, the log-probability is of the first."""
    pair = lambda x, s: (velocity(x, s), velocity(x, s) + 0.3)
    every, once = (rollout(branch_plan(T, [0, 1], copies=c), velocity_fn=pair) for c in (1, B))
    plain = rollout(branch_plan(T, [0, 1]))
    for name in ('latents', 'completions', 'log_prob'):
        np.testing.assert_allclose(getattr(once, name), getattr(every, name), atol=1e-6)
    assert np.abs(once.completions - plain.completions).min() > 0.05


def ends_of(found):
    """The starts and the ends of its transitions."""
    table, latents = found.plan.transitions, np.asarray(found.latents)
    return latents[list(table.x_row)], latents[list(table.next_row)]


def test_the_law_of_a_branch_in_closed_form():
    """Gaussian data, affine velocity: x' of step k and its completion are affine in the noise, with
    std_k = sigma_k sqrt(s_k - s_target), and the ODE's factor for each grid point visited.
    """
    targets, strides = [1, 3, 4, 4, 5], (1, 2)
    plan = branch_plan(T, [0, 1, 2], targets, strides)
    found = rollout(plan)

    def factor(grid):
        s = np.float64(GRID)[list(grid)]
        p = (s[:-1] - (1 - s[:-1]) * TAU**2) / ((1 - s[:-1]) ** 2 * TAU**2 + s[:-1] ** 2)
        return np.prod(1 + np.diff(s) * p)

    anchor = np.asarray(found.latents[:3])
    x, x_next = ends_of(found)
    np.testing.assert_array_equal(x, anchor)
    assert np.ptp(anchor, axis=1).max() == 0  # one start, no noise: all copies are equal
    for n, k in enumerate(plan.transitions.k_from):
        std = LEVELS[k] * np.sqrt(GRID[k] - GRID[targets[k]])
        np.testing.assert_allclose(found.std[n], std, rtol=1e-5)
        branch = x_next[n]
        np.testing.assert_allclose(branch - branch[:1], std * (NOISE[k] - NOISE[k][:1]), atol=1e-5)
        np.testing.assert_array_equal(found.s_next[n], GRID[targets[k]])
        for stride in strides:
            end = found.completions[plan.sources_of(stride_kind(stride))[k]]
            slope = std * factor(stride_grid(T, targets[k], stride))
            np.testing.assert_allclose(end - end[:1], slope * (NOISE[k] - NOISE[k][:1]), atol=2e-5)
            # so a reward that is linear in x_0 has the variance (std_k prod a_j)^2 in a group
            np.testing.assert_allclose(
                np.var(np.asarray(end)[:, 0]), slope**2 * np.var(NOISE[k][:, 0]), rtol=1e-4
            )


def test_a_merged_step_is_that_of_the_released_code():
    """VisualGRPO's `_flow_grpo_step`, as one prints it: the mean and log-probability with the sigma
    of the start and the longer interval, from state 1 to 3.
    """
    plan = branch_plan(T, [1], [1, 3, 3, 4, 5])
    found = rollout(plan)
    (start,), (end,) = ends_of(found)
    x = np.float64(start)
    v = np.float64(velocity(start, jnp.full(B, GRID[1])))
    s, dt, sigma = float(GRID[1]), float(GRID[3]) - float(GRID[1]), float(LEVELS[1])
    mean = x * (1 + sigma**2 / (2 * s) * dt) + v * (1 + sigma**2 * (1 - s) / (2 * s)) * dt
    std = sigma * math.sqrt(-dt)
    np.testing.assert_allclose(end, mean + std * NOISE[1], atol=2e-6)
    z = (np.float64(end) - mean) / std
    log_prob = (-(z**2) / 2 - math.log(std) - math.log(2 * math.pi) / 2).mean(1)
    np.testing.assert_allclose(found.log_prob[0], log_prob, atol=2e-5)
    np.testing.assert_allclose(found.std[0], std, rtol=1e-6)


@pytest.mark.parametrize('k', range(4))
def test_a_branch_is_a_trajectory_that_is_silent_but_there(k):
    only = np.arange(T) == k
    masks = StepMasks(only, only)
    dense = rollout(trajectory_plan(masks, state_points([k, k + 1])))
    plan = branch_plan(T, range(4))
    found = rollout(plan)
    x, x_next = ends_of(found)
    np.testing.assert_allclose(x[k], dense.latents[k], atol=1e-6)
    np.testing.assert_allclose(x_next[k], dense.latents[k + 1], atol=1e-6)
    np.testing.assert_allclose(found.log_prob[k], dense.log_prob[k], atol=1e-6)
    after = dense.completions[dense.plan.sources_of()[k + 1]]
    np.testing.assert_allclose(found.completions[k], after, atol=1e-6)
    # V_k is common, so that gains rank like rewards: the same advantages
    reward = lambda x: jnp.sin(3 * x).sum(-1)
    gains = dense_reward(state_rewards(reward(dense.completions), dense.plan.sources_of()))
    values = state_rewards(reward(found.completions), plan.sources_of(BRANCH))
    of = lambda rewards: group_advantages(rewards[k : k + 1], 1, eps=0.0).values
    np.testing.assert_allclose(of(gains), of(dense_reward(values, 'branch')), atol=2e-4)


def test_without_noise_every_branch_is_the_anchor():
    silent = rollout(branch_plan(T, range(4), strides=(1, 2)), levels=np.zeros(T))
    whole = rollout(trajectory_plan(StepMasks(np.zeros(T, bool), np.zeros(T, bool))))
    sources = silent.plan.sources_of(BRANCH)
    for k in range(4):
        np.testing.assert_allclose(silent.completions[sources[k]], whole.completions[-1], atol=1e-6)
    assert not np.asarray(silent.std).any() and not np.asarray(silent.log_prob).any()


def test_branches_that_end_clean_are_their_own_completions():
    plan = branch_plan(3, [0, 2], [3, 2, 3], (1, 2))
    check_plan(plan)
    assert plan.nfe == 3 and len(plan.completions) == 2
    assert plan.sources_of(BRANCH) == plan.sources_of(stride_kind(2)) == (0, -1, 1, -1)


@pytest.mark.parametrize(
    'arguments, message',
    [
        ((5, []), r'active steps are \[\]; expected some of 0 ... 4'),
        ((5, [0, 5]), r'active steps are \[0, 5\]'),
        ((5, [1], [1, 1, 3, 4, 5]), 'the step from 1 ends at 1; expected 2 ... 5'),
        ((5, [1], None, ()), r'strides are \(\)'),
        ((5, [1], None, (1, 0)), r'strides are \(1, 0\)'),
    ],
)
def test_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        branch_plan(*arguments)


def test_advantages_of_strides_are_added_before_the_clip():
    """Three steps, four samples, two strides, by the definition in NumPy."""
    rng = np.random.default_rng(3)
    one, two = rng.random((2, 3, 4)).astype(np.float32)
    of = lambda r: (r - r.mean(1, keepdims=True)) / (r.std(1, keepdims=True) + 1e-4)
    add = lambda *sets, clip=100.0: combined_advantages(
        [{'r': s} for s in sets], {'r': 1.0}, 1, clip=clip
    )
    np.testing.assert_allclose(add(one, two).values, of(one) + of(two), atol=1e-5)
    np.testing.assert_array_equal(add(one, one).values, 2 * add(one).values)
    np.testing.assert_allclose(
        add(one, two, clip=0.8).values, np.clip(of(one) + of(two), -0.8, 0.8), atol=1e-5
    )
    np.testing.assert_allclose(add(one, two).values.mean(1), 0, atol=1e-6)
    # a group counts as flat if no stride tells its samples apart
    flat = np.ones((3, 4), np.float32)
    assert add(flat, two).zero_spread.tolist() == [0, 0, 0]
    assert add(flat, 2 * flat).zero_spread.tolist() == [1, 1, 1]
