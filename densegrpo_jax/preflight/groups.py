"""What the rewards of groups tell without twins: their spread, and what completions keep of it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from densegrpo_jax.preflight.signal import FLAT, Interval, Rewards, bootstrap, within


class Spread(NamedTuple):
    """How the rewards of a group differ.

    Attributes:
      deviation: standard deviation within groups.
      zero: share of groups without any.
      ties: share of pairs of a group with equal rewards.
      best: mean over groups of the best reward minus the mean.
      valid: share of samples with a score.
    """

    deviation: Interval
    zero: Interval
    ties: Interval
    best: Interval
    valid: float


def spread(terminal: np.ndarray) -> Spread:
    """Of the rewards [P, G] of samples; NaN where there is none, alone or with their twins."""
    r = terminal
    variance = within(r, r)
    groups = np.isfinite(variance)  # with two samples at least
    pairs = np.isfinite(r[:, :, None] + r[:, None, :]) & ~np.eye(r.shape[1], dtype=bool)
    same = (np.abs(r[:, :, None] - r[:, None, :]) < 1e-9) & pairs
    best = np.full(len(r), np.nan)
    best[groups] = np.nanmax(r[groups], axis=1) - np.nanmean(r[groups], axis=1)
    flat = np.where(groups, variance < FLAT, np.nan)

    def of(variance, flat, same, pairs, best):
        ties = same.sum() / max(pairs.sum(), 1)
        return np.array([np.sqrt(np.nanmean(variance)), np.nanmean(flat), ties, np.nanmean(best)])

    arrays = [variance, flat, same.sum((1, 2)), pairs.sum((1, 2)), best]
    return Spread(*bootstrap(of, arrays), float(np.isfinite(r).mean()))


class Kept(NamedTuple):
    """What completions by few steps keep of the full ones' order of samples.

    Attributes:
      rank: steps of the completion, 0: all -> mean over groups of Spearman's correlation with the
        terminal reward, for each of T states; NaN where no group has a spread in both.
      below: steps -> how far its mean over states lies below that of full completions; the states
        are those that trained transitions leave.
      cheapest: the smallest number of steps for which that is at most a standard error, by the
        same bootstrap; 0: only full ones keep it.
    """

    rank: dict[int, list[Interval]]
    below: dict[int, Interval]
    cheapest: int


def kept(rewards: Rewards, trained: np.ndarray) -> Kept:
    """Of rewards that are `whole`. trained: bool [T]."""
    counts = sorted(rewards.completions)
    rho = np.stack([_ranked(rewards.completions[n], rewards.terminal) for n in counts])
    rank = bootstrap(lambda a: np.nanmean(a, axis=-1).ravel(), [rho])
    rows = {n: rank[i * rewards.steps : (i + 1) * rewards.steps] for i, n in enumerate(counts)}
    full, few = counts.index(0), [n for n in counts if n]
    of_states = rho[:, trained]
    lacking = bootstrap(
        lambda a: np.nanmean(np.nanmean(a[full] - a, axis=-1), axis=-1), [of_states]
    )
    below = {n: lacking[counts.index(n)] for n in few}
    error = lambda d: (d.high - d.low) / (2 * 1.96)
    return Kept(rows, below, next((n for n in few if below[n].value <= error(below[n])), 0))


def _ranked(values: np.ndarray, terminal: np.ndarray) -> np.ndarray:
    """[T, P] Spearman's correlations of completions [T, P, G] with the terminal reward."""
    from scipy.stats import rankdata

    ranks = lambda a: rankdata(a, axis=-1, nan_policy='omit')
    of_states, of_terminal = ranks(values), ranks(terminal)
    joint = within(of_states, np.broadcast_to(of_terminal, of_states.shape))
    scale = np.sqrt(within(of_states, of_states) * within(of_terminal, of_terminal))
    with np.errstate(all='ignore'):
        return np.where(scale > 0, joint / np.where(scale > 0, scale, 1), np.nan)


def balance(rewards: Rewards) -> tuple[np.ndarray, np.ndarray]:
    """(positive, negative) int [T]: gains of the full completions, as calibration counts them."""
    values = np.concatenate([rewards.completions[0], rewards.terminal[None]])
    gains = np.diff(values, axis=0)
    return (gains > 0).sum((1, 2)), (gains < 0).sum((1, 2))
