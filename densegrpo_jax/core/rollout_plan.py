"""The plan of a rollout, a table made on the host: the network evaluations in order, what each
writes, which writes are transitions, and what is scored.

`rollout.run_plan` runs any such table and does not know the rollout's shape; a shape is a function
that makes a table, such as `trajectory_plan`. The batch axis stays flat in all of them.
"""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from densegrpo_jax.core.masks import StepMasks, completion_source
from densegrpo_jax.core.ode_rollout import completion_grid

STATE = 'state'  # the completion of the trajectory's state k, as a kind of `Point`
X0HAT = 'x0hat'  # the network's prediction x_k - s_k v_k there
ANCHOR = 'anchor'  # of a sample's predictions the one least like the first and the last; k = 0


class Point(NamedTuple):
    """An image that gets a reward. A plan may have its own kinds, such as one per stride of a
    branch.
    """

    kind: str
    k: int


class Write(NamedTuple):
    """A step with the velocity of a job, and the row for its end."""

    row: int
    k_to: int  # grid index of the end; T + 1 is the clean latent, s = 0, on every grid
    noisy: bool = False  # a kernel step, with the noise of grid index k_from; else an Euler step


class Jobs(NamedTuple):
    """J network evaluations in order, each with W writes; unused writes go to a scrap row.

    All noisy writes of a job use the same noise.
    """

    read: tuple[int, ...]  # [J] row of the latent
    k_from: tuple[int, ...]  # [J] grid index of its noise level
    row: tuple[tuple[int, ...], ...]  # [J, W] as in `Write`
    k_to: tuple[tuple[int, ...], ...]  # [J, W]
    noisy: tuple[tuple[bool, ...], ...]  # [J, W]

    def part(self, first: int, last: int) -> 'Jobs':
        """The jobs first ... last - 1."""
        here = slice(first, last)
        return Jobs(
            self.read[here], self.k_from[here], self.row[here], self.k_to[here], self.noisy[here]
        )


class TransitionRows(NamedTuple):
    """N transitions x -> x_next of the policy; see `transition_rows`."""

    x_row: tuple[int, ...]  # [N] rows of the buffer
    next_row: tuple[int, ...]  # [N]
    k_from: tuple[int, ...]  # [N] grid indices
    k_to: tuple[int, ...]  # [N]
    job: tuple[int, ...]  # [N] the write that makes x_next
    slot: tuple[int, ...]  # [N]
    noisy: tuple[bool, ...]  # [N]
    trained: tuple[bool, ...]  # [N] the transition enters the loss


class RolloutPlan(NamedTuple):
    """A rollout as static data: hashable, so that it passes through jit with the arrays."""

    num_steps: int  # T of the grid
    jobs: Jobs
    rows: int  # of the buffer; row 0 is the initial noise
    kept: int  # number of first rows that the result keeps
    transitions: TransitionRows
    completions: tuple[int, ...]  # [S] rows of the distinct clean latents; the sample is the last
    points: tuple[Point, ...]  # what is scored
    sources: tuple[int, ...]  # for each point the completion, 0 ... S-1, whose reward it gets
    predictions: tuple[int, ...]  # [T] rows of x0hat_k, or () if the plan has none
    anchor: int | None = None  # row for the anchor among them, copied there once all jobs are done
    # Kinds of the points from which credit is taken; the advantages of several are added.
    credited: tuple[str, ...] = (STATE,)
    # [J] number of adjacent samples whose latents in a job are equal, so that the network evaluates
    # one of them; () is 1 everywhere.
    copies: tuple[int, ...] = ()
    # [T] number of adjacent samples that make the transition from grid index k with the same noise,
    # as one node of a tree; () is 1 everywhere.
    together: tuple[int, ...] = ()
    # Where nodes split, the weight of a child's own noise against 1 for its siblings' common one.
    split_noise: float = 1.0

    @property
    def nfe(self) -> float:
        """Network evaluations per sample; not a whole number where samples share some."""
        total = sum(Fraction(1, c) for c in self.copies) if self.copies else len(self.jobs.read)
        return int(total) if total == int(total) else float(total)

    @property
    def trained_steps(self) -> tuple[bool, ...]:
        """[T] whether the plan has a trained transition that starts at grid index k. It has at most
        one transition for each.
        """
        starts = {k for k, on in zip(self.transitions.k_from, self.transitions.trained) if on}
        return tuple(k in starts for k in range(self.num_steps))

    @property
    def states(self) -> tuple[int, ...]:
        """For each distinct completion of a state, the last requested state that has it; the list
        ends with T, the sample's.
        """
        last = {c: k for k, c in enumerate(self.sources_of(STATE)) if c >= 0}
        return tuple(last[c] for c in sorted(last))

    def sources_of(self, kind: str = STATE) -> tuple[int, ...]:
        """T+1 entries: the completion whose reward the point (kind, k) gets; -1: there is none. The
        prediction at T is the sample itself.
        """
        of = dict(zip(self.points, self.sources))
        if kind == X0HAT and Point(STATE, self.num_steps) in of:
            of[Point(X0HAT, self.num_steps)] = of[Point(STATE, self.num_steps)]
        return tuple(of.get(Point(kind, k), -1) for k in range(self.num_steps + 1))


