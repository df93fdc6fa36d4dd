"""The sizes of a method that a budget of network evaluations pays for, and the exact cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from densegrpo_jax.search.methods import METHODS, Sizes
from densegrpo_jax.search.passes import default_states


class Cost(NamedTuple):
    """The cost of one prompt."""

    evaluations: int  # of the network
    images: int  # decoded and scored
    gradients: int = 0  # of the reward, through decoder and network: about two evaluations each


def cost(
    method: str,
    sizes: Sizes,
    stochastic: np.ndarray,
    *,
    every: int = 1,
    guided: bool = False,
    given: bool = False,
) -> Cost:
    """Exact cost of a search; a test counts it.

    With T steps, W weighed states, and C states with candidates:

        best_of_n  N T                                  N images
        smc        K T                                  K (W + 1)
        pg         K T + (m - 1) (K - 1) T              (W + 1) (K + (m - 1) (K - 1))
        svdd       B (1 + steps of M or 1)              B (C M + 1)
        refine     the same, plus the cost of each round from its state
        psi        chains (1 + burn-in + kept) + K (T - 1)

    Args:
      stochastic: bool [T], `Flow.stochastic`.
      every: as in `Rule`. guided: evaluations take gradients, which also give the reward.
      given: refine starts from given images.
    """
    steps, z = len(stochastic), sizes
    weighed = int(default_states(stochastic, every).sum())

    def candidates(first):
        """(evaluations after the first state's, images) of one design from state `first`."""
        many = [z.candidates if stochastic[k] and k + 1 < steps else 1 for k in range(first, steps)]
        return sum(many[:-1]), sum(m for m in many if m > 1) + 1

    if method == 'best_of_n':
        return Cost(z.particles * steps, z.particles)
    if method == 'smc':
        spent, seen = z.particles * steps, z.particles * (weighed + 1)
        return Cost(spent, z.particles if guided else seen, spent * guided)
    if method == 'pg':
        rows = z.particles + (z.iterations - 1) * (z.particles - 1)
        return Cost(rows * steps, rows * (weighed + 1))
    if method == 'svdd':
        spent, seen = candidates(0)
        return Cost(z.designs * (1 + spent), z.designs * seen)
    if method == 'refine':
        spent, seen = (-1, 1) if given else candidates(0)
        again, seen_again = (-1, 1) if z.from_state == steps else candidates(z.from_state)
        rounds = (z.rounds * (1 + again), z.rounds * seen_again)
        return Cost(z.designs * (1 + spent + rounds[0]), z.designs * (seen + rounds[1]))
    if method == 'psi':
        chain = z.chains * (1 + z.burn_in + z.kept)
        spent = chain + z.particles * (steps - 1)
        # State 0 needs no further image for its weight: the chain has scored it.
        first = int(default_states(stochastic, every)[0])
        seen = chain + z.particles * (weighed - first + 1)
        return Cost(spent, z.particles if guided else seen, spent * guided)
    raise ValueError(f'unknown method {method!r}; expected one of {tuple(METHODS)}')


def sizes_for(
    method: str,
    budget: int,
    stochastic: np.ndarray,
    *,
    particles: int = 0,
    candidates: int = 4,
    designs: int = 0,
    chains: int = 0,
    from_state: int = 1,
    given: int = 0,
) -> Sizes:
    """The sizes with which a method spends as much as possible of `budget` evaluations per prompt.

    Args:
      particles: K of pg (0: 4) or psi (0: what half of the budget pays for); 0 for best_of_n and
        smc, whose number the budget decides.
      candidates: M of svdd and refine.
      designs: B of refine; 0: at most 4, as many as leave half of the budget for rounds. For svdd
        the budget decides.
      chains: of psi; 0: at most 4, as many as make 8 steps each.
      from_state: of refine's rounds.
      given: number of images that refine starts from; they are its designs.

    Raises:
      ValueError: the budget does not pay for the method's smallest sizes; the message says what
        would.
    """
    spends = lambda **sizes: cost(method, Sizes(**sizes), stochastic, given=bool(given)).evaluations

    def most(size: Callable[[int], dict], low: int) -> int:
        """The largest n >= low whose cost is within the budget."""
        if spends(**size(low)) > budget:
            raise ValueError(
                f'search.nfe={budget} is too small for {method}: its smallest search with these '
                f'sizes, {size(low)}, takes {spends(**size(low))} evaluations'
            )
        n = low
        while spends(**size(n + 1)) <= budget:
            n += 1
        return n

    if method in ('best_of_n', 'smc'):
        least = 1 if method == 'best_of_n' else 2
        return Sizes(particles=most(lambda n: {'particles': n}, least))
    if method == 'pg':
        count = particles or 4
        if count < 2:
            raise ValueError(
                f'search.particles={count}: a pass that keeps one path needs a second particle'
            )
        repeats = most(lambda m: {'particles': count, 'iterations': m}, 1)
        return Sizes(particles=count, iterations=repeats)
    if method == 'svdd':
        return Sizes(
            designs=most(lambda b: {'designs': b, 'candidates': candidates}, 1),
            candidates=candidates,
        )
    if method == 'refine':
        fixed = dict(candidates=candidates, from_state=from_state)
        count = given or designs
        if not count:
            one = spends(designs=1, **fixed)
            count = max(1, min(4, budget // (2 * one)))
        fixed['designs'] = count
        if spends(rounds=1, **fixed) == spends(rounds=0, **fixed):
            raise ValueError('search.from_level=0: a round from the finished image changes nothing')
        least = 1 if given else 0
        return Sizes(rounds=most(lambda s: {'rounds': s, **fixed}, least), **fixed)
    if method == 'psi':
        steps = len(stochastic)
        count = particles or max(2, (budget // 2) // max(steps - 1, 1))
        rest = budget - count * (steps - 1)
        many = chains or max(1, min(4, rest // 9))
        fixed = dict(particles=count, chains=many)
        length = most(lambda n: {**fixed, 'burn_in': n // 2, 'kept': n - n // 2}, 1)
        return Sizes(**fixed, burn_in=length // 2, kept=length - length // 2)
    raise ValueError(f'unknown method {method!r}; expected one of {tuple(METHODS)}')
