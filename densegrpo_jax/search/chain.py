"""The Psi-Sampler's chain over initial noise: preconditioned Crank-Nicolson steps, with Langevin
drift if the reward has a gradient.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from densegrpo_jax.core.particles import pcnl_log_accept, pcnl_proposal
from densegrpo_jax.search.loop import Particles, Walk


def chain_step(
    walk: Walk, chains: Particles, iteration: int, *, alpha: float, step_size: float
) -> Particles:
    """One Metropolis-Hastings step of each chain, for the density N(z; 0, I) exp(r(x0hat) / alpha)
    of initial noise z = x / scale. One evaluation per chain; its velocity stays with the state.

    Args:
      chains: scored particles [P, C] at k = 0.
      iteration: of the chain, from 1; it selects the step's randomness.
      alpha: temperature of the reward. step_size: eps of `core.particles.pcnl_proposal`.
    """
    scale = walk.flow.scale
    noise = walk.normal(chains.x.shape[1], iteration)
    to = (scale / alpha, scale, step_size)
    proposed = walk.score(
        walk.evaluate(_propose(chains.x, noise, chains.gradient, *to), 0), iteration
    )
    here, there = (np.float32(p.reward / alpha) for p in (chains, proposed))
    slopes = (chains.gradient, proposed.gradient)
    ratio = _log_accept(chains.x, proposed.x, here, there, *slopes, *to)
    uniform = walk.uniform(chains.x.shape[1], iteration, 0)
    # A chain in a state without a score accepts any state with one.
    accept = (np.log1p(-uniform) < ratio) | (np.isneginf(here) & np.isfinite(there))
    return proposed.where(accept, chains)


def kept_states(particles: int, chains: int, kept: int) -> list[tuple[int, int]]:
    """Which states of C chains become K particles: (step 0 ... kept - 1, chain), about as many of
    each chain, evenly spaced and counted from the last step, where the chain is nearest to its law.
    """
    wanted = []
    for c in range(chains):
        count = particles // chains + (c < particles % chains)
        stride = max(1, kept // max(count, 1))
        wanted += [(kept - 1 - (j * stride) % kept, c) for j in range(count)]
    return wanted


def _rows(a):
    return None if a is None else a.reshape(-1, *a.shape[2:])


@functools.partial(jax.jit, static_argnames=('slope', 'scale', 'step_size'))
def _propose(x, noise, gradient, slope, scale, step_size):
    gradient = None if gradient is None else slope * _rows(gradient)
    z = pcnl_proposal(_rows(x) / scale, _rows(noise), gradient, step_size)
    return scale * z.reshape(x.shape)


@functools.partial(jax.jit, static_argnames=('slope', 'scale', 'step_size'))
def _log_accept(x, proposed, here, there, gradient, gradient_there, slope, scale, step_size):
    slopes = [None if g is None else slope * _rows(g) for g in (gradient, gradient_there)]
    ends = (_rows(x) / scale, _rows(proposed) / scale)
    ratio = pcnl_log_accept(*ends, here.reshape(-1), there.reshape(-1), *slopes, step_size)
    return jnp.where(jnp.isnan(ratio), -jnp.inf, ratio).reshape(here.shape)
