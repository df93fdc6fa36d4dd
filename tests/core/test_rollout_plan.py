"""Tables of rollouts: that any table runs as it says, on one made by hand that no function of the
package makes, and that a table which does not hold together is refused.
"""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densegrpo_jax.core.masks import StepMasks, step_masks
from densegrpo_jax.core.rollout import run_plan
from densegrpo_jax.core.rollout_plan import (
    STATE,
    X0HAT,
    Jobs,
    Point,
    RolloutPlan,
    Write,
    check_plan,
    job_table,
    state_points,
    trajectory_plan,
    transition_rows,
)
from densegrpo_jax.core.transitions import transitions

GRID = np.array([1.0, 0.8, 0.6, 0.3, 0.0], np.float32)
LEVELS = np.array([0.5, 0.8, 0.4, 0.3], np.float32)
X_INIT = np.array([[1.0, -2.0], [0.5, 3.0]], np.float32)  # B = 2
NOISE = np.array([[[1, -1], [2, 0.5]], [[-0.5, 1], [0.25, -2]]], np.float32)  # k = 0 and 1


def velocity(x, s):
    return 2 * x + s[:, None]


def branch_plan():
    """Two branches off one silent trajectory of T = 4, each a noisy write beside the anchor's own:
    from state 0 to 1, and from state 1 over two steps at once to 3. Both go on by ODE.

    Rows: 0 ... 4 the anchor, 5 and 6 where the branches begin, 7 and 8 where they end, 9 scrap.
    """
    jobs = job_table(
        [
            (0, 0, [Write(1, 1), Write(5, 1, noisy=True)]),
            (1, 1, [Write(2, 2), Write(6, 3, noisy=True)]),
            (5, 1, [Write(7, 2)]),
            (2, 2, [Write(3, 3)]),
            (7, 2, [Write(7, 3)]),
            (3, 3, [Write(4, 4)]),
            (7, 3, [Write(7, 4)]),
            (6, 3, [Write(8, 4)]),
        ],
        scrap=9,
    )
    return RolloutPlan(
        num_steps=4,
        jobs=jobs,
        rows=10,
        kept=7,
        transitions=transition_rows(jobs, [(0, 1), (1, 1)], [True, True]),
        completions=(7, 8, 4),
        points=(Point('branch', 0), Point('branch', 1), Point(STATE, 4)),
        sources=(0, 1, 2),
        predictions=(),
    )


def euler(x, k, k_to):
    return x + (GRID[k_to] - GRID[k]) * (2 * x + GRID[k])


def noisy(x, k, k_to):
    """The sde kernel written out: (where the step ends, its std)."""
    s, dt = GRID[k], GRID[k] - GRID[k_to]
    v = 2 * x + s
    mean = x - dt * (v + LEVELS[k] ** 2 / (2 * s) * (x + (1 - s) * v))
    return mean + LEVELS[k] * np.sqrt(dt) * NOISE[k], LEVELS[k] * np.sqrt(dt)


@pytest.mark.parametrize('jitted', [True, False])
def test_a_branch_table_made_by_hand_runs_as_it_says(jitted):
    calls = collections.Counter()

    def counted(x, s):
        jax.debug.callback(lambda: calls.update(['all']))
        return velocity(x, s)

    def run():
        return run_plan(
            counted, X_INIT, GRID, LEVELS, branch_plan(), lambda k: jnp.asarray(NOISE)[k]
        )

    found = (jax.jit(run) if jitted else run)()
    jax.effects_barrier()
    assert calls['all'] == found.nfe == 8  # 4 of the anchor, 3 and 1 of the branches
    anchor = [X_INIT]
    for k in range(4):
        anchor.append(euler(anchor[k], k, k + 1))
    first, std_0 = noisy(anchor[0], 0, 1)
    second, std_1 = noisy(anchor[1], 1, 3)
    np.testing.assert_allclose(found.latents, [*anchor, first, second], rtol=1e-5)
    ends = [euler(euler(euler(first, 1, 2), 2, 3), 3, 4), euler(second, 3, 4), anchor[4]]
    np.testing.assert_allclose(found.completions, ends, rtol=1e-5, atol=1e-6)
    table, latents = found.plan.transitions, np.asarray(found.latents)
    x, x_next = latents[list(table.x_row)], latents[list(table.next_row)]
    np.testing.assert_allclose(x, anchor[:2], rtol=1e-5)
    np.testing.assert_allclose(x_next, [first, second], rtol=1e-5)
    of_batch = lambda values: np.repeat(np.float32(values)[:, None], 2, 1)
    np.testing.assert_array_equal(found.s, of_batch(GRID[[0, 1]]))
    np.testing.assert_array_equal(found.s_next, of_batch(GRID[[1, 3]]))
    np.testing.assert_array_equal(found.noise_level, of_batch(LEVELS[:2]))
    np.testing.assert_allclose(found.std, of_batch([std_0, std_1]), rtol=1e-6)
    log_prob = [
        -(noise**2).mean(1) / 2 - np.log(std) - np.log(2 * np.pi) / 2
        for noise, std in zip(NOISE, (std_0, std_1))
    ]
    np.testing.assert_allclose(found.log_prob, log_prob, rtol=1e-5)
    assert found.similarity is None
    assert found.plan.sources_of('branch') == (0, 1, -1, -1, -1)
    assert found.plan.sources_of() == (-1, -1, -1, -1, 2)

    record = transitions(found, {'a': np.array([[1.0, 2.0], [3.0, 4.0]])}, np.array([0, 0]))
    np.testing.assert_array_equal(record.x, x.reshape(4, 2))
    np.testing.assert_array_equal(record.x_next, x_next.reshape(4, 2))
    np.testing.assert_array_equal(record.advantage['a'], [1, 2, 3, 4])
    np.testing.assert_array_equal(record.s_next, GRID[[1, 1, 3, 3]])
    assert record.mask.all()

    # weights and validity of each transition of each sample
    each = {
        'weight': np.float32([[1, 2], [3, 4]]),
        'valid': np.array([[True, False], [True, True]]),
    }
    record = transitions(found, {}, np.array([0, 0]), **each)
    np.testing.assert_array_equal(record.weight, [1, 2, 3, 4])
    np.testing.assert_array_equal(record.mask, [True, False, True, True])


