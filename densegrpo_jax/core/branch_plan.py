"""The plan of branches: one noisy step at a time, each from a state of a silent trajectory
(G^2RPO, arXiv 2510.01982; merged steps: E-GRPO, arXiv 2601.00423).

All samples of a group share the initial noise, and the ODE carries it along the grid: the anchor.
At each active step k every sample leaves the anchor by one noisy step, its branch, and the ODE
completes the branch. The rewards of a group's branches at k then differ through the noise of step k
alone.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import ArrayLike, Float

from densegrpo_jax.core.ode_rollout import completion_grid
from densegrpo_jax.core.rollout_plan import Point, RolloutPlan, Write, job_table, transition_rows
from densegrpo_jax.core.schedules import Grid, check_grid

BRANCH = 'branch'  # the completion of the branch of step k, as a kind of `Point`


def stride_kind(stride: int) -> str:
    """The kind of a branch's point whose completion skips grid points: one per stride."""
    return BRANCH if stride == 1 else f'{BRANCH} by {stride}'


def stride_grid(num_steps: int, k: int, stride: int) -> tuple[int, ...]:
    """Grid indices that a completion of state k with this stride visits: every stride-th timestep,
    rounded to the grid of an n-step completion with n = ceil((T - k) / stride).
    """
    return completion_grid(num_steps, k, math.ceil((num_steps - k) / stride))


def branch_plan(
    num_steps: int,
    active: Iterable[int],
    targets: Sequence[int] | None = None,
    strides: Sequence[int] = (1,),
    copies: int = 1,
) -> RolloutPlan:
    """The anchor up to its last active state, and a branch with completions at every active step.

    The noisy step of a branch uses the velocity that the anchor has there, so it costs no
    evaluation; all completions of a branch share their first one. Completions whose grids are equal
    are one. Per sample that is

        (max(active) + 1) / copies  +  sum_k (1 + sum over the distinct grids of k of (steps - 1))

    evaluations, the second term without branches that end clean; and one image per distinct grid.

    Args:
        num_steps: T.
        active: steps k with a branch, 0 ... T-1.
        targets: [T] grid index at which the noisy step from k ends, k < target <= T; default k + 1.
        strides: of the completions, at least 1 each; a stride may appear several times, and then
            counts several times in the sum of advantages.
        copies: number of adjacent samples that share an anchor, which is evaluated once for them.

    Returns:
        RolloutPlan with one transition per active step, in their order. The last completion, which
        stands for the sample, is that of the last branch with the first stride.

    Raises:
        ValueError: no active step, or a step, target or stride out of range.
    """
    active = sorted({int(k) for k in active})
    if not active or active[0] < 0 or active[-1] >= num_steps:
        raise ValueError(f'active steps are {active}; expected some of 0 ... {num_steps - 1}')
    if targets is None:
        targets = range(1, num_steps + 1)
    ends = {k: int(targets[k]) for k in active}
    if wrong := [k for k, end in ends.items() if not k < end <= num_steps]:
        raise ValueError(
            f'the step from {wrong[0]} ends at {ends[wrong[0]]}; expected {wrong[0] + 1} ... '
            f'{num_steps}'
        )
    if not strides or min(strides) < 1:
        raise ValueError(f'strides are {tuple(strides)}; expected one or more, each at least 1')

    anchor = active[-1] + 1  # states 0 ... the last active one
    branch = {k: anchor + i for i, k in enumerate(active)}
    grids = {
        k: list(dict.fromkeys(stride_grid(num_steps, end, stride) for stride in strides))
        for k, end in ends.items()
    }
    # A branch that ends clean is its own completion.
    own = [(k, grid) for k in active for grid in grids[k] if len(grid) > 1]
    row = {at: anchor + len(active) + i for i, at in enumerate(own)}
    scrap = anchor + len(active) + len(own)
    of_grid = lambda k, grid: row.get((k, grid), branch[k])

    jobs = []
    for k in range(anchor):
        writes = [Write(k + 1, k + 1)] if k + 1 < anchor else []
        writes += [Write(branch[k], ends[k], noisy=True)] if k in ends else []
        jobs.append((k, k, writes))
    for k in active:
        split = [(row[k, grid], grid) for grid in grids[k] if len(grid) > 1]
        if split:
            jobs.append((branch[k], ends[k], [Write(r, grid[1]) for r, grid in split]))
        jobs += [(r, a, [Write(r, b)]) for r, grid in split for a, b in zip(grid[1:-1], grid[2:])]
    # The anchor, then waves of equal noise level.
    jobs = jobs[:anchor] + sorted(jobs[anchor:], key=lambda job: job[1])
    table = job_table(jobs, scrap)
    written = [(k, table.row[k].index(branch[k])) for k in active]

    scored = {
        Point(stride_kind(stride), k): of_grid(k, stride_grid(num_steps, ends[k], stride))
        for stride in dict.fromkeys(strides)
        for k in active
    }
    last = scored[Point(stride_kind(strides[0]), active[-1])]
    clean = [*dict.fromkeys(r for r in scored.values() if r != last), last]
    return RolloutPlan(
        num_steps=num_steps,
        jobs=table,
        rows=scrap + 1,
        kept=anchor + len(active),
        transitions=transition_rows(table, written, [True] * len(active)),
        completions=tuple(clean),
        points=tuple(scored),
        sources=tuple(clean.index(r) for r in scored.values()),
        predictions=(),
        credited=tuple(stride_kind(stride) for stride in strides),
        copies=() if copies == 1 else (copies,) * anchor + (1,) * (len(jobs) - anchor),
    )


def step_spread(sigmas: Grid, noise_levels: Float[ArrayLike, 'T'], k: int, k_to: int) -> float:
    """e^h of a step of the sde kernel from grid index k to k_to, h the entropy of one element:

    e^h = sqrt(2 pi e) sigma_k sqrt(s_k - s_j)
    """
    grid, levels = np.asarray(sigmas, np.float64), np.asarray(noise_levels, np.float64)
    return float(levels[k] * np.sqrt(2 * np.pi * np.e * (grid[k] - grid[k_to])))


def merged_targets(
    sigmas: Grid,
    noise_levels: Float[ArrayLike, 'T'],
    active: Iterable[int],
    tau: float,
    last: int | None = None,
) -> tuple[int, ...]:
    """The grid index at which each step ends if steps of low entropy are merged with those after
    them: for an active step k the first j > k with e^h(k -> j) > tau (`step_spread`).

    A merged step keeps the noise level of its start. Its end is at most `last`; a step that stays
    below tau even there ends there.

    Args:
        sigmas: the grid. noise_levels: sigma of the sde kernel.
        active: the steps that may be merged.
        tau: 0 merges nothing.
        last: the largest allowed end; default T.

    Returns:
        [T]; k + 1 where k is not active.
    """
    check_grid(sigmas)
    num_steps = len(sigmas) - 1
    last = num_steps if last is None else last
    targets = list(range(1, num_steps + 1))
    for k in active:
        ends = range(k + 1, max(last, k + 1) + 1)
        above = (j for j in ends if step_spread(sigmas, noise_levels, k, j) > tau)
        targets[k] = next(above, ends[-1])
    return tuple(targets)
