"""What the rewards of rollouts, twins and completions tell about credit: pure statistics.

A *twin* of a sample at state k leaves the sample's own state x_k with fresh noise. Given x_k both
are independent, so their covariance is the variance of what x_k has decided:

    c_k = Cov(R, R_twin(k)) = Var(E[R | x_k])        within a prompt
    d_k = c_{k+1} - c_k                              what transition k decides

The twin at the end is the same image, scored again: Var(R) - c_T is noise of the reward itself.

The effect of transition k is delta_k = E[R | x_{k+1}] - E[R | x_k], with variance d_k. No run can
see it, but its covariance with any credit A_k of the sample is that with the twins' rewards:

    Cov(A_k, delta_k) = Cov(A_k, R_twin(k+1) - R_twin(k))

The *signal* of a credit is the mean of the squared correlation of A_k and delta_k over transitions,
weighted by d_k:

    signal = sum_k Cov(A_k, delta_k)^2 / Var(A_k)  /  sum_k d_k

1 if credits are the effects themselves. 1 / signal goes with the number of samples that a gradient
of a given precision takes, as far as transitions count by what they decide and their gradients are
orthogonal: a rule of thumb, not a law.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

RESAMPLES = 1000


class Rewards(NamedTuple):
    """Rewards of P prompts x G samples on T transitions; NaN where an image has no score.

    Attributes:
      terminal: [P, G] of the samples. again: [P, G], the same images scored once more.
      twins: [T, P, G] of a twin from every state 0 ... T-1.
      completions: steps -> [T, P, G] of the completions of states 0 ... T-1 by that many ODE steps,
        or as many as are left; 0: all.
      similarity: [T + 1, P, G] cosines of the predicted and the final latent; 1 at T.
    """

    terminal: np.ndarray
    again: np.ndarray
    twins: np.ndarray
    completions: Mapping[int, np.ndarray]
    similarity: np.ndarray

    @property
    def steps(self) -> int:
        return len(self.twins)

    def whole(self) -> Rewards:
        """Samples with a missing reward are NaN throughout, so that all statistics are over the
        same samples.
        """
        arrays = [self.terminal[None], self.again[None], self.twins, *self.completions.values()]
        good = np.isfinite(np.concatenate(arrays)).all(0)
        keep = lambda a: np.where(good, a, np.nan).astype(np.float64)
        return Rewards(
            keep(self.terminal),
            keep(self.again),
            keep(self.twins),
            {n: keep(a) for n, a in self.completions.items()},
            keep(self.similarity),
        )


class Interval(NamedTuple):
    """An estimate with a 95 % bootstrap interval over prompts."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if math.isnan(self.value):
            return 'unknown'
        return f'{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]'