def test_predictions_are_points_like_completions():
    masks = step_masks(GRID)
    plan = trajectory_plan(masks, [*state_points([0]), Point(X0HAT, 0), Point(X0HAT, 2)])
    found = run_plan(velocity, X_INIT, GRID, LEVELS, plan, lambda k: jnp.asarray(NOISE)[k])
    assert found.nfe == 4 + 3 and len(found.completions) == 4
    assert plan.sources_of(X0HAT) == (1, -1, 2, -1, 3)  # at T it is the sample
    assert plan.sources_of() == (0, -1, -1, -1, 3)
    for k, row in ((0, 1), (2, 2)):
        x = np.asarray(found.latents[k])
        np.testing.assert_allclose(
            found.completions[row], x - GRID[k] * (2 * x + GRID[k]), rtol=1e-5
        )
    np.testing.assert_array_equal(found.completions[-1], found.latents[-1])


def test_a_prediction_is_clean_where_the_grid_does_not_end_at_zero():
    """As on the grids of diffusion models: x0hat = x - s v there too."""
    grid, points = GRID + np.float32([0, 0, 0, 0, 0.1]), [Point(X0HAT, k) for k in range(4)]
    plan = trajectory_plan(step_masks(grid), points)
    found = run_plan(velocity, X_INIT, grid, LEVELS, plan, lambda k: jnp.zeros_like(X_INIT))
    for k in range(4):
        x = np.asarray(found.latents[k])
        x0hat = found.completions[plan.sources_of(X0HAT)[k]]
        np.testing.assert_allclose(x0hat, x - grid[k] * (2 * x + grid[k]), rtol=1e-5, atol=1e-6)


def test_states_that_share_a_completion_are_known_by_the_last_of_them():
    masks = StepMasks(np.array([0, 0, 1, 1], bool), np.array([0, 0, 1, 1], bool))
    plan = trajectory_plan(masks, state_points(range(5)))
    assert plan.sources_of() == (0, 0, 0, 1, 2) and plan.states == (2, 3, 4)
    some = trajectory_plan(masks, state_points([0, 1, 3]))
    assert some.sources_of() == (0, 0, -1, 1, 2) and some.states == (1, 3, 4)


def test_the_steps_that_a_plan_trains_are_those_of_its_trained_transitions():
    masks = StepMasks(np.array([1, 1, 1, 0], bool), np.array([0, 1, 1, 0], bool))
    assert trajectory_plan(masks).trained_steps == (False, True, True, False)
    assert branch_plan().trained_steps == (True, True, False, False)
    branches = branch_plan()
    first = branches.transitions._replace(trained=(True, False))
    assert branches._replace(transitions=first).trained_steps == (True, False, False, False)


def test_a_trajectory_plan_is_refused_points_it_does_not_have():
    masks = step_masks(GRID)
    for point, message in (
        (Point(STATE, 5), 'state 0 ... 4'),
        (Point(X0HAT, 4), 'x0hat 0 ... 3'),
        (Point('branch', 0), "kind 'branch'.*'state', 'x0hat'"),
    ):
        with pytest.raises(ValueError, match=message):
            trajectory_plan(masks, [point])
    with pytest.raises(ValueError, match='n is 0'):
        trajectory_plan(masks, n=0)


def changed(job, read=None, write=None):
    """The branch plan with another row read, or another first write, in one job."""
    plan = branch_plan()
    jobs = plan.jobs
    put = lambda column, value: tuple(
        value if j == job and value is not None else old for j, old in enumerate(column)
    )
    rows = tuple(
        (write, *r[1:]) if j == job and write is not None else r for j, r in enumerate(jobs.row)
    )
    return plan._replace(jobs=Jobs(put(jobs.read, read), jobs.k_from, rows, *jobs[3:]))


@pytest.mark.parametrize(
    'plan, message',
    [
        (changed(0, read=7), 'job 0 reads row 7 at grid index 0; the row holds nothing yet'),
        (changed(4, read=1), 'job 4 reads row 1 at grid index 2; the row is at 1'),
        (changed(7, write=6), 'transition 1: row 1 or 6 is written again later'),
        (branch_plan()._replace(kept=6), 'transition 1: row 1 or 6 .* 6 rows that are kept'),
        (branch_plan()._replace(completions=(5, 8, 4)), 'row 5 is scored'),
        (branch_plan()._replace(predictions=(2,)), 'row 2 is scored'),
        (
            branch_plan()._replace(
                transitions=transition_rows(branch_plan().jobs, [(0, 0)], [True])
            ),
            'transition 0 is trained, but its write adds no noise',
        ),
    ],
)
def test_tables_that_do_not_hold_together_are_refused(plan, message):
    with pytest.raises(ValueError, match=message):
        check_plan(plan)
    with pytest.raises(ValueError, match=message):
        run_plan(velocity, X_INIT, GRID, LEVELS, plan, lambda k: jnp.asarray(NOISE)[k])


def test_a_plan_is_for_one_number_of_steps():
    masks = StepMasks(np.ones(2, bool), np.ones(2, bool))
    with pytest.raises(ValueError, match='the grid has 4 steps, the plan 2'):
        run_plan(velocity, X_INIT, GRID, LEVELS, trajectory_plan(masks), lambda k: X_INIT)