def state_points(states: Iterable[int]) -> tuple[Point, ...]:
    """The completions of these states of the trajectory as points."""
    return tuple(Point(STATE, int(k)) for k in states)


def trajectory_plan(
    masks: StepMasks, points: Iterable[Point] = (), n: int | None = None, beside: int = 1
) -> RolloutPlan:
    """One trajectory over the whole grid, with completions of its states by ODE.

    A completion of state k begins with the same velocity that the step of state k has just used, so
    completing all states with every remaining grid point costs T + T (T - 1) / 2 evaluations per
    sample, T of them for the trajectory. States whose completions are known to coincide
    (`completion_source`) share one. State T, the sample, is always scored.

    Samples that begin alike are alike up to the first noise: with `beside` a completion from there
    is evaluated once for all of them, and so are the steps that lead to it. A window of w
    transitions after which the ODE leads to the sample so costs w - 1 completions of a sample, and
    one for all that are alike.

    Args:
        masks: of T transitions.
        points: of the kinds STATE, k = 0 ... T, X0HAT, k = 0 ... T-1, and ANCHOR, k = 0.
        n: steps of a completion, n >= 1; states with fewer remaining use all of them. None means
            all remaining (the paper's n = t).
        beside: number of adjacent samples with one initial noise.

    Returns:
        RolloutPlan with N = T transitions and the states 0 ... T in the kept rows; `nfe` is T + the
        sum over the completed states k, other than T, of min(n, T - k) - 1, less what is shared.

    Raises:
        ValueError: the trajectory does not have a point, or n < 1.
    """
    num_steps = len(masks.stochastic)
    asked = sorted({*points, Point(STATE, num_steps)})
    _check_points(asked, num_steps)
    if n is not None and n < 1:
        raise ValueError(f'n is {n}; a completion needs at least 1 step')
    source = {p.k: completion_source(masks, p.k, n) for p in asked if p.kind == STATE}
    own = sorted({*source.values()} - {num_steps})
    completed = {k: num_steps + 1 + i for i, k in enumerate(own)}  # state -> row
    first = num_steps + 1 + len(own)
    predicted = range(first, first + num_steps)
    scrap = first + num_steps
    anchor = scrap + 1 if Point(ANCHOR, 0) in asked else None

    steps, later = [], []
    for k in range(num_steps):
        step = Write(k + 1, k + 1, bool(masks.stochastic[k]))
        writes = [step, Write(predicted[k], num_steps + 1)]
        if k in completed:
            row = completed[k]
            grid = completion_grid(num_steps, k, None if n is None else min(n, num_steps - k))
            writes.append(Write(row, grid[1]))
            later += [(row, a, [Write(row, b)]) for a, b in zip(grid[1:-1], grid[2:])]
        steps.append((k, k, writes))
    # Rows in which samples that begin alike are alike. Only a completion from there is worth the
    # second network body.
    first_noise = int(np.flatnonzero([*masks.stochastic, True])[0])
    of_these = {row for k, row in completed.items() if k <= first_noise}
    worth = beside > 1 and any(row in of_these for row, *_ in later)
    alike = {*range(first_noise + 1), *of_these} if worth else set()
    # What is shared, then waves of equal noise level, the trajectory first.
    ordered = sorted(steps + later, key=lambda job: (job[0] not in alike, job[1]))
    shared = sum(row in alike for row, *_ in ordered)
    jobs = job_table(ordered, scrap)
    written = [(ordered.index(step), 0) for step in steps]

    rows = {p: completed.get(source[p.k], num_steps) for p in asked if p.kind == STATE}
    rows |= {p: predicted[p.k] for p in asked if p.kind == X0HAT}
    if anchor is not None:
        rows[Point(ANCHOR, 0)] = anchor
    clean = [*completed.values(), *(row for p, row in rows.items() if p.kind != STATE), num_steps]
    return RolloutPlan(
        num_steps=num_steps,
        jobs=jobs,
        rows=scrap + 1 if anchor is None else anchor + 1,
        kept=num_steps + 1,
        transitions=transition_rows(jobs, written, [bool(on) for on in masks.trained]),
        completions=tuple(clean),
        points=tuple(asked),
        sources=tuple(clean.index(rows[p]) for p in asked),
        predictions=tuple(predicted),
        anchor=anchor,
        copies=(beside,) * shared + (1,) * (len(ordered) - shared) if shared else (),
    )


