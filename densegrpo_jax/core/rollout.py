"""Trajectories of the policy and, for dense rewards, the ODE completion of their states, as one
scan over equal jobs.

A completion of state k begins with the very velocity that the stochastic step of state k has just
used, so completing all states with every remaining grid point costs T + T (T - 1) / 2 velocity
evaluations per sample, T of them for the trajectory.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from densegrpo_jax.core.ode_rollout import completion_grid
from densegrpo_jax.core.masks import StepMasks, completion_source
from densegrpo_jax.core.schedules import check_grid
from densegrpo_jax.core.sde_step import at_least_f32, guided_shift, sde_step


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=('latents', 'log_prob', 'std', 'noise_level', 'completions', 'similarity'),
    meta_fields=('states', 'sources', 'velocity_evals'),
)
@dataclasses.dataclass(frozen=True)
class DenseRollout:
    """A sampled trajectory, time first, with the clean latents to score. The last three fields are
    static and survive jit.
    """

    latents: jax.Array  # [T+1, B, ...]
    log_prob: jax.Array  # [T, B]; 0 where std is 0
    std: jax.Array  # [T, B]
    noise_level: jax.Array  # [T, B]; 0 where the transition is deterministic
    completions: jax.Array  # [S, B, ...] distinct clean latents, the sample itself last
    # [T+1, B] cosine of x0hat_k = x_k - s_k v_k with the sample; 1 for k = T (CoCA)
    similarity: jax.Array
    states: tuple  # S states that the completions belong to; the last is T
    # T+1 rows: the reward of state k is that of completions[sources[k]]; -1 = not asked for
    sources: tuple
    velocity_evals: int  # evaluations per sample


class Jobs(NamedTuple):
    """J evaluations in order of their grid index; int32 [J] each, rows of one buffer or indices of
    the grid.
    """

    read: np.ndarray  # row holding the latent
    write: np.ndarray  # row for the latent after the step
    fork: np.ndarray  # row for the first step of the completion that begins here
    predict: np.ndarray  # row for x0hat
    k_from: np.ndarray
    k_to: np.ndarray
    k_fork: np.ndarray
    step: np.ndarray  # transition index k of a trajectory job, -1 for a completion job


class JobPlan(NamedTuple):
    """The host's plan of a dense rollout over T transitions."""

    jobs: Jobs
    trajectory_jobs: np.ndarray  # int [T]: position of transition k in the job list
    # buffer rows: T+1 trajectory states, S-1 completions, T predictions, 1 scrap
    rows: int
    states: tuple
    sources: tuple
    velocity_evals: int


def plan_jobs(masks, complete=(), n=None):
    """Lays out a dense rollout: which evaluations, in which order, reading and writing which buffer
    row.

    States whose completion is known to coincide (`completion_source`) share one; state T is always
    included.

    Args:
        masks: StepMasks of bool [T].
        complete: states 0 ... T whose completion is wanted.
        n: steps of a completion, n >= 1; states with fewer remaining use all of them. None means
            all remaining.

    Returns:
        JobPlan; `velocity_evals`, the number of jobs, is T + the sum over states k other than T of
        min(n, T - k) - 1.
    """
    num_steps = len(masks.stochastic)
    wanted = sorted({int(k) for k in complete} | {num_steps})
    if wanted[0] < 0 or wanted[-1] > num_steps:
        raise ValueError(
            f'states to complete are {wanted}; the trajectory has states 0 ... {num_steps}'
        )
    if n is not None and n < 1:
        raise ValueError(f'n is {n}; a completion needs at least 1 step')
    source = {k: completion_source(masks, k, n) for k in wanted}
    states = tuple(sorted(set(source.values())))
    sources = tuple(states.index(source[k]) if k in source else -1 for k in range(num_steps + 1))

    own = states[:-1]
    predictions = num_steps + 1 + len(own)
    scrap = predictions + num_steps
    jobs = []
    for k in range(num_steps):
        fork, k_fork = scrap, k + 1
        if k in own:
            fork = num_steps + 1 + own.index(k)
            grid = completion_grid(num_steps, k, None if n is None else min(n, num_steps - k))
            k_fork = grid[1]
            for here, there in zip(grid[1:-1], grid[2:]):
                jobs.append(Jobs(fork, fork, scrap, scrap, here, there, there, -1))
        jobs.append(Jobs(k, k + 1, fork, predictions + k, k, k + 1, k_fork, k))
    # waves of equal noise level, the trajectory first
    jobs.sort(key=lambda job: (job.k_from, job.step < 0))
    table = Jobs(*np.array(jobs, np.int32).T)
    return JobPlan(table, np.flatnonzero(table.step >= 0), scrap + 1, states, sources, len(jobs))


