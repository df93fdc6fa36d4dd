"""Guided exploration: noisy steps drift up the gradient of a process reward, a reward of noisy
latents, and the policy whose log-probability is kept does not (Euphonium, arXiv 2602.04928).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from densegrpo_jax.core.kernels import Kernel
from densegrpo_jax.core.rollout_plan import RolloutPlan
from densegrpo_jax.core.sde_step import at_least_f32, over, step_std

PROCESS_CREDITS = ('before', 'after', 'gain')


@dataclasses.dataclass(frozen=True)
class Guide:
    """How a rollout follows a process reward r(x_s, s), and which of its states are scored by it.

    Attributes:
        fn: (x [B, ...], s [B], k, v [B, ...]) -> (r [B], its gradient in x [B, ...]) at grid index
            k, where v is the velocity that the sample follows.
        shift: (gradient [B, ...], std [B], s [B], s_next [B]) -> shift [B, ...] of the step's end,
            such as `reward_shift`. It is left out where std is 0 or the gradient is not finite.
        steps: grid indices of the noisy steps that drift.
        states: the trajectory's states, 0 ... T, whose r the rollout returns.
        score: (x, x0hat, s [B]) -> r [B], with x0hat = x - s v, or x itself at state T. For states
            that `fn` does not score.
        evaluates: fn is (x, s, k) -> (what velocity_fn gives, r, gradient) instead: the gradient
            goes through the network, and so no evaluation is made twice.
        scores: whether `fn` gives r; if not, its first result is ignored.
    """

    fn: Callable[..., Any]
    shift: Callable[..., Array]
    steps: tuple[int, ...]
    states: tuple[int, ...]
    score: Callable[..., Array]
    evaluates: bool = False
    scores: bool = True

    @property
    def scored_on_the_way(self) -> tuple[int, ...]:
        """The states whose r comes with their gradient."""
        return tuple(k for k in self.states if k in self.steps and self.scores)

    @property
    def scored_after(self) -> tuple[int, ...]:
        """The other states."""
        return tuple(k for k in self.states if k not in self.scored_on_the_way)

    def drift(
        self,
        gradient: Float[Array, 'B *latent'],
        s: Float[Array, ''],
        s_next: Float[Array, ''],
        noise_level: Float[Array, 'B'],
        *,
        kernel: str | Kernel,
    ) -> tuple[Float[Array, 'B *latent'], Float[Array, 'B']]:
        """The shift of a step along the gradient, and its root mean square over the step's std."""
        start, end = (jnp.broadcast_to(a, noise_level.shape) for a in (s, s_next))
        std = step_std(start, end, noise_level, kernel=kernel)
        moves = (std > 0) & jnp.isfinite(gradient).all(tuple(range(1, gradient.ndim)))
        moves = over(moves, gradient)
        shift = self.shift(jnp.where(moves, gradient, 0), std, start, end)
        shift = jnp.where(moves, shift, 0)
        return shift, root_mean_square(shift) / jnp.where(std > 0, std, 1)


def reward_shift(
    gradient: Float[ArrayLike, 'B *latent'], std: Float[ArrayLike, 'B'], alpha: float
) -> Float[Array, 'B *latent']:
    """std^2 / alpha times the gradient: the drift of a step with noise std towards exp(r / alpha).

    Euphonium's lambda (s - s') grad r with lambda = eta^2 / (2 beta) is this with alpha = 2 beta
    and the sde kernel's std = eta sqrt(s - s'). The guided proposals of a search are the same, with
    their weights corrected for it (`particles.proposal_log_ratio`).
    """
    gradient, std = at_least_f32(gradient), at_least_f32(std)
    return over(std**2 / alpha, gradient) * gradient


def clip_norm(
    gradient: Float[ArrayLike, 'B *latent'], limit: float, *, normalise: bool = False
) -> Float[Array, 'B *latent']:
    """Gradients of at most a size: a sample's whose root mean square over its elements is above
    `limit` is scaled down to it.

    Args:
        limit: above 0.
        normalise: scale smaller ones up to it too; 0 stays 0.
    """
    gradient = at_least_f32(gradient)
    size = root_mean_square(gradient)
    factor = limit / jnp.where(size > 0, size, 1)
    factor = jnp.where(size > 0, factor if normalise else jnp.minimum(factor, 1), 0)
    return over(factor, gradient) * gradient