def job_table(jobs: Sequence[tuple[int, int, Sequence[Write]]], scrap: int) -> Jobs:
    """The table of jobs (row to read, its grid index, writes), padded with writes to the row
    `scrap`.
    """
    width = max(len(writes) for *_, writes in jobs)
    full = [[*writes, *[Write(scrap, k)] * (width - len(writes))] for _, k, writes in jobs]
    column = lambda name: tuple(tuple(getattr(w, name) for w in writes) for writes in full)
    read, k_from, _ = zip(*jobs)
    return Jobs(read, k_from, column('row'), column('k_to'), column('noisy'))


def transition_rows(
    jobs: Jobs, written: Sequence[tuple[int, int]], trained: Iterable[bool]
) -> TransitionRows:
    """The transitions that the writes (job, slot) make, [N], and which of them are trained."""
    of_job = lambda column: tuple(column[j] for j, _ in written)
    of_write = lambda column: tuple(column[j][slot] for j, slot in written)
    return TransitionRows(
        x_row=of_job(jobs.read),
        next_row=of_write(jobs.row),
        k_from=of_job(jobs.k_from),
        k_to=of_write(jobs.k_to),
        job=tuple(j for j, _ in written),
        slot=tuple(slot for _, slot in written),
        noisy=of_write(jobs.noisy),
        trained=tuple(trained),
    )


def check_plan(plan: RolloutPlan) -> None:
    """Raises ValueError for an inconsistent table: a job that reads a row before it is written or
    at another noise level, a transition whose latents are not kept or that is trained without
    noise, a scored row that is not clean.
    """
    if plan.copies and len(plan.copies) != len(plan.jobs.read):
        raise ValueError(f'copies has {len(plan.copies)} entries for {len(plan.jobs.read)} jobs')
    held = {0: (0, None)}  # row -> (its grid index, the write that made it)
    read_by = []
    for j, (read, k_from, *writes) in enumerate(zip(*plan.jobs)):
        if held.get(read, (None,))[0] != k_from:
            found = f'is at {held[read][0]}' if read in held else 'holds nothing yet'
            raise ValueError(f'job {j} reads row {read} at grid index {k_from}; the row {found}')
        read_by.append(held[read])
        held |= {row: (k_to, (j, slot)) for slot, (row, k_to, _) in enumerate(zip(*writes))}
    for i, t in enumerate(zip(*plan.transitions)):
        x_row, next_row, _, k_to, job, slot, noisy, trained = t
        ends = held[x_row], held[next_row]
        if max(x_row, next_row) >= plan.kept or ends != (read_by[job], (k_to, (job, slot))):
            raise ValueError(
                f'transition {i}: row {x_row} or {next_row} is written again later, or is not one '
                f'of the {plan.kept} rows that are kept'
            )
        if trained and not noisy:
            raise ValueError(f'transition {i} is trained, but its write adds no noise')
    for row in {*plan.completions, *plan.predictions} - {plan.anchor}:
        if held.get(row, (0,))[0] < plan.num_steps:
            raise ValueError(f'row {row} is scored, but its final latent is not clean')


def _check_points(points: Sequence[Point], num_steps: int) -> None:
    last = {STATE: num_steps, X0HAT: num_steps - 1, ANCHOR: 0}
    for p in points:
        if p.kind not in last:
            raise ValueError(
                f'a trajectory has no points of kind {p.kind!r}; expected one of {sorted(last)}'
            )
        if not 0 <= p.k <= last[p.kind]:
            raise ValueError(
                f'there is no point {p.kind} {p.k}; the trajectory has {p.kind} 0 ... '
                f'{last[p.kind]}'
            )
