"""Completion of a latent: n steps of the probability-flow ODE, by Euler or a two-step method, down
to the clean end of the grid.
"""

import jax
import jax.numpy as jnp
import numpy as np

from densegrpo_jax.core.schedules import check_grid
from densegrpo_jax.core.sde_step import at_least_f32, sde_step

SOLVERS = ('euler', 'ab2')
SPACINGS = ('timestep', 'sigma')


def completion_grid(num_steps, k, n=None, *, sigmas=None):
    """Grid indices that an n-step completion of state k visits, from k to T.

    The paper counts timesteps t = T - k; the n steps pass the timesteps floor(t (n - j) / n), j = 0
    ... n, which is every remaining grid point for n = t, and t, floor(t/2), 0 for n = 2.

    Given `sigmas`, step j ends at the grid point nearest to s_k (n - j) / n instead (the earlier of
    two, and never one that leaves too few for the steps to come): steps of about equal length. On a
    shifted grid, dense at high noise, equal timesteps end with a step over half of all noise.

    Args:
        num_steps: T.
        k: state, 0 <= k <= T.
        n: number of steps, 1 <= n <= t; None means t.
        sigmas: optional [T+1] host array, the grid.

    Returns:
        tuple of int, increasing, of length n + 1 (length 1 for k = T).
    """
    t = num_steps - k
    if not 0 <= k <= num_steps:
        raise ValueError(f'state k is {k}; the grid has states 0 ... {num_steps}')
    n = t if n is None else n
    if t == 0 and n == 0:
        return (num_steps,)
    if not 1 <= n <= t:
        raise ValueError(
            f'n is {n}; a completion of state {k} on {num_steps} steps needs 1 <= n <= {t}'
        )
    if sigmas is None:
        return tuple(num_steps - t * (n - j) // n for j in range(n + 1))
    sigmas = np.asarray(sigmas, np.float64)
    indices = [k]
    for j in range(1, n + 1):
        open_points = np.arange(indices[-1] + 1, num_steps - (n - j) + 1)
        indices.append(
            int(open_points[np.argmin(np.abs(sigmas[open_points] - sigmas[k] * (n - j) / n))])
        )
    return tuple(indices)


def two_step_velocity(velocity, before, half_ratio):
    """(1 + r/2) v_n - (r/2) v_{n-1}: with it an Euler step of length h is the second-order
    Adams-Bashforth step for r = h / h_prev.

    Args:
        velocity, before: [B, ...] v_n and v_{n-1}.
        half_ratio: scalar r / 2; 0 gives v_n.

    Returns:
        [B, ...].
    """
    return velocity + half_ratio * (velocity - before)


def ode_rollout(
    velocity_fn, x, sigmas, k=0, n=None, *, first_velocity=None, solver='euler', spacing='timestep'
):
    """x0hat = ODE_n(x_k): the clean latent that the deterministic sampler reaches from state k
    (DenseGRPO Eq. 8).

    The solver 'ab2' takes as many evaluations: an Euler step, then steps by `two_step_velocity`
    (order 2 in all: one Euler step has a local error of order 2). Its first step could go by the
    velocity of the trajectory's step before, but that belongs to a latent to which noise of size
    sqrt(h) was added since: a local error of order 1.5, several times Euler's in practice.

    Args:
        velocity_fn: (x [B, ...], s [B]) -> v [B, ...].
        x: [B, ...] latent at noise level sigmas[k].
        sigmas: [T+1] host array, the grid.
        k, n: as in `completion_grid`.
        first_velocity: [B, ...] optional v(x, sigmas[k]) when the caller already has it; saves one
            evaluation.
        solver: one of SOLVERS. spacing: of n < t steps, one of SPACINGS; 'sigma' as in
            `completion_grid` given sigmas.

    Returns:
        [B, ...] float32 latent at sigmas[T], after n (or n - 1) calls of velocity_fn, compiled
        once.
    """
    check_grid(sigmas)
    check_completion(solver, spacing)
    visited = completion_grid(len(sigmas) - 1, k, n, sigmas=sigmas if spacing == 'sigma' else None)
    grid = np.asarray(sigmas, np.float32)[list(visited)]
    x = at_least_f32(x)

    def euler(x, s, s_next, velocity):
        return sde_step(velocity, x, s, s_next, 0.0, noise=jnp.zeros_like(x), kernel='ode').sample

    def step(carry, row):
        x, before = carry
        s = jnp.full(x.shape[:1], row[0])
        velocity = velocity_fn(x, s)
        if solver == 'euler':
            return (euler(x, s, row[1], velocity), None), None
        velocity = velocity.astype(x.dtype)
        return (euler(x, s, row[1], two_step_velocity(velocity, before, row[2])), velocity), None

    lengths = np.diff(grid)
    half_ratios = np.concatenate([np.zeros(1), lengths[1:] / lengths[:-1] / 2])[: len(lengths)]
    rows = np.stack([grid[:-1], grid[1:], half_ratios], axis=1).astype(np.float32)
    before = None if solver == 'euler' else jnp.zeros_like(x)
    if first_velocity is not None and len(rows):
        x, rows = euler(x, grid[0], grid[1], first_velocity), rows[1:]
        before = None if solver == 'euler' else first_velocity.astype(x.dtype)
    return jax.lax.scan(step, (x, before), rows)[0][0] if len(rows) else x


def check_completion(solver, spacing):
    """Raises ValueError for an unknown solver or spacing."""
    if solver not in SOLVERS:
        raise ValueError(f'unknown completion solver {solver!r}; expected one of {SOLVERS}')
    if spacing not in SPACINGS:
        raise ValueError(
            f'unknown spacing {spacing!r} of completion steps; expected one of {SPACINGS}'
        )
