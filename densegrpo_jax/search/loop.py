"""Particles on a host loop: a model with P prompts, and the calls that all methods of search share.

All prompts go through the same calls together, so arrays are [P, n, ...]: n particles per prompt. A
particle holds its latent and the velocity there, so no evaluation is made twice. Its noise depends
only on (prompt, iteration, state, slot): duplicates of a particle separate, and a prompt's search
does not depend on the other prompts, the devices or the processes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from densegrpo_jax.core.kernels import Kernel, as_kernel
from densegrpo_jax.core.particles import ess
from densegrpo_jax.rewards.base import RewardError
from densegrpo_jax.search import programs

# Streams of a prompt's randomness in one iteration: noise of states, and decisions.
NOISE, DECISIONS = 0, 1


class Unscored(RewardError):
    """No image of the prompts `rows`, indices of `names`, has a valid score: all processes, which
    have the same scores, raise it alike. The search of the others can go on.
    """

    def __init__(self, names: Sequence[str], rows: Sequence[int], found: str):
        self.rows = rows
        told = ', '.join(dict.fromkeys(repr(names[row]) for row in rows))
        super().__init__(f'prompt {told}: {found}. The log says why the reward could not score it')


class Scored(NamedTuple):
    """Scores of the predicted images of n particles for each of P prompts."""

    reward: np.ndarray  # float [P, n]; -inf where the image has no valid score
    values: dict[str, np.ndarray] = {}  # every score by name, float [P, n]
    images: np.ndarray | None = None  # uint8 [P, n, H, W, 3]


class Event(NamedTuple):
    """Scores of one call, for the record."""

    iteration: int
    k: int  # state; at T the images are samples, before it predictions of them
    slots: np.ndarray  # int [n]
    evaluations: int  # network evaluations spent on each prompt so far
    scored: Scored


@dataclasses.dataclass(frozen=True)
class Flow:
    """A model with P prompts, as a search sees it.

    Attributes:
      sigmas: float [T + 1], the grid from noise to image.
      levels: float [T], noise levels of the kernel; 0 where a transition is deterministic.
      kernel: of `core.sde_step`.
      shape: of one latent. scale: standard deviation of the first latents.
      end: factor that takes x_0 to the coordinates of the last latents (`Pipeline.end_scale`).
      velocity: (x [P, n, ...], k) -> v [P, n, ...], one evaluation per row.
      score: (x0 [P, n, ...]) -> Scored, of clean latents in the coordinates of the last ones.
      guide: (x [P, n, ...], k) -> (v, reward [P, n] of x0hat = x - s v, its gradient in x
        [P, n, ...]); None if the reward has no gradient. One evaluation and one gradient per row.
    """

    sigmas: np.ndarray
    levels: np.ndarray
    kernel: str | Kernel
    shape: tuple[int, ...]
    velocity: Callable
    score: Callable[[jax.Array], Scored]
    scale: float = 1.0
    end: float = 1.0
    guide: Callable | None = None

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    @property
    def stochastic(self) -> np.ndarray:
        """bool [T]: whether a transition adds noise; a kernel may add none into s = 0."""
        return as_kernel(self.kernel).adds_noise(self.sigmas, self.levels)


class Particles(NamedTuple):
    """n particles of each of P prompts, at state k."""

    x: jax.Array  # [P, n, ...]
    v: jax.Array | None  # [P, n, ...] velocity at x; None for k = T
    k: int
    reward: np.ndarray | None = None  # [P, n] of the predicted image; None until it is scored
    gradient: jax.Array | None = None  # [P, n, ...] of that reward in x, if requested

    def take(self, index: np.ndarray) -> Particles:
        """Particles `index` [P, m] (or [m], the same for every prompt), in that order."""
        index = np.broadcast_to(np.asarray(index, np.int32), (len(self.x), np.shape(index)[-1]))
        pick = lambda a: None if a is None else programs.take(a, index)
        reward = None if self.reward is None else np.take_along_axis(self.reward, index, axis=1)
        return Particles(pick(self.x), pick(self.v), self.k, reward, pick(self.gradient))

    def join(self, other: Particles) -> Particles:
        """These particles, then the others of the same state."""

        def both(a, b, how=programs.join):
            return None if a is None or b is None else how(a, b)

        reward = both(self.reward, other.reward, lambda a, b: np.concatenate([a, b], axis=1))
        fields = ((getattr(self, name), getattr(other, name)) for name in ('x', 'v', 'gradient'))
        x, v, gradient = (both(*pair) for pair in fields)
        return Particles(x, v, self.k, reward, gradient)

    def where(self, keep: np.ndarray, other: Particles) -> Particles:
        """These where keep [P, n], the others elsewhere."""
        pick = lambda a, b: None if a is None else programs.where(keep, a, b)
        return Particles(
            pick(self.x, other.x),
            pick(self.v, other.v),
            self.k,
            np.where(keep, self.reward, other.reward),
            pick(self.gradient, other.gradient),
        )


class Walk:
    """The calls that methods consist of, for one search of P prompts.

    Args:
      flow: the model and its prompts.
      keys: uint32 [P, 2], key data of the prompts.
      guided: whether evaluations also take the reward's gradient, and steps follow it.
      temperature: of the reward in guided steps.
      record: called with every Event.
      names: of the prompts, for messages.

    Attributes:
      evaluations, gradients, images: spent on each prompt so far.
    """

    def __init__(
        self,
        flow: Flow,
        keys: np.ndarray,
        *,
        guided: bool = False,
        temperature: float = 1.0,
        record: Callable[[Event], None] = lambda event: None,
        names: Sequence[str] = (),
    ):
        if guided and flow.guide is None:
            raise ValueError('the reward of this search has no gradient to follow')
        self.flow, self.guided, self.temperature = flow, guided, temperature
        self.evaluations = self.gradients = self.images = 0
        self._keys, self._record = np.asarray(keys, np.uint32), record
        self._names = names or [f'number {i}' for i in range(len(keys))]

    @property
    def prompts(self) -> int:
        return len(self._keys)

    def normal(self, count: int, iteration: int, k: int = 0, first: int = 0) -> jax.Array:
        """Standard normal [P, count, ...] for the steps of slots `first` and up to state k."""
        slots = np.arange(first, first + count, dtype=np.int32)
        keys = np.asarray(programs.fold(self._keys, iteration, NOISE, k))
        return programs.normal(keys, slots, self.flow.shape)

    def start(self, count: int, iteration: int = 0, first: int = 0) -> Particles:
        """Fresh particles at k = 0, evaluated there."""
        return self.evaluate(self.flow.scale * self.normal(count, iteration, 0, first), 0)

    def evaluate(self, x: jax.Array, k: int) -> Particles:
        """Particles with latents x [P, n, ...] at state k: one network evaluation each, except none
        at T.
        """
        if k == self.flow.steps:
            return Particles(x, None, k)
        self.evaluations += x.shape[1]
        if not self.guided:
            return Particles(x, self.flow.velocity(x, k), k)
        self.gradients += x.shape[1]
        v, reward, gradient = self.flow.guide(x, k)
        return Particles(x, v, k, np.asarray(reward, np.float64), gradient)

    def advance(self, p: Particles, iteration: int, first: int = 0) -> tuple[Particles, np.ndarray]:
        """One step of the sampler from each particle, with the noise of slots `first` and up, and
        an evaluation at the new state.

        Returns:
          (particles at k + 1, log p/q [P, n] of the steps: 0 unless they are guided).
        """
        flow, k = self.flow, p.k
        noise = self.normal(p.x.shape[1], iteration, k + 1, first)
        at = (flow.sigmas[k], flow.sigmas[k + 1], flow.levels[k])
        if p.gradient is None:
            x = programs.step(p.x, p.v, *at, noise, kernel=flow.kernel)
            ratio = np.zeros(p.x.shape[:2])
        else:
            scale = 1 / self.temperature
            x, ratio = programs.guided(p.x, p.v, *at, noise, p.gradient, scale, kernel=flow.kernel)
        return self.evaluate(x, k + 1), np.asarray(ratio, np.float64)

    def mean(self, p: Particles) -> tuple[jax.Array, float]:
        """Mean [P, n, ...] and std of the sampler's step from each particle; no evaluation."""
        flow, k = self.flow, p.k
        at = (flow.sigmas[k], flow.sigmas[k + 1], flow.levels[k])
        mean, std = programs.moments(p.x, p.v, *at, kernel=flow.kernel)
        return mean, float(np.asarray(std).flat[0])

    def predict(self, p: Particles) -> jax.Array:
        """Clean latents [P, n, ...], as the last ones: x0hat = x - s v; at T the sample itself."""
        if p.v is None:
            return p.x
        return programs.predict(p.x, p.v, self.flow.sigmas[p.k], self.flow.end)

    def score(self, p: Particles, iteration: int, first: int = 0) -> Particles:
        """The particles with the rewards of their predicted images, which are recorded. Particles
        that have rewards keep them, so nothing is scored twice.

        Raises:
          RewardError: no image of a prompt has a valid score.
        """
        if p.reward is not None:
            return p
        scored = self.flow.score(self.predict(p))
        count = p.x.shape[1]
        self.images += count
        slots = np.arange(first, first + count)
        self._record(Event(iteration, p.k, slots, self.evaluations, scored))
        return p._replace(reward=np.asarray(scored.reward, np.float64))

    def resample(
        self,
        logw: np.ndarray,
        iteration: int,
        k: int,
        *,
        scheme: str = 'multinomial',
        threshold: float | None = None,
        pinned: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ancestors int [P, K] for log weights [P, K], and bool [P]: whether a prompt's particles
        were resampled, which happens if their ESS is below threshold * K (None: always).

        If `pinned`, particle 0 stays, see `conditional_resample`.
        """
        self.check(logw, k)
        keys = self._decisions(iteration, k)
        ancestors = programs.ancestors(keys, np.asarray(logw, np.float32), scheme, pinned)
        low = np.ones(len(logw), bool)
        if threshold is not None:
            low = np.asarray(ess(np.asarray(logw, np.float32))) < threshold * logw.shape[1]
        return np.where(low[:, None], ancestors, np.arange(logw.shape[1])), low

    def draw(self, logw: np.ndarray, iteration: int, k: int) -> np.ndarray:
        """int [P]: one particle of each prompt, drawn by its weight."""
        self.check(logw, k)
        keys = self._decisions(iteration, k)
        return np.asarray(programs.choose(keys, np.float32(logw[:, None]), 1.0))[:, 0]

    def choose(self, scores: np.ndarray, alpha: float, iteration: int, k: int) -> np.ndarray:
        """int [P, B]: the chosen candidate by scores [P, B, M], see `best_candidate`. The first if
        no candidate has a score.
        """
        self.check(scores, k)
        keys = self._decisions(iteration, k)
        return np.asarray(programs.choose(keys, programs.finite_rows(scores), float(alpha)))

    def uniform(self, count: int, iteration: int, k: int) -> np.ndarray:
        """Uniform numbers [P, count] for decisions."""
        return np.asarray(programs.uniform(self._decisions(iteration, k), count), np.float64)

    def check(self, scores: np.ndarray, k: int) -> None:
        """Raises Unscored if none of a prompt's scores [P, ...] is finite."""
        scores = scores.reshape(len(scores), -1)
        dead = ~np.isfinite(scores).any(1)
        if dead.any():
            raise Unscored(
                self._names,
                np.flatnonzero(dead),
                f'none of {scores.shape[1]} images has a valid score at state {k} of '
                f'{self.flow.steps}, so the search cannot choose',
            )

    def _decisions(self, iteration: int, k: int) -> np.ndarray:
        return np.asarray(programs.fold(self._keys, iteration, DECISIONS, k))