def advance(velocity_fn, x, s, s_next, noise_level, noise, *, kernel='sde', log_prob='gaussian'):
    """One velocity evaluation and one step: what every rollout here is a fold of.

    Args:
        velocity_fn: (x [B, ...], s [B]) -> v [B, ...]; or a pair (v, guided): the sample follows
            `guided`, but the policy whose log-prob is kept has the mean of v.
        x: [B, ...] latents; s, s_next, noise_level: scalar or [B]; noise: [B, ...].

    Returns:
        (StepOutput, the velocity followed [B, ...] at least float32).
    """
    s = jnp.broadcast_to(jnp.asarray(s, x.dtype), x.shape[:1])
    velocity, shift = velocity_fn(x, s), None
    if isinstance(velocity, tuple):
        velocity, guided = (v.astype(x.dtype) for v in velocity)
        shift = guided_shift(guided, velocity, x, s, s_next, noise_level, kernel=kernel)
    else:
        velocity = guided = velocity.astype(x.dtype)
    return sde_step(
        velocity,
        x,
        s,
        s_next,
        noise_level,
        noise=noise,
        kernel=kernel,
        log_prob=log_prob,
        shift=shift,
    ), guided


def continue_trajectory(velocity_fn, x, k, sigmas, noise_levels, masks, noise_fn, *, kernel='sde'):
    """Follows the policy from state k to the clean end, with T - k velocity evaluations.

    Args:
        x: [B, ...] latents of state k.
        k: 0 ... T; may be traced, so that one compiled body serves every state.
        velocity_fn, sigmas, noise_levels, masks, noise_fn, kernel: as in `dense_rollout`.

    Returns:
        [B, ...] latents of state T, at least float32.
    """
    levels = _masked_levels(noise_levels, masks, sigmas, x)
    x = at_least_f32(x)
    grid = jnp.asarray(sigmas, x.dtype)

    def body(j, x):
        step, _ = advance(
            velocity_fn, x, grid[j], grid[j + 1], levels[j], noise_fn(j), kernel=kernel
        )
        return step.sample

    return jax.lax.fori_loop(k, len(levels), body, x)


def dense_rollout(
    velocity_fn,
    x_init,
    sigmas,
    noise_levels,
    masks,
    noise_fn,
    *,
    kernel='sde',
    log_prob='gaussian',
    complete=(),
    n=None,
):
    """Samples a trajectory and completes the asked states by ODE, without gradient, with the
    current policy (Eq. 8).

    One scan over `plan_jobs`: a single compiled body holds the single call of velocity_fn.

    Args:
        velocity_fn: (x [B, ...], s [B]) -> v [B, ...], or a pair as in `advance`; completions
            follow the guided one.
        x_init: [B, ...] standard normal noise (scaled to the path's noise at sigmas[0]).
        sigmas: [T+1] host array, the grid.
        noise_levels: [T] or [T, B]; psi, sigma or eta per transition. Ignored where a transition is
            deterministic.
        masks: StepMasks.
        noise_fn: k (int32 scalar, traced) -> z [B, ...], the standard normal noise of transition k.
        kernel, log_prob: as in `sde_step`.
        complete: states whose completions are wanted, e.g. `needed_states(credit, masks)`.
        n: steps per completion; None means all remaining (the paper's default n = t).

    Returns:
        DenseRollout.
    """
    levels = _masked_levels(noise_levels, masks, sigmas, x_init)
    num_steps = len(masks.stochastic)
    job_plan = plan_jobs(masks, complete, n)
    x_init = at_least_f32(x_init)
    grid = jnp.asarray(sigmas, x_init.dtype)
    buffer = jnp.zeros((job_plan.rows, *x_init.shape), x_init.dtype).at[0].set(x_init)

    def no_noise(k):
        return jnp.zeros_like(x_init)

    def own_noise(k):
        return noise_fn(k).astype(x_init.dtype)

    def body(buffer, job):
        x = jax.lax.dynamic_index_in_dim(buffer, job.read, keepdims=False)
        s, s_next = grid[job.k_from], grid[job.k_to]
        level = jnp.where(job.step >= 0, levels[jnp.maximum(job.step, 0)], 0)
        noise = jax.lax.cond(job.step >= 0, own_noise, no_noise, job.step)
        step, velocity = advance(
            velocity_fn, x, s, s_next, level, noise, kernel=kernel, log_prob=log_prob
        )
        fork = sde_step(
            velocity, x, s, grid[job.k_fork], 0.0, noise=no_noise(0), kernel=kernel
        ).sample
        for row, latents in (
            (job.write, step.sample),
            (job.fork, fork),
            (job.predict, x - s * velocity),
        ):
            buffer = jax.lax.dynamic_update_index_in_dim(buffer, latents, row, 0)
        return buffer, (step.log_prob, step.std)

    buffer, (log_probs, std) = jax.lax.scan(body, buffer, Jobs(*map(jnp.asarray, job_plan.jobs)))
    own = len(job_plan.states) - 1
    latents, completed = buffer[: num_steps + 1], buffer[num_steps + 1 : num_steps + 1 + own]
    predicted = buffer[num_steps + 1 + own : num_steps + 1 + own + num_steps]
    sample = latents[-1]
    return DenseRollout(
        latents=latents,
        log_prob=log_probs[job_plan.trajectory_jobs],
        std=std[job_plan.trajectory_jobs],
        noise_level=levels,
        completions=jnp.concatenate([completed, sample[None]]),
        similarity=jnp.concatenate(
            [_cosine(predicted, sample[None]), jnp.ones((1, len(sample)), sample.dtype)]
        ),
        states=job_plan.states,
        sources=job_plan.sources,
        velocity_evals=job_plan.velocity_evals,
    )