def spsa(
    reward: Callable[[Array], Array],
    x: Float[ArrayLike, 'B *latent'],
    directions: Float[ArrayLike, 'n B *latent'],
    h: float,
) -> Float[Array, 'B *latent']:
    """A gradient of `reward` without derivatives (simultaneous perturbation, Spall 1992), the mean
    over n directions u of

        [r(x + h u) - r(x - h u)] / (2 h) u

    For u ~ N(0, I) and linear r it is unbiased, with the total variance (d + 1) |g|^2 / n in d
    dimensions; for quadratic r each difference is u . grad r, exactly.

    Args:
        reward: [B, ...] -> [B].
        directions: standard normal; a sample's own, so that it does not depend on its batch.
        h: length of the differences.
    """
    x = at_least_f32(x)

    def one(total, u):
        slope = (reward(x + h * u) - reward(x - h * u)) / (2 * h)
        return total + over(slope, u) * u, None

    directions = at_least_f32(directions)
    total, _ = jax.lax.scan(one, jnp.zeros_like(x), directions)
    return total / len(directions)


def process_scores(
    guide: Guide,
    plan: RolloutPlan,
    buffer: Float[Array, 'rows B *latent'],
    grid: Float[Array, 'indices'],
    on_the_way: Float[Array, 'J B'] | None,
) -> Float[Array, 'states B']:
    """The process reward of the trajectory's states that are asked for, 0 of the others.

    Args:
        plan: of a trajectory.
        buffer: its latents. grid: noise levels of its grid indices.
        on_the_way: what `Guide.fn` gave in each job.
    """
    rows = [*plan.transitions.x_row, plan.completions[-1]]
    process = jnp.zeros((len(rows), buffer.shape[1]), buffer.dtype)
    if (known := guide.scored_on_the_way) and on_the_way is not None:
        jobs = np.array([plan.transitions.job[k] for k in known])
        process = process.at[np.array(known)].set(on_the_way[jobs])
    if left := guide.scored_after:
        last = plan.num_steps
        clean = [rows[last] if k == last else plan.predictions[k] for k in left]
        s = jnp.broadcast_to(grid[np.array(left)][:, None], (len(left), buffer.shape[1]))
        states = buffer[np.array([rows[k] for k in left])], buffer[np.array(clean)], s
        found = jax.lax.map(lambda state: guide.score(*state), states)
        process = process.at[np.array(left)].set(found)
    return process


def process_credit(scores: Float[ArrayLike, 'states B'], of: str) -> Float[Array, 'states-1 B']:
    """The process reward of transition k, from r of the states 0 ... T: 'after', r_{k+1}, what the
    step has led to; 'before', r_k, which it cannot have changed (Euphonium's code); 'gain', r_{k+1}
    - r_k, DenseGRPO's gain with r as the value.

    Raises:
        ValueError: another word.
    """
    scores = at_least_f32(scores)
    if of not in PROCESS_CREDITS:
        raise ValueError(f'process credit is {of!r}; expected one of {PROCESS_CREDITS}')
    before, after = scores[:-1], scores[1:]
    return {'before': before, 'after': after, 'gain': after - before}[of]


def process_states(steps: tuple[int, ...], of: str) -> tuple[int, ...]:
    """The states that `process_credit` reads for the transitions `steps`, increasing."""
    offsets = {'none': (), 'before': (0,), 'after': (1,), 'gain': (0, 1)}[of]
    return tuple(sorted({k + i for k in steps for i in offsets}))


def root_mean_square(x: Float[ArrayLike, 'B *latent']) -> Float[Array, 'B']:
    """Over the elements of each row; its gradient is not asked for."""
    x = at_least_f32(x)
    return jnp.sqrt(jnp.mean(x**2, tuple(range(1, x.ndim))))
