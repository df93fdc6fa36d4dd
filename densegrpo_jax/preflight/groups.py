"""What the rewards of groups tell: their spread, and what completions keep of it."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from densegrpo_jax.preflight.signal import Interval, Rewards, jackknifed, rounding, within

LACKS = 0.05  # of a rank correlation: a completion that lies this little below keeps the order


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
    same = (np.abs(r[:, :, None] - r[:, None, :]) <= rounding(r)) & pairs
    best = np.full(len(r), np.nan)
    best[groups] = np.nanmax(r[groups], axis=1) - np.nanmean(r[groups], axis=1)

    def of(variance, same, pairs, best):
        ties = same.sum() / max(pairs.sum(), 1)
        return np.array([np.sqrt(np.nanmean(variance)), ties, np.nanmean(best)])

    deviation, *others = jackknifed(of, [variance, same.sum((1, 2)), pairs.sum((1, 2)), best])
    zero = share_without(r, r.shape[1])
    return Spread(deviation, zero, *others, float(np.isfinite(r).mean()))


class Without(NamedTuple):
    """The share of groups of `size` samples that have no spread of rewards."""

    size: int
    share: Interval


def without_spread(rewards: Rewards, noisy: np.ndarray, size: int) -> Without:
    """Of groups of `size` samples, as training has them, or of as many as are measured.

    Where it is more than a group that was measured, twins count as samples of their prompt, which
    they are; but those of late states share much with their sample, so that such groups come out
    rather too flat. noisy: bool [T]; only twins from there are images of their own.
    """
    each = rewards.terminal
    if size > each.shape[1]:
        each = np.concatenate([each, *rewards.twins[noisy]], axis=1)
    return Without(min(size, each.shape[1]), share_without(each, size))


def share_without(rewards: np.ndarray, size: int) -> Interval:
    """Share of groups of `size` without a spread, over all choices of as many of the rewards of
    every prompt [P, n]; of all that have a score where they are fewer, two at least.

    The interval is that of Clopper and Pearson, which holds for shares of a prompt between 0 and 1
    too: they vary less than 0 and 1 do.
    """
    from scipy.stats import beta

    shares = np.array([_alike(row[np.isfinite(row)], size, rounding(rewards)) for row in rewards])
    shares = shares[np.isfinite(shares)]
    if not len(shares):
        return Interval(*[float('nan')] * 3)
    without, others = shares.sum(), (1 - shares).sum()
    low = beta.ppf(0.025, without, others + 1) if without > 0 else 0.0
    high = beta.ppf(0.975, without + 1, others) if others > 0 else 1.0
    return Interval(float(shares.mean()), float(low), float(high))


def _alike(values: np.ndarray, size: int, equal: float) -> float:
    """The chance that `size` of the values, drawn without putting back, are all the same."""
    size = min(size, len(values))
    if size < 2:
        return math.nan
    ends = np.flatnonzero(np.diff(np.sort(values)) > equal)
    counts = np.diff([0, *(ends + 1), len(values)])
    return sum(math.comb(int(n), size) for n in counts) / math.comb(len(values), size)


class Kept(NamedTuple):
    """What completions by few steps keep of the full ones' order of samples.

    Attributes:
      rank: steps of the completion, 0: all -> mean over groups of Spearman's correlation with the
        terminal reward, for each of T states. A completion that scores a whole group alike keeps
        nothing of its order: 0. NaN where no group has a spread of terminal rewards.
      below: steps -> how far its mean over states lies below that of full completions; the states
        are those that trained transitions leave.
      cheapest: the smallest number of steps for which all of its interval is at most LACKS; 0:
        only full ones are known to keep it.
    """

    rank: dict[int, list[Interval]]
    below: dict[int, Interval]
    cheapest: int


def kept(rewards: Rewards, trained: np.ndarray) -> Kept:
    """Of rewards that are `whole`. trained: bool [T]."""
    counts = sorted(rewards.completions)
    rho = np.stack([_ranked(rewards.completions[n], rewards.terminal) for n in counts])
    rank = jackknifed(lambda a: np.nanmean(a, axis=-1).ravel(), [rho])
    rows = {n: rank[i * rewards.steps : (i + 1) * rewards.steps] for i, n in enumerate(counts)}
    full, few = counts.index(0), [n for n in counts if n]
    of_states = rho[:, trained]
    lacking = jackknifed(
        lambda a: np.nanmean(np.nanmean(a[full] - a, axis=-1), axis=-1), [of_states]
    )
    below = {n: lacking[counts.index(n)] for n in few}
    return Kept(rows, below, next((n for n in few if below[n].high <= LACKS), 0))


def _ranked(values: np.ndarray, terminal: np.ndarray) -> np.ndarray:
    """[T, P] Spearman's correlations of completions [T, P, G] with the terminal reward."""
    from scipy.stats import rankdata

    ranks = lambda a: rankdata(a, axis=-1, nan_policy='omit')
    of_states, of_terminal = ranks(values), ranks(terminal)
    joint = within(of_states, np.broadcast_to(of_terminal, of_states.shape))
    wanted = within(of_terminal, of_terminal)
    scale = np.sqrt(within(of_states, of_states) * wanted)
    with np.errstate(all='ignore'):
        none = np.where((wanted > 0) & np.isfinite(joint), 0, np.nan)
        return np.where(scale > 0, joint / np.where(scale > 0, scale, 1), none)


def balance(rewards: Rewards) -> tuple[np.ndarray, np.ndarray]:
    """(positive, negative) int [T]: gains of the full completions, as calibration counts them."""
    values = np.concatenate([rewards.completions[0], rewards.terminal[None]])
    gains = np.diff(values, axis=0)
    return (gains > 0).sum((1, 2)), (gains < 0).sum((1, 2))
