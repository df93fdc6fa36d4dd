"""What a budget of network evaluations buys: the sizes of a method, and its exact cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from densegrpo_jax.search.methods import METHODS, Sizes
from densegrpo_jax.search.passes import default_states


class Cost(NamedTuple):
    """Of one prompt."""

    evaluations: int  # of the network
    pictures: int  # decoded and scored
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

    With T steps, W of whose states are weighed, and C of whose states have candidates:

        best_of_n  N T                                  N pictures
        smc        K T                                  K (W + 1)
        pg         K T + (m - 1) (K - 1) T              (W + 1) (K + (m - 1) (K - 1))
        svdd       B (1 + steps of M or 1)              B (C M + 1)
        refine     the same, and as much a round from its state
        psi        chains (1 + burn-in + kept) + K (T - 1)

    Args:
      stochastic: bool [T], `Flow.stochastic`.
      every: as in `Rule`. guided: evaluations take gradients, which bring the reward along.
      given: refine begins with pictures that are given.
    """
    steps, z = len(stochastic), sizes
    weighed = int(default_states(stochastic, every).sum())

    def candidates(first):
        """(evaluations after the first state's, pictures) of one design from state `first`."""
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
        # State 0 is weighed without another picture: the chain has scored it.
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
    """The sizes with which a method spends at most `budget` evaluations on a prompt, and as much of
    it as it can.

    Args:
      particles: K of pg (0: 4), of psi (0: what half of the budget buys); of best_of_n and smc, of
        which the budget decides the number, 0.
      candidates: M of svdd and refine.
      designs: B of refine; 0: at most 4, as many as have half of the budget left for rounds. Of
        svdd the budget decides.
      chains: of psi; 0: at most 4, as many as make 8 steps each.
      from_state: of refine's rounds.
      given: pictures that refine begins with; they are its designs.

    Raises:
      ValueError: the budget does not pay for the least of a method; names what would do.
    """
    spends = lambda **sizes: cost(method, Sizes(**sizes), stochastic, given=bool(given)).evaluations

    def most(size: Callable[[int], dict], low: int, high: int | None = None) -> int:
        """The largest n >= low whose cost is within the budget."""
        if spends(**size(low)) > budget:
            raise ValueError(
                f'search.nfe={budget} is too small for {method}: the least it can do with these '
                f'sizes, {size(low)}, takes {spends(**size(low))} evaluations'
            )
        n = low
        while (high is None or n < high) and spends(**size(n + 1)) <= budget:
            n += 1
        return n

    if method in ('best_of_n', 'smc'):
        least = 1 if method == 'best_of_n' else 2
        return Sizes(particles=most(lambda n: {'particles': n}, least))
    if method == 'pg':
        count = particles or 4
        if count < 2:
            raise ValueError(f'search.particles={count}: a pass that keeps one path needs another')
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
            raise ValueError(
                'search.from_level=0: a round from the finished picture changes nothing'
            )
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
