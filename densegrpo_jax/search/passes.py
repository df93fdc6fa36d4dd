"""One way from noise to image: with weights (sequential Monte Carlo), pinned to a path
(conditional SMC), or with candidates at every step (SVDD).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from densegrpo_jax.core.particles import ancestor_path, backward_log_weights
from densegrpo_jax.search.loop import Particles, Walk


class Weighting(NamedTuple):
    """How a pass weighs and resamples.

    Attributes:
      temperature: alpha; a finished path weighs exp(r(x_T) / alpha) times the sampler's density.
      states: bool [T], the states at which particles are scored and may be resampled.
      scheme: of `core.particles.resample`.
      threshold: resample if ESS < threshold * K; None: always.
      potential: of FK steering (arXiv 2501.06848). alpha times a path's log weight at state k is,
        for 'difference', r_k, as the differences telescope; for 'max', the sum over the scored
        states so far of the largest reward up to each; for 'sum', the sum of their rewards. At T it
        is r_T for all.
    """

    temperature: float
    states: np.ndarray
    scheme: str = 'multinomial'
    threshold: float | None = None
    potential: str = 'difference'


class Pass(NamedTuple):
    """The history of a pass, for drawing a path from it."""

    states: list[Particles]  # T + 1, each of K particles
    ancestors: np.ndarray  # int [T, P, K]
    # float [T, P, K]: log weights without the state's own reward; -inf if the state has no score
    carried: np.ndarray
    logw: np.ndarray  # [P, K] at the end

    @property
    def particles(self) -> Particles:
        return self.states[-1]


def default_states(stochastic: np.ndarray, every: int = 1) -> np.ndarray:
    """bool [T]: every n-th of the states whose next transition adds noise. Duplicates made at
    another state would not separate.
    """
    return stochastic & (np.cumsum(stochastic) % every == (1 % every))


def weighted_pass(
    walk: Walk,
    free: Particles,
    how: Weighting,
    *,
    iteration: int = 0,
    carried: np.ndarray | None = None,
    reference: Sequence[Particles] | None = None,
) -> Pass:
    """Particles from state 0 to T, resampled by weight on the way.

    A log weight is `carried` + r / alpha. `carried` begins at 0, gains log p/q of guided steps, and
    after a resampling is -r / alpha of the ancestor. So the weight of a path ends at r(x_T) / alpha
    whatever the predictions on the way. A path whose prediction has no score does not survive a
    resampling at that state.

    Args:
      walk: of P prompts.
      free: particles at k = 0: K of them, or K - 1 with a reference.
      carried: [P, K] initial log weights.
      reference: T + 1 times one scored particle per prompt: the path that slot 0 follows
        (conditional SMC). Other particles may branch off it.
    """
    pinned = int(reference is not None)
    count = free.x.shape[1] + pinned
    carried = np.zeros((walk.prompts, count)) if carried is None else carried
    value, peak = np.zeros_like(carried), np.full_like(carried, -np.inf)
    joined = lambda free: reference[free.k].join(free) if pinned else free
    states, ancestors, history = [], [], []
    for k in range(walk.flow.steps):
        index, before = np.broadcast_to(np.arange(count), carried.shape), carried
        if how.states[k]:
            free = walk.score(free, iteration, first=pinned)
            reward = joined(free).reward
            scored, sums = np.isfinite(reward), accumulated(how.potential, value, peak, reward)
            value, peak = (np.where(scored, a, b) for a, b in zip(sums, (value, peak)))
            logw = np.where(scored, carried + value / how.temperature, -np.inf)
            options = dict(scheme=how.scheme, threshold=how.threshold, pinned=bool(pinned))
            index, moved = walk.resample(logw, iteration, k, **options)
            value, peak = (np.take_along_axis(a, index, axis=1) for a in (value, peak))
            carried = np.where(moved[:, None], -value / how.temperature, carried)
            before = np.where(np.isfinite(logw), before, -np.inf)
        states.append(joined(free))
        ancestors.append(index)
        history.append(before)
        free, log_ratio = walk.advance(states[-1].take(index[:, pinned:]), iteration, first=pinned)
        carried = carried + np.pad(log_ratio, ((0, 0), (pinned, 0)))
    states.append(joined(walk.score(free, iteration, first=pinned)))
    logw = carried + states[-1].reward / how.temperature
    return Pass(states, np.stack(ancestors), np.stack(history), logw)


def accumulated(
    potential: str, value: np.ndarray, peak: np.ndarray, reward: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """alpha times the log weight of paths after one more scored state, and the largest reward on
    each so far; see `Weighting`.
    """
    peak = np.maximum(peak, reward)
    if potential == 'difference':
        return reward, peak
    return value + (peak if potential == 'max' else reward), peak


def path(result: Pass, last: np.ndarray) -> list[Particles]:
    """The states of the paths that end in slots `last` [P], T + 1 times one particle per prompt."""
    slots = jax.vmap(ancestor_path, in_axes=(1, 0))(result.ancestors, last)
    return [p.take(np.asarray(slots)[:, k, None]) for k, p in enumerate(result.states)]


def backward_path(walk: Walk, result: Pass, last: np.ndarray, iteration: int) -> list[Particles]:
    """As `path`, but redraws every ancestor given the states after it; makes no evaluation."""
    steps, slot = walk.flow.steps, np.asarray(last)
    chosen = [result.states[-1].take(slot[:, None])]
    for k in reversed(range(steps)):
        ancestor = np.take_along_axis(result.ancestors[k], slot[:, None], axis=1)[:, 0]
        if walk.flow.stochastic[k]:
            p = result.states[k]
            mean, std = walk.mean(p)
            logw = _backward(result.carried[k].astype(np.float32), chosen[0].x[:, 0], mean, std)
            slot = walk.draw(np.asarray(logw), iteration, steps + 1 + k)
        else:
            slot = ancestor
        chosen.insert(0, result.states[k].take(slot[:, None]))
    return chosen


_backward = jax.jit(jax.vmap(backward_log_weights, in_axes=(0, 0, 0, None)))


def candidate_pass(
    walk: Walk, p: Particles, candidates: int, alpha: float, *, iteration: int = 0
) -> Particles:
    """B designs from their state to T; each noisy step keeps one of `candidates` next states,
    chosen by the reward of its predicted image (SVDD, arXiv 2408.08252).

    The candidates of a design start from one velocity. The step into the last state has no
    candidates, since no evaluation would tell them apart.

    Returns:
      B scored particles at T.
    """
    steps, designs = walk.flow.steps, p.x.shape[1]
    while p.k < steps:
        many = candidates if walk.flow.stochastic[p.k] and p.k + 1 < steps else 1
        p, _ = walk.advance(p.take(np.repeat(np.arange(designs), many)), iteration)
        if many > 1:
            p = walk.score(p, iteration)
            scores = p.reward.reshape(walk.prompts, designs, many)
            pick = walk.choose(scores, alpha, iteration, p.k)
            p = p.take(np.arange(designs) * many + pick)
    return walk.score(p, iteration)
