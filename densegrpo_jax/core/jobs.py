"""Jobs of a rollout: one network evaluation each, and the steps that are written from it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from densegrpo_jax.core.guide import Guide
from densegrpo_jax.core.kernels import Kernel
from densegrpo_jax.core.rollout_plan import Jobs
from densegrpo_jax.core.sde_step import guided_shift, sde_step


class Writes(NamedTuple):
    """What `run_jobs` tells of J jobs' writes."""

    log_prob: Float[Array, 'J W B']  # 0 if a write adds no noise
    std: Float[Array, 'J W B']
    # With `Guide`, else None:
    score: Any = None  # [J, B] process reward of the state that a job reads, 0 if it does not drift
    drift: Any = None  # [J, W, B] as in `Rollout`


def run_jobs(
    velocity_fn: Callable,
    buffer: Float[Array, 'rows B *latent'],
    jobs: Jobs,
    grid: Float[Array, 'indices'],
    levels: Float[Array, 'T B'],
    noise_fn: Callable,
    *,
    kernel: str | Kernel = 'sde',
    log_prob: str = 'gaussian',
    mean_rows: np.ndarray | None = None,
    copies: int = 1,
    guide: Guide | None = None,
) -> tuple[Float[Array, 'rows B *latent'], Writes]:
    """Runs jobs in order on a buffer of latents, as one scan whose body calls velocity_fn once.

    Args:
        grid: noise levels of the grid indices 0 ... T, and 0 at T + 1.
        levels: levels of the noise that a step from grid index k adds.
        velocity_fn, noise_fn, kernel, log_prob: as in `run_plan`.
        mean_rows: int [J, W] the row for the mean of a write, if means are kept too.
        copies: number of adjacent samples whose latents are equal; velocity_fn gets one of them.
        guide: as in `run_plan`; then no samples are copies.

    Returns:
        (the buffer, what it tells of the writes).
    """
    # Slots in which no job adds noise are known at trace time to be Euler steps.
    noisy_slots = np.array(jobs.noisy).any(0)
    drifts = None
    if guide is not None and guide.steps:
        drifts = np.array(jobs.noisy).any(1) & np.isin(jobs.k_from, guide.steps)
    columns = [*map(np.array, jobs), mean_rows, drifts]
    table = tuple(None if column is None else jnp.asarray(column) for column in columns)
    shape, dtype, batch = buffer.shape[1:], buffer.dtype, buffer.shape[1]
    zeros = jnp.zeros(shape, dtype)
    silent = jnp.zeros(batch, dtype)

    def body(buffer, job):
        read, k_from, row, k_to, noisy, mean_row, drifts = job  # from the third to the sixth [W]
        x = jax.lax.dynamic_index_in_dim(buffer, read, keepdims=False)
        s = grid[k_from]
        score, gradient = None, None
        if drifts is None:
            velocity, guided = _evaluate(velocity_fn, x, s, copies)
        else:
            velocity, guided, score, gradient = _evaluate_with_guide(
                velocity_fn, guide, drifts, x, s, k_from
            )
        followed = velocity if guided is None else guided
        noise = jax.lax.cond(
            noisy.any(), lambda k: noise_fn(k).astype(dtype), lambda k: zeros, k_from
        )
        log_probs, stds, moved = [], [], []
        for slot, may_be_noisy in enumerate(noisy_slots):
            s_next = grid[k_to[slot]]
            if may_be_noisy:
                level = jnp.where(noisy[slot], levels[k_from], 0)
                drift = None
                if gradient is not None:
                    drift, size = guide.drift(gradient, s, s_next, level, kernel=kernel)
                    moved.append(size)
                step = _policy_step(
                    velocity,
                    guided,
                    x,
                    s,
                    s_next,
                    level,
                    noise,
                    kernel=kernel,
                    log_prob=log_prob,
                    drift=drift,
                )
            else:
                step = sde_step(followed, x, s, s_next, 0.0, noise=zeros, kernel='ode')
                step = step._replace(log_prob=silent, std=silent)
                moved.append(silent)
            log_probs.append(step.log_prob)
            stds.append(step.std)
            buffer = jax.lax.dynamic_update_index_in_dim(buffer, step.sample, row[slot], 0)
            if mean_row is not None:
                buffer = jax.lax.dynamic_update_index_in_dim(buffer, step.mean, mean_row[slot], 0)
        made = Writes(jnp.stack(log_probs), jnp.stack(stds), score)
        if guide is not None:
            made = made._replace(drift=jnp.stack(moved) if drifts is not None else 0 * made.std)
        return buffer, made

    return jax.lax.scan(body, buffer, table)


def _evaluate(velocity_fn, x, s, copies=1):
    """(v, None), or (v, the guided velocity) if velocity_fn gives a pair; in the dtype of x. Of
    `copies` adjacent rows one is evaluated.
    """
    few = x if copies == 1 else x.reshape(-1, copies, *x.shape[1:])[:, 0]
    found = velocity_fn(few, jnp.broadcast_to(jnp.asarray(s, x.dtype), few.shape[:1]))

    def of_all(v):
        return v.astype(x.dtype) if copies == 1 else jnp.repeat(v.astype(x.dtype), copies, axis=0)

    if isinstance(found, tuple):
        velocity, guided = found
        return of_all(velocity), of_all(guided)
    return of_all(found), None


def _evaluate_with_guide(velocity_fn, guide, drifts, x, s, k):
    """As `_evaluate`, and the process reward and its gradient: 0 unless `drifts`, a traced bool."""
    rows = jnp.broadcast_to(jnp.asarray(s, x.dtype), x.shape[:1])
    none = jnp.zeros_like(rows), jnp.zeros_like(x)
    if guide.evaluates:

        def steered(x, rows, k):
            found, score, gradient = guide.fn(x, rows, k)
            return *_evaluate(lambda *_: found, x, rows), score, gradient

        def plain(x, rows, k):
            return *_evaluate(velocity_fn, x, rows), *none

        return jax.lax.cond(drifts, steered, plain, x, rows, k)
    velocity, guided = _evaluate(velocity_fn, x, s)
    followed = velocity if guided is None else guided
    return (
        velocity,
        guided,
        *jax.lax.cond(drifts, guide.fn, lambda *_: none, x, rows, k, followed),
    )


def _policy_step(
    velocity, guided, x, s, s_next, noise_level, noise, *, kernel, log_prob, drift=None
):
    """The step whose log-prob is the policy's, with the mean of `velocity`; the sample follows
    `guided`, and drifts.
    """
    where = (s, s_next, noise_level)
    shift = None if guided is None else guided_shift(guided, velocity, x, *where, kernel=kernel)
    if drift is not None:
        shift = drift if shift is None else shift + drift
    options = {'kernel': kernel, 'log_prob': log_prob, 'shift': shift}
    return sde_step(velocity, x, *where, noise=noise, **options)
