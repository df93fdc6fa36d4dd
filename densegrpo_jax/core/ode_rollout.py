"""Completion of a latent: n Euler steps of the probability-flow ODE down to the clean end of the
grid.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from densegrpo_jax.core.schedules import Grid, check_grid
from densegrpo_jax.core.sde_step import at_least_f32, sde_step


def completion_grid(num_steps: int, k: int, n: int | None = None) -> tuple[int, ...]:
    """Grid indices that an n-step completion of state k visits, from k to T.

    The paper counts timesteps t = T - k; the n steps visit the timesteps floor(t (n - j) / n), j =
    0 ... n: every remaining grid point for n = t, and t, floor(t/2), 0 for n = 2.

    Args:
        num_steps: T.
        k: state, 0 <= k <= T.
        n: number of steps, 1 <= n <= t; None means t.

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
    return tuple(num_steps - t * (n - j) // n for j in range(n + 1))


def ode_rollout(
    velocity_fn: Callable[[Array, Array], Array],
    x: Float[ArrayLike, 'B *latent'],
    sigmas: Grid,
    k: int = 0,
    n: int | None = None,
) -> Float[Array, 'B *latent']:
    """x0hat = ODE_n(x_k): the clean latent that the deterministic sampler reaches from state k
    (DenseGRPO Eq. 8).

    Args:
        velocity_fn: (x [B, ...], s [B]) -> v [B, ...].
        x: [B, ...] latent at noise level sigmas[k].
        sigmas: [T+1] host array, the grid.
        k, n: as in `completion_grid`.

    Returns:
        [B, ...] float32 latent at sigmas[T], after n calls of velocity_fn, compiled once.
    """
    check_grid(sigmas)
    visited = completion_grid(len(sigmas) - 1, k, n)
    grid = np.asarray(sigmas, np.float32)[list(visited)]
    latent = at_least_f32(x)

    def step(x, row):
        s, zeros = jnp.full(x.shape[:1], row[0]), jnp.zeros_like(x)
        end = sde_step(velocity_fn(x, s), x, s, row[1], 0.0, noise=zeros, kernel='ode')
        return end.sample, None

    rows = np.stack([grid[:-1], grid[1:]], axis=1)
    return jax.lax.scan(step, latent, rows)[0] if len(rows) else latent