class Transitions(NamedTuple):
    """A flat record of M trained transitions, the batch of an update: M = (trained steps) * B,
    step-major.
    """

    x: jax.Array  # [M, ...], 0 where masked
    x_next: jax.Array  # [M, ...], likewise
    s: jax.Array  # [M]
    s_next: jax.Array  # [M]
    noise_level: jax.Array  # [M]
    std: jax.Array  # [M]
    log_prob: jax.Array  # [M] as the sampler stored it
    advantage: jax.Array  # [M]
    weight: jax.Array  # [M] step weight of the policy loss
    mask: jax.Array  # bool [M]; False where std is 0 or the sample has no valid reward
    prompt_id: jax.Array  # int32 [M] index of the group (prompt) in the batch, 0 ... P-1


def transitions(rollout, advantages, sigmas, masks, num_groups, *, weight=None, valid=None):
    """The trained transitions of a rollout as a flat record.

    Args:
        rollout: DenseRollout.
        advantages: [T, B].
        sigmas: [T+1] host array; masks: StepMasks; num_groups: P, with rows in prompt-major order.
        weight: optional [T] or [T, B] step weights; default 1.
        valid: optional bool [B] or [T, B]; False leaves the transition out of the loss.

    Returns:
        Transitions with M = masks.trained.sum() * B, ordered k first, then b (so
        `reshape(K, B, ...)` undoes it).
    """
    num_steps, batch = rollout.std.shape
    if advantages.shape != (num_steps, batch):
        raise ValueError(
            f'advantages have shape {advantages.shape}; the rollout has (T, B) = {(num_steps, batch)}'
        )
    if batch % num_groups:
        raise ValueError(f'{batch} samples do not divide into {num_groups} groups')
    trained = np.flatnonzero(masks.trained)
    sigmas = np.asarray(sigmas, np.float32)

    def flat(per_step):
        """[T, B, ...] (or broadcastable [T, 1], [B]) -> [K * B, ...] over the trained steps."""
        per_step = jnp.broadcast_to(per_step, (num_steps, batch) + jnp.shape(per_step)[2:])[trained]
        return per_step.reshape(-1, *per_step.shape[2:])

    prompt = np.arange(batch, dtype=np.int32) // (batch // num_groups)
    mask = rollout.std > 0
    if valid is not None:
        mask = mask & valid
    weight = jnp.ones(num_steps) if weight is None else jnp.asarray(weight, jnp.float32)
    # What is masked gets no gradient, but the network's backward pass would multiply that 0 by a
    # latent that is not finite.
    mask = flat(mask)
    kept = lambda latents: jnp.where(mask.reshape(-1, *(1,) * (latents.ndim - 2)), flat(latents), 0)
    return Transitions(
        x=kept(rollout.latents[:-1]),
        x_next=kept(rollout.latents[1:]),
        s=flat(sigmas[:-1, None]),
        s_next=flat(sigmas[1:, None]),
        noise_level=flat(rollout.noise_level),
        std=flat(rollout.std),
        log_prob=flat(rollout.log_prob),
        advantage=flat(advantages),
        weight=flat(weight[:, None] if weight.ndim == 1 else weight),
        mask=mask,
        prompt_id=flat(prompt),
    )


def _masked_levels(noise_levels, masks: StepMasks, sigmas, x_init):
    """Noise levels [T, B] with zeros where the transition is deterministic."""
    check_grid(sigmas)
    num_steps, batch = len(sigmas) - 1, x_init.shape[0]
    if len(masks.stochastic) != num_steps or len(noise_levels) != num_steps:
        raise ValueError(
            f'the grid has {num_steps} steps, the masks {len(masks.stochastic)}, the noise levels {len(noise_levels)}'
        )
    levels = jnp.asarray(noise_levels, jnp.float32)
    levels = levels[:, None] if levels.ndim == 1 else levels
    return jnp.broadcast_to(jnp.where(masks.stochastic[:, None], levels, 0), (num_steps, batch))


def _cosine(a, b):
    """Cosine similarity over all but the first two axes; 0 for a zero vector."""
    axes = tuple(range(2, a.ndim))
    norms = jnp.sqrt(jnp.sum(a**2, axes) * jnp.sum(b**2, axes))
    return jnp.sum(a * b, axes) / jnp.maximum(norms, jnp.finfo(a.dtype).tiny)
