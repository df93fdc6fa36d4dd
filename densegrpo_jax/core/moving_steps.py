"""Trained transitions that change between iterations: a window that moves along the grid (MixGRPO),
a random subset (DanceGRPO). All choices are made on the host, from the iteration alone or from a
key.
"""

import math
from collections.abc import Sequence

import jax
import numpy as np

STAY_RULES = ('constant', 'linear', 'exponential')


def stays(places: int, stay: int, rule: str = 'constant', least: int = 1) -> tuple[int, ...]:
    """How many iterations a window stays at each of its places (MixGRPO, arXiv 2507.21802).

        constant     stay
        linear       from stay at the first place to `least` at the last, rounded
        exponential  ceil(stay exp(-0.1 relu(p - 13))) at place p = 0, 1, ...

    Raises:
        ValueError: an unknown rule, or a number below 1.
    """
    if rule not in STAY_RULES:
        raise ValueError(f'the rule is {rule!r}; expected one of {STAY_RULES}')
    if min(places, stay, least) < 1:
        raise ValueError(f'places, stay and least are {places, stay, least}; expected 1 or more')
    if rule == 'linear':
        last = max(places - 1, 1)
        return tuple(max(1, round(stay + (least - stay) * p / last)) for p in range(places))
    if rule == 'exponential':
        return tuple(math.ceil(stay * math.exp(-0.1 * max(p - 13, 0))) for p in range(places))
    return (stay,) * places


def window_at(
    iteration: int, allowed: Sequence[int], width: int, staying: Sequence[int]
) -> np.ndarray:
    """The window at an iteration: it begins at the first allowed transition, moves by one after the
    iterations that it stays at a place, and starts again after the last place.

    Args:
        allowed: the transitions that may be trained, increasing.
        width: w, at most their number.
        staying: `stays` of len(allowed) - width + 1 places.

    Returns:
        int32 [w], increasing.
    """
    places = _places(allowed, width)
    if len(staying) != places:
        raise ValueError(f'staying has {len(staying)} entries; the window has {places} places')
    ends = np.cumsum(staying)
    place = int(np.searchsorted(ends, iteration % ends[-1], side='right'))
    return np.asarray(allowed[place : place + width], np.int32)


def random_window(key: jax.Array, allowed: Sequence[int], width: int) -> np.ndarray:
    """A window of w allowed transitions at a random place, int32 [w]."""
    place = int(jax.random.randint(key, (), 0, _places(allowed, width)))
    return np.asarray(allowed[place : place + width], np.int32)


def random_subset(key: jax.Array, allowed: Sequence[int], count: int) -> np.ndarray:
    """`count` different allowed transitions at random, int32 [count], increasing."""
    if not 1 <= count <= len(allowed):
        raise ValueError(f'count is {count}; expected 1 to {len(allowed)} transitions')
    chosen = jax.random.permutation(key, len(allowed))[:count]
    return np.sort(np.asarray(allowed, np.int32)[np.asarray(chosen)])


def subset_size(fraction: float, allowed: int) -> int:
    """floor(fraction * allowed), at least 1. The smallest rounding error above an integer does not
    count against it.
    """
    return max(1, math.floor(fraction * allowed + 1e-9))


def _places(allowed: Sequence[int], width: int) -> int:
    if not 1 <= width <= len(allowed):
        raise ValueError(f'width is {width}; expected 1 to {len(allowed)} transitions')
    return len(allowed) - width + 1
