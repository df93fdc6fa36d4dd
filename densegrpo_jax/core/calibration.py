"""Exploration-space calibration: per-step noise levels psi from the signs of the gains (DenseGRPO
Sec. 4.2, Algorithm 1).
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

RULES = ('paper', 'scaled')


def count_gains(
    gains: Float[np.ndarray, 'T N'],
) -> tuple[Int[np.ndarray, 'T'], Int[np.ndarray, 'T']]:
    """Numbers of positive and negative gains per transition.

    Args:
        gains: [T, N] per-transition gains of N trajectories.

    Returns:
        (positives int [T], negatives int [T]); ties and NaN count in neither.
    """
    gains = np.asarray(gains)
    return np.sum(gains > 0, axis=1), np.sum(gains < 0, axis=1)


def calibrate_step(
    psi: Float[np.ndarray, 'T'] | Sequence[float],
    positives: Int[np.ndarray, 'T'] | Sequence[int],
    negatives: Int[np.ndarray, 'T'] | Sequence[int],
    stochastic: Bool[np.ndarray, 'T'] | Sequence[bool],
    *,
    rule: str = 'scaled',
    eps1: float = 2,
    eps2: float = 0.01,
    z: float = 1.0,
    bounds: tuple[float, float] = (1e-3, 2.0),
    min_count: int = 8,
) -> Float[np.ndarray, 'T']:
    """One update of psi: more noise where gains and losses are balanced, less where they are not.

        paper    psi += eps2 if |p - q| < eps1 (balanced), else psi -= eps2; Algorithm 1 as printed
        scaled   psi *= exp(eps2) if |p - q| <= z sqrt(p + q) (balanced), else psi *= exp(-eps2);
                 no move if p + q < min_count

    The printed rule depends on N. With perfectly fair gains P(|p - q| < 2) falls with N, and psi
    sinks to its bound. With a discrete reward ties make p = q = 0, "balanced", and psi climbs to
    its bound. The scaled rule compares with sqrt(p + q), the standard deviation of p - q under fair
    gains, and rests where it is balanced half of the time.

    Args:
        psi: [T] noise levels; positives, negatives: int [T]; stochastic: bool [T], the transitions
            that may move.
        rule: 'paper' or 'scaled'.
        eps1, eps2, z, min_count: as above.
        bounds: (low, high), 0 < low <= high: limits of a moved psi.

    Returns:
        np.float64 [T].
    """
    low, high = bounds
    if not 0 < low <= high:
        raise ValueError(f'bounds are {bounds}; expected 0 < low <= high')
    psi, p, q = (
        np.asarray(psi, np.float64),
        np.asarray(positives, np.float64),
        np.asarray(negatives, np.float64),
    )
    stochastic = np.asarray(stochastic, bool)
    if not psi.shape == p.shape == q.shape == stochastic.shape:
        raise ValueError(
            f'shapes differ: psi {psi.shape}, positives {p.shape}, negatives {q.shape}, stochastic '
            f'{stochastic.shape}'
        )
    if rule == 'paper':
        moved = psi + np.where(np.abs(p - q) < eps1, eps2, -eps2)
        moves = stochastic
    elif rule == 'scaled':
        moved = psi * np.exp(np.where(np.abs(p - q) <= z * np.sqrt(p + q), eps2, -eps2))
        moves = stochastic & (p + q >= min_count)
    else:
        raise ValueError(f'unknown calibration rule {rule!r}; expected one of {RULES}')
    return np.where(moves, np.clip(moved, low, high), psi)


def has_settled(
    history: Float[np.ndarray, 'I T'] | Sequence[Float[np.ndarray, 'T'] | Sequence[float]],
    window: int,
    drift: float,
    *,
    rule: str,
    eps2: float,
) -> bool:
    """Whether psi only oscillates: its mean over the last `window` iterations is that over the
    `window` before them.

    Steps all one way move that mean by eps2 * window, of log psi where steps are relative
    ('scaled'), of psi where they are absolute ('paper'). Psi has settled if the mean absolute
    difference over the transitions is below `drift` times that.

    Args:
        history: [I, T] psi after each iteration, oldest first; above 0.

    Returns:
        bool; False while there are fewer than 2 * window iterations.
    """
    history = np.asarray(history, np.float64)
    if len(history) < 2 * window:
        return False
    stepped = np.log(history) if rule == 'scaled' else history
    last, before = stepped[-window:].mean(0), stepped[-2 * window : -window].mean(0)
    return bool(np.abs(last - before).mean() < drift * eps2 * window)