def within(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[..., P] unbiased covariances within groups [..., P, G]; NaN with fewer than two samples."""
    good = np.isfinite(a) & np.isfinite(b)
    n = good.sum(-1)
    of = lambda x: np.where(good, x, 0)
    centred = lambda x: np.where(good, x - (of(x).sum(-1) / np.maximum(n, 1))[..., None], 0)
    found = (centred(a) * centred(b)).sum(-1) / np.maximum(n - 1, 1)
    return np.where(n > 1, found, np.nan)


class Decided(NamedTuple):
    """Shares of the reward's variance: prompts, first noise, every transition, noise of the reward;
    they sum to 1.
    """

    prompt: Interval
    noise: Interval
    steps: list[Interval]
    reward: Interval
    trained: Interval  # of all trained transitions together
    total: float  # the variance itself


def bootstrap(
    statistic: Callable[..., np.ndarray], arrays: list[np.ndarray], seed: int = 0
) -> list[Interval]:
    """Intervals of a statistic (arrays [..., P] -> [S]) over resampled prompts."""
    count = arrays[0].shape[-1]
    rng = np.random.default_rng(seed)
    with np.errstate(all='ignore'), warnings.catch_warnings():
        warnings.simplefilter('ignore', RuntimeWarning)  # a resample in which nothing is defined
        value = np.atleast_1d(statistic(*arrays))
        drawn = []
        for _ in range(RESAMPLES):
            rows = rng.integers(count, size=count)
            drawn.append(np.atleast_1d(statistic(*(a[..., rows] for a in arrays))))
        low, high = np.nanpercentile(np.array(drawn), [2.5, 97.5], axis=0)
    return [Interval(*map(float, each)) for each in zip(value, low, high)]


def covariances(rewards: Rewards) -> np.ndarray:
    """c_k [T + 1, P]."""
    terminal = rewards.terminal[None]
    twins = np.concatenate([rewards.twins, rewards.again[None]])
    return within(np.broadcast_to(terminal, twins.shape), twins)


def decided(rewards: Rewards, trained: np.ndarray | None = None) -> Decided:
    """What decides the reward, from rewards that are `whole`. trained: bool [T]; None: all."""
    c, sizes = covariances(rewards), np.isfinite(rewards.terminal).sum(-1)
    own = within(rewards.terminal, rewards.terminal)
    on = np.ones(rewards.steps, bool) if trained is None else trained
    means = np.where(sizes > 0, np.nansum(rewards.terminal, axis=1) / np.maximum(sizes, 1), 0)
    means = np.where(sizes > 1, means, np.nan)

    def shares(c, own, means, sizes):
        inner, variance = np.nanmean(c, axis=-1), np.nanmean(own)
        between = np.nanvar(means, ddof=1) - np.nanmean(own / np.maximum(sizes, 1))
        total = max(float(between), 0.0) + variance
        steps = np.diff(inner)
        parts = [max(float(between), 0.0), inner[0], variance - inner[-1]]
        return np.array([*(np.array([*parts, steps[on].sum(), *steps]) / total), total])

    found = bootstrap(shares, [c, own, means, sizes.astype(float)])
    prompt, noise, reward, together, *steps, total = found
    return Decided(prompt, noise, steps, reward, together, total.value)


class Signals(NamedTuple):
    """Credit -> its signal, and against that of `of`.

    Attributes:
      ratio: signal / signal of the credit `of`; NaN where the latter is not told from 0.
    """

    of: str
    signal: dict[str, Interval]
    ratio: dict[str, Interval]


def signals(
    rewards: Rewards, credits: Mapping[str, np.ndarray], trained: np.ndarray, of: str
) -> Signals:
    """The signal of every credit over the transitions `trained` [T].

    Squares of covariances leave out the products of a prompt with itself: a square of noise is not
    signal. So a signal may come out negative. Intervals are the jackknife's over prompts, of ratios
    on a logarithmic scale.

    Args:
      credits: name -> A_k [T, P, G] before normalisation. of: one of the names.
    """
    c = covariances(rewards)[:, None]
    following = np.concatenate([rewards.twins[1:], rewards.again[None]])
    rows = [(within(a, following - rewards.twins), within(a, a)) for a in credits.values()]
    covered, spread = (np.stack(part) for part in zip(*rows))  # [C, T, P]

    def square(x):
        x, count = np.where(np.isfinite(x), x, 0), np.isfinite(x).sum(-1)
        pairs = x.sum(-1) ** 2 - (x**2).sum(-1)
        return pairs / np.maximum(count * (count - 1), 1)

    def of_prompts(c, covered, spread):
        effect = np.diff(np.nanmean(c[:, 0], -1))
        total = np.where(trained, effect, 0).sum()
        inner = np.nanmean(spread, -1)
        usable = trained & (inner > 1e-18)
        found = np.where(usable, square(covered) / np.where(usable, inner, 1), 0).sum(-1)
        # no effect, no signal
        return found / total if total > 0 else np.full(len(found), np.nan)

    with np.errstate(all='ignore'), warnings.catch_warnings():
        warnings.simplefilter('ignore', RuntimeWarning)  # without a score nothing is defined
        value, parts = of_prompts(c, covered, spread), []
        for p in range(c.shape[-1]):
            parts.append(of_prompts(*(np.delete(a, p, axis=-1) for a in (c, covered, spread))))
        left_out = np.array(parts)  # [P, C]
        own = [*credits].index(of)
        signal = [jackknife(v, left_out[:, i]) for i, v in enumerate(value)]
        measured = signal[own].low > 0
        ratio = []
        for i, v in enumerate(value):
            logs = jackknife(np.log(v / value[own]), np.log(left_out[:, i] / left_out[:, own]))
            told = measured and v > 0 and np.isfinite(logs).all()
            ratio.append(Interval(*np.exp(logs)) if told else Interval(*[float('nan')] * 3))
    return Signals(of, dict(zip(credits, signal)), dict(zip(credits, ratio)))


def jackknife(value: float, left_out: np.ndarray) -> Interval:
    """A 95 % interval from the values with each of P prompts left out."""
    from scipy.stats import t as student

    count = len(left_out)
    error = np.sqrt((count - 1) / count * ((left_out - left_out.mean()) ** 2).sum())
    reach = float(student.ppf(0.975, count - 1) * error)
    return Interval(float(value), float(value) - reach, float(value) + reach)


class Spread(NamedTuple):
    """How the rewards of a group differ.

    Attributes:
      deviation: standard deviation within groups. zero: share of groups without any.
      ties: share of pairs of a group with equal rewards.
      valid: share of samples with all their scores.
      best: mean over groups of the best reward minus the mean.
    """

    deviation: Interval
    zero: float
    ties: float
    valid: float
    best: float


def spread(rewards: Rewards) -> Spread:
    """Of the terminal rewards."""
    r = rewards.terminal
    variance = within(r, r)
    deviation = bootstrap(lambda v: np.sqrt(np.nanmean(v, -1)), [variance])[0]
    groups = np.isfinite(variance)
    pairs = np.isfinite(r[:, :, None] + r[:, None, :]) & ~np.eye(r.shape[1], dtype=bool)
    same = (np.abs(r[:, :, None] - r[:, None, :]) < 1e-9) & pairs
    with np.errstate(all='ignore'), warnings.catch_warnings():
        warnings.simplefilter('ignore', RuntimeWarning)
        best = np.nanmean(np.nanmax(r[groups], axis=1) - np.nanmean(r[groups], axis=1))
    return Spread(
        deviation,
        float((variance[groups] < 1e-18).mean()) if groups.any() else float('nan'),
        float(same.sum() / max(pairs.sum(), 1)),
        float(np.isfinite(r).mean()),
        float(best) if groups.any() else float('nan'),
    )


def rank_correlations(rewards: Rewards) -> dict[int, list[float]]:
    """Steps of the completion -> mean over groups of Spearman's correlation with the terminal
    reward, for every state; NaN where no group has a spread in both.
    """
    from scipy.stats import rankdata

    def ranks(a):
        return rankdata(a, axis=-1, nan_policy='omit')

    of_terminal = ranks(rewards.terminal)
    variance = within(of_terminal, of_terminal)
    found = {}
    for n, values in rewards.completions.items():
        of_states = ranks(values)
        joint = within(of_states, np.broadcast_to(of_terminal, of_states.shape))
        scale = np.sqrt(within(of_states, of_states) * variance)
        with np.errstate(all='ignore'):
            rho = np.where(scale > 0, joint / np.where(scale > 0, scale, 1), np.nan)
            found[n] = [float(np.nanmean(x)) if np.isfinite(x).any() else np.nan for x in rho]
    return found


def balance(rewards: Rewards) -> tuple[np.ndarray, np.ndarray]:
    """(positive, negative) int [T]: gains of the full completions, as calibration counts them."""
    values = np.concatenate([rewards.completions[0], rewards.terminal[None]])
    gains = np.diff(values, axis=0)
    return (gains > 0).sum((1, 2)), (gains < 0).sum((1, 2))
