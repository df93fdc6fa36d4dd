"""Rollouts of the model with twins and completions, and their rewards."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from densegrpo_jax.core.ode_rollout import completion_grid
from densegrpo_jax.core.rollout import cosine
from densegrpo_jax.preflight.signal import Rewards
from densegrpo_jax.search.loop import Flow, Particles, Scored, Walk


class Spent(NamedTuple):
    """The cost of a batch: velocities or, times `costs.passes`, network evaluations; images; and
    the seconds of sampling and of decoding and scoring those."""

    nfe: int = 0
    images: int = 0
    network_s: float = 0.0
    image_s: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(*(a + b for a, b in zip(self, other)))

    def each(self) -> tuple[float, float]:
        """Seconds of a network evaluation, and of an image."""
        return self.network_s / max(self.nfe, 1), self.image_s / max(self.images, 1)


class Batch(NamedTuple):
    """What a batch of prompts gave.

    Attributes:
      rewards: of its prompts.
      scores: name -> [P, G], every score of the samples.
      samples: uint8 [P, G, H, W, 3].
      path: uint8 [P, T + 1, H, W, 3]: full completions of the states of each prompt's first sample,
        and that sample.
    """

    rewards: Rewards
    scores: dict[str, np.ndarray]
    samples: np.ndarray | None
    path: np.ndarray | None
    spent: Spent


@jax.jit
def _cosine(a, b):
    return cosine(a, b)


@jax.jit
def _euler(x, v, s, s_next):
    return x + (s_next - s) * v


def steps_of(n: int, left: int) -> int:
    """Euler steps of a completion of `n` where `left` would take all."""
    return min(n or left, left)


def completed(flow: Flow, p: Particles, n: int) -> tuple[jax.Array, int]:
    """(last latents [P, m, ...] that n Euler steps of the ODE reach from the particles, velocities
    of each). n is at most the steps left; 0: all.
    """
    grid = completion_grid(flow.steps, p.k, steps_of(n, flow.steps - p.k))
    x, v, evaluations = p.x, p.v, 0
    for k, to in zip(grid, grid[1:]):
        if k != p.k:
            v, evaluations = flow.velocity(x, k), evaluations + 1
        x = _euler(x, v, flow.sigmas[k], flow.sigmas[to])
    return x, evaluations


def measure(
    flow: Flow,
    keys: np.ndarray,
    group: int,
    completions: Sequence[int],
    wait: Callable = jax.block_until_ready,
    *,
    shared_noise: bool = False,
    pictures: bool = True,
) -> Batch:
    """Samples G rollouts of every prompt, a twin from every state that the transition after it does
    not only move, and completions of every state, each scored once.

    Args:
      keys: uint32 [P, 2] of the prompts.
      completions: numbers of ODE steps, 0 for all; 0 is among them.
      wait: a pytree of arrays -> the same, ready; may raise to end the measurement.
      shared_noise: the samples of a prompt begin with one noise. pictures: keep images.
    """
    walk, spent = Walk(flow, keys), Spent()

    def network(make: Callable[[], tuple]):
        """Runs what evaluates the network; counts its seconds."""
        nonlocal spent
        began = time.monotonic()
        found = wait(make())
        spent += Spent(network_s=time.monotonic() - began)
        return found

    def score(x0: jax.Array, alike: bool = False) -> Scored:
        """alike: the images of a prompt are one, which is scored once; that is no measure of
        speed, and is left out of what was spent.
        """
        nonlocal spent
        began = time.monotonic()
        found = flow.score(x0)
        if not alike:
            spent += Spent(images=x0.shape[0] * x0.shape[1], image_s=time.monotonic() - began)
        return found

    def reward(x0: jax.Array) -> np.ndarray:
        found = np.asarray(score(x0).reward, np.float64)
        return np.where(np.isfinite(found), found, np.nan)

    def end(p: Particles, iteration: int) -> Particles:
        while p.k < flow.steps:
            p = network(lambda: walk.advance(p, iteration)[0])
        return p

    def begin() -> Particles:
        if not shared_noise:
            return walk.start(group)
        first = flow.scale * walk.normal(1, 0)
        return walk.evaluate(jnp.repeat(first, group, axis=1), 0)

    states = [network(begin)]
    for k in range(flow.steps):
        states.append(network(lambda: walk.advance(states[k], 0)[0]))
    samples = score(states[-1].x)
    terminal = np.where(np.isfinite(samples.reward), samples.reward, np.nan).astype(np.float64)

    again = reward(states[-1].x)
    twins, of_next = [None] * flow.steps, again
    for k in reversed(range(flow.steps)):
        if flow.stochastic[k]:  # else x_k tells x_{k+1}, and has its twin
            of_next = reward(end(states[k], 1 + k).x)
        twins[k] = of_next

    near = [_cosine(walk.predict(p), states[-1].x) for p in states[:-1]]
    similarity = np.array([*map(np.asarray, near), np.ones_like(terminal)], np.float64)
    tables, images, extra = {n: np.empty((flow.steps, *terminal.shape)) for n in completions}, [], 0
    for k, p in enumerate(states[:-1]):
        rewards = {}  # near the end several n have equally many steps
        for t in sorted({steps_of(n, flow.steps - k) for n in completions}):
            x0, more = network(lambda: completed(flow, p, t))
            extra += more * group
            found = score(x0, alike=shared_noise and k == 0)
            rewards[t] = np.where(np.isfinite(found.reward), found.reward, np.nan)
            if t == flow.steps - k and pictures and found.images is not None:
                images.append(found.images[:, 0].copy())
        for n, table in tables.items():
            table[k] = rewards[steps_of(n, flow.steps - k)]
    if pictures and samples.images is not None:
        images.append(samples.images[:, 0])
    spent += Spent(nfe=(walk.evaluations + extra) * len(keys))
    return Batch(
        Rewards(terminal, again, np.array(twins), tables, similarity),
        {name: np.asarray(v) for name, v in samples.values.items()},
        samples.images if pictures else None,
        np.stack(images, axis=1) if images else None,
        spent,
    )


def velocities(stochastic: np.ndarray, completions: Sequence[int]) -> int:
    """Of one sample with its twins and completions."""
    steps = len(stochastic)
    twins = sum(steps - k - 1 for k in range(steps) if stochastic[k])
    kinds = ({steps_of(n, left) for n in completions} for left in range(1, steps + 1))
    return steps + twins + sum(t - 1 for kind in kinds for t in kind)
