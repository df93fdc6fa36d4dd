"""The methods of search, each a few lines over the calls of `loop` and the passes of `passes`.

A method returns its final particles; the record keeps the best of all samples. `METHODS` names the
methods.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from densegrpo_jax.core.particles import renoise
from densegrpo_jax.search.chain import chain_step, kept_states
from densegrpo_jax.search.loop import Particles, Walk
from densegrpo_jax.search.passes import (
    Weighting,
    backward_path,
    candidate_pass,
    default_states,
    path,
    weighted_pass,
)


class Sizes(NamedTuple):
    """What a method spends its budget on; each method reads its own fields. See `budget`."""

    particles: int = 0  # best_of_n, smc, pg, psi
    iterations: int = 1  # pg: passes
    designs: int = 0  # svdd, refine
    candidates: int = 1  # svdd, refine: per design and step
    rounds: int = 0  # refine: after the first pass
    from_state: int = 1  # refine: state at which a round begins, 0 ... T
    chains: int = 1  # psi
    burn_in: int = 0  # psi: chain steps before states are kept
    kept: int = 1  # psi: chain steps whose states are kept


class Rule(NamedTuple):
    """How a method chooses. Temperatures are in the reward's own units."""

    temperature: float = 1.0  # alpha of the target p(x_0) exp(r / alpha): smc, pg, psi
    alpha: float = 0.0  # temperature of the choice among candidates; 0: the best
    selection: float = 1.0  # temperature of a design's survival between rounds
    incremental: bool = False  # refine: survival by the round's gain, not by the reward
    keep_best: bool = True  # refine: the best design so far stays in the set
    backward: bool = False  # pg: redraw the ancestors of the chosen path
    step_size: float = 0.5  # psi: eps of the chain
    scheme: str = 'systematic'  # smc, psi: of `core.particles.resample`
    threshold: float | None = 0.5  # smc, psi: resample below this share of K; None: always
    potential: str = 'difference'  # smc: see `Weighting`
    every: int = 1  # smc, pg, psi: weigh every n-th state


class Found(NamedTuple):
    """The result of a search."""

    particles: Particles  # n per prompt at T, scored
    drawn: np.ndarray  # int [P]: one particle per prompt, drawn by its weight


def best_of_n(walk: Walk, sizes: Sizes, rule: Rule) -> Found:
    """N independent samples; only the samples are scored."""
    return _first(candidate_pass(walk, walk.start(sizes.particles), 1, 0.0))


def smc(walk: Walk, sizes: Sizes, rule: Rule) -> Found:
    """Sequential Monte Carlo with the base sampler as its proposal: FK steering (2501.06848)."""
    how = _weighting(walk, rule)._replace(potential=rule.potential)
    result = weighted_pass(walk, walk.start(sizes.particles), how)
    return Found(result.particles, walk.draw(result.logw, 0, walk.flow.steps))


def pg(walk: Walk, sizes: Sizes, rule: Rule) -> Found:
    """Particle Gibbs (2507.08390): passes of K particles, one of which follows a path drawn from
    the previous pass. This leaves the target distribution invariant for every K >= 2. The first
    pass is SMC that resamples at every state.
    """
    how = _weighting(walk, rule)._replace(scheme='multinomial', threshold=None)
    reference, free = None, walk.start(sizes.particles)
    for i in range(sizes.iterations):
        result = weighted_pass(walk, free, how, iteration=i, reference=reference)
        drawn = walk.draw(result.logw, i, walk.flow.steps)
        if i + 1 < sizes.iterations:
            anew = backward_path(walk, result, drawn, i) if rule.backward else None
            reference = anew or path(result, drawn)
            free = walk.start(sizes.particles - 1, i + 1, first=1)
    return Found(result.particles, drawn)


def svdd(walk: Walk, sizes: Sizes, rule: Rule) -> Found:
    """Soft value-based decoding (2408.08252): every step keeps one of M next states."""
    return _first(candidate_pass(walk, walk.start(sizes.designs), sizes.candidates, rule.alpha))


def refine(walk: Walk, sizes: Sizes, rule: Rule, given: jax.Array | None = None) -> Found:
    """Reward-guided iterative refinement (2502.14944): each round selects designs, renoises them to
    a middle noise level, and denoises them with candidates.

    Args:
      given: clean latents [P, B, ...] to start from, instead of a first pass.
    """
    if given is None:
        p = candidate_pass(walk, walk.start(sizes.designs), sizes.candidates, rule.alpha)
    else:
        p = walk.score(walk.evaluate(given, walk.flow.steps), 0)
    best, before = _best(p), np.zeros_like(p.reward)
    for i in range(1, sizes.rounds + 1):
        logw = (p.reward - before if rule.incremental else p.reward) / rule.selection
        index, _ = walk.resample(logw, i, walk.flow.steps)
        p = p.take(index)
        before = p.reward
        s, noise = walk.flow.sigmas[sizes.from_state], walk.normal(p.x.shape[1], i)
        p = walk.evaluate(renoise(p.x / walk.flow.end, s, noise), sizes.from_state)
        p = candidate_pass(walk, p, sizes.candidates, rule.alpha, iteration=i)
        if rule.keep_best:
            lost = best.reward > p.reward.max(1, keepdims=True)
            lost = lost & (np.arange(p.x.shape[1]) == p.reward.argmin(1)[:, None])
            p = best.take(np.zeros(p.x.shape[1], int)).where(lost, p)
            before, best = np.where(lost, p.reward, before), _best(p)
    return _first(p)


def psi(walk: Walk, sizes: Sizes, rule: Rule) -> Found:
    """The Psi-Sampler (2506.01320): initial noise from a chain for N(0, I) exp(r(x0hat) / alpha),
    then SMC, both guided if the reward has a gradient.

    The chain's density already includes the reward, so the SMC begins with equal weights. It also
    reuses the chain's velocities in its first step.
    """
    chains, states = walk.score(walk.start(sizes.chains), 0), {}
    wanted = kept_states(sizes.particles, sizes.chains, sizes.kept)
    options = dict(alpha=rule.temperature, step_size=rule.step_size)
    for i in range(1, sizes.burn_in + sizes.kept + 1):
        chains = chain_step(walk, chains, i, **options)
        states[i - sizes.burn_in - 1] = chains
    first, *others = (states[step].take(np.array([c])) for step, c in wanted)
    for one in others:
        first = first.join(one)
    # A state without a score has no such density: its weight is 0.
    carried = np.where(np.isfinite(first.reward), -first.reward / rule.temperature, -np.inf)
    last, how = sizes.burn_in + sizes.kept + 1, _weighting(walk, rule)
    result = weighted_pass(walk, first, how, iteration=last, carried=carried)
    return Found(result.particles, walk.draw(result.logw, last, walk.flow.steps))


METHODS: dict[str, Callable[..., Found]] = {
    'best_of_n': best_of_n,
    'smc': smc,
    'svdd': svdd,
    'pg': pg,
    'psi': psi,
    'refine': refine,
}


def _weighting(walk: Walk, rule: Rule) -> Weighting:
    states = default_states(walk.flow.stochastic, rule.every)
    return Weighting(rule.temperature, states, rule.scheme, rule.threshold)


def _first(p: Particles) -> Found:
    """Particles of equal weight: the first is the drawn one."""
    return Found(p, np.zeros(len(p.x), int))


def _best(p: Particles) -> Particles:
    """The best particle of each prompt."""
    return p.take(p.reward.argmax(1)[:, None])
