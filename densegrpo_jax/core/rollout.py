"""Rollouts: runs the table of a `RolloutPlan` as one scan over equal jobs (`core/jobs.py`). The
program then holds the network once, whatever is sampled, completed and scored.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from densegrpo_jax.core.guide import Guide, process_scores
from densegrpo_jax.core.jobs import run_jobs
from densegrpo_jax.core.kernels import Kernel
from densegrpo_jax.core.prediction_rewards import Predictions, anchor_of
from densegrpo_jax.core.rollout_plan import RolloutPlan, check_plan
from densegrpo_jax.core.schedules import Grid, check_grid
from densegrpo_jax.core.sde_step import at_least_f32

Levels = Float[ArrayLike, 'T'] | Float[ArrayLike, 'T B'] | Sequence[float]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rollout:
    """The samples of a plan: R latents, N transitions between them and S clean latents to score.
    Every array has the batch as its second axis. The plan is static and survives jit.

    The fields are arrays of the shapes beside them. Their types are not checked, because jax also
    puts stand-ins for arrays there, such as shapes or shardings.
    """

    latents: Any  # [R, B, *latent] the kept rows; for a trajectory the states 0 ... T
    s: Any  # [N, B] noise levels where the transitions start
    s_next: Any  # [N, B] and where they end
    log_prob: Any  # [N, B] 0 where std is 0
    std: Any  # [N, B]
    noise_level: Any  # [N, B] 0 where the transition is deterministic
    completions: Any  # [S, B, *latent] the sample itself is the last
    # [T+1, B] cosine of x0hat_k = x_k - s_k v_k with the sample, 1 for k = T (CoCA); None if the
    # plan makes no predictions.
    similarity: Any
    plan: RolloutPlan = dataclasses.field(metadata={'static': True})
    # [N, B, *latent] of the policy's transitions, without a guided shift; None if not kept
    mean: Any = None
    predictions: Predictions | None = None  # how alike they are; if the plan has an anchor
    # Of a rollout with `Guide`, else None:
    process: Any = None  # [T+1, B] process reward of its states, 0 where not asked for
    drift: Any = None  # [N, B] root mean square of the drift over std, 0 where none drifts

    @property
    def nfe(self) -> float:
        """Network evaluations per sample."""
        return self.plan.nfe


def run_plan(
    velocity_fn: Callable,
    x_init: Float[ArrayLike, 'B *latent'],
    sigmas: Grid,
    noise_levels: Levels,
    plan: RolloutPlan,
    noise_fn: Callable,
    *,
    kernel: str | Kernel = 'sde',
    log_prob: str = 'gaussian',
    keep_means: bool = False,
    guide: Guide | None = None,
) -> Rollout:
    """Runs the plan with the current policy, without gradient. Completions are those of DenseGRPO
    Eq. 8.

    Args:
        velocity_fn: (x [B, ...], s [B]) -> v [B, ...]; or a pair (v, guided): samples follow
            `guided`, but the policy whose log-prob is stored has the mean of v. Where the plan
            says that c adjacent samples are copies, it gets every c-th row, B / c of them.
        x_init: [B, ...] standard normal noise (scaled to the path's noise at sigmas[0]).
        sigmas: [T+1] host array, the grid.
        noise_levels: [T] or [T, B]; psi, sigma or eta of the noise that a step from grid index k
            adds. Ignored where the plan adds no noise.
        plan: for T steps, such as `trajectory_plan(masks, points)`.
        noise_fn: k (int32 scalar, traced) -> z [B, ...], standard normal, for the transitions that
            start at grid index k.
        kernel, log_prob: as in `sde_step`.
        keep_means: `Rollout.mean` is kept, for losses that compare the policy's mean with it.
        guide: makes noisy steps drift, which changes where they end and not their mean and
            log-prob, and scores states; for a trajectory.

    Returns:
        Rollout.

    Raises:
        ValueError: the plan is inconsistent, or is for another number of steps; or there is a
            guide, and it is not one trajectory of every sample.
    """
    check_plan(plan)
    t = plan.transitions
    if guide is not None and (plan.copies or t.x_row != (*range(plan.num_steps),)):
        raise ValueError('only trajectories drift, and this rollout plan has another shape')
    x_init = at_least_f32(x_init)
    levels = _levels(noise_levels, sigmas, plan.num_steps, x_init)
    # One index beyond the grid, for predictions of the clean latent.
    grid = jnp.append(jnp.asarray(sigmas, x_init.dtype), 0)
    made = np.array(t.job), np.array(t.slot)
    rows, mean_rows = plan.rows, None
    if keep_means:  # further rows of the buffer, and one for the other writes' means
        mean_rows = np.full(np.shape(plan.jobs.row), rows + len(t.job))
        mean_rows[made] = rows + np.arange(len(t.job))
        rows += len(t.job) + 1
    buffer = jnp.zeros((rows, *x_init.shape), x_init.dtype).at[0].set(x_init)
    made_by = []
    for first, last, copies in _segments(plan):
        buffer, made_here = run_jobs(
            velocity_fn,
            buffer,
            plan.jobs.part(first, last),
            grid,
            levels,
            noise_fn,
            kernel=kernel,
            log_prob=log_prob,
            mean_rows=None if mean_rows is None else mean_rows[first:last],
            copies=copies,
            guide=guide,
        )
        made_by.append(made_here)
    writes = jax.tree.map(lambda *parts: jnp.concatenate(parts), *made_by)
    of_batch = lambda per_row: jnp.broadcast_to(per_row[:, None], (len(t.job), len(x_init)))
    predictions = None
    if plan.anchor is not None:
        x0hat = buffer[np.array(plan.predictions)]
        predictions, anchor = _anchored(x0hat)
        buffer = buffer.at[plan.anchor].set(anchor)
    completions = buffer[np.array(plan.completions)]
    similarity = None
    if plan.predictions:
        sample = completions[-1:]
        cosines = cosine(buffer[np.array(plan.predictions)], sample)
        similarity = jnp.concatenate([cosines, jnp.ones((1, len(x_init)), cosines.dtype)])
    process = drift = None
    if guide is not None:
        process = process_scores(guide, plan, buffer, grid, writes.score)
        drift = writes.drift[made]
    return Rollout(
        latents=buffer[: plan.kept],
        s=of_batch(grid[np.array(t.k_from)]),
        s_next=of_batch(grid[np.array(t.k_to)]),
        log_prob=writes.log_prob[made],
        std=writes.std[made],
        noise_level=jnp.where(np.array(t.noisy)[:, None], levels[np.array(t.k_from)], 0),
        completions=completions,
        similarity=similarity,
        plan=plan,
        mean=buffer[plan.rows : rows - 1] if keep_means else None,
        predictions=predictions,
        process=process,
        drift=drift,
    )


def _segments(plan: RolloutPlan):
    """(first, last, copies) of consecutive jobs that evaluate equally many rows: a scan each."""
    first = 0
    for copies, jobs in itertools.groupby(plan.copies or (1,) * len(plan.jobs.read)):
        last = first + len([*jobs])
        yield first, last, copies
        first = last


def _levels(noise_levels, sigmas, num_steps: int, x):
    """Noise levels as [T, B]."""
    check_grid(sigmas)
    if len(sigmas) - 1 != num_steps or len(noise_levels) != num_steps:
        raise ValueError(
            f'the grid has {len(sigmas) - 1} steps, the plan {num_steps}, the noise levels '
            f'{len(noise_levels)}'
        )
    levels = jnp.asarray(noise_levels, jnp.float32)
    levels = levels[:, None] if levels.ndim == 1 else levels
    return jnp.broadcast_to(levels, (num_steps, x.shape[0]))


def _anchored(x0hat):
    """Predictions of x0hat [T, B, ...], and the anchor [B, ...] itself."""
    first, last = cosine(x0hat, x0hat[:1]), cosine(x0hat, x0hat[-1:])
    anchor = anchor_of(first, last)[None]
    chosen = jnp.take_along_axis(x0hat, anchor.reshape(1, -1, *(1,) * (x0hat.ndim - 2)), 0)
    cosines = jnp.stack([first, cosine(x0hat, chosen), last], -1)
    return Predictions(anchor, cosines), chosen[0]


def cosine(a: Float[Array, 'I B *latent'], b: Float[Array, 'J B *latent']) -> Float[Array, 'K B']:
    """Cosine similarity over all but the first two axes; 0 for a zero vector. The first axis of one
    may be 1.
    """
    axes = tuple(range(2, a.ndim))
    norms = jnp.sqrt(jnp.sum(a**2, axes) * jnp.sum(b**2, axes))
    return jnp.sum(a * b, axes) / jnp.maximum(norms, jnp.finfo(a.dtype).tiny)
