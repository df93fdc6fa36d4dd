"""What the rewards of groups tell without twins: their spread, and what completions keep of it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from densegrpo_jax.preflight.signal import FLAT, Interval, Rewards, jackknifed, within

LACKS = 0.05  # of a rank correlation: a completion that lies this little below keeps the order


class Spread(NamedTuple):
    """How the rewards of a group differ.

    Attributes:
      deviation: standard deviation within groups.
      zero: share of groups without any; its interval is that of Clopper and Pearson.
      telling: number of groups with some.
      ties: share of pairs of a group with equal rewards.
      best: mean over groups of the best reward minus the mean.
      valid: share of samples with a score.
    """

    deviation: Interval
    zero: Interval
    ties: Interval
    best: Interval
    valid: float
    telling: int


def spread(terminal: np.ndarray) -> Spread:
    """Of the rewards [P, G] of samples; NaN where there is none, alone or with their twins."""
    from scipy.stats import binomtest

    r = terminal
    variance = within(r, r)
    groups = np.isfinite(variance)  # with two samples at least
    pairs = np.isfinite(r[:, :, None] + r[:, None, :]) & ~np.eye(r.shape[1], dtype=bool)
    same = (np.abs(r[:, :, None] - r[:, None, :]) < 1e-9) & pairs
    best = np.full(len(r), np.nan)
    best[groups] = np.nanmax(r[groups], axis=1) - np.nanmean(r[groups], axis=1)
    zero, telling = Interval(*[float('nan')] * 3), int((variance[groups] >= FLAT).sum())
    if groups.any():
        flat = binomtest(int(groups.sum()) - telling, int(groups.sum()))
        zero = Interval(flat.statistic, *map(float, flat.proportion_ci()))

    def of(variance, same, pairs, best):
        ties = same.sum() / max(pairs.sum(), 1)
        return np.array([np.sqrt(np.nanmean(variance)), ties, np.nanmean(best)])

    deviation, *others = jackknifed(of, [variance, same.sum((1, 2)), pairs.sum((1, 2)), best])
    return Spread(deviation, zero, *others, float(np.isfinite(r).mean()), telling)


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
