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

All variances are within groups: advantages are centred there, so what tells prompts apart is no
part of them. The signal is 1 if credits are the effects themselves. 1 / signal goes with the number
of samples that a gradient of a given precision takes, as far as transitions count by what they
decide and their gradients are orthogonal: a rule of thumb, not a law.

The credit of a branch (core/branch_plan.py) is V_{k+1} - E[V_{k+1} | x_k], V_k the reward of the
full completion: its group leaves one state. Dense credit V_{k+1} - V_k differs from it by a part
that x_k decides, whose covariance with delta_k is 0. So both have one covariance with delta_k, and
dense credit the larger variance: the signal of branches is at least that of dense credit.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

_ROUNDING = 1e-9  # of the largest reward: differences below it are none


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

    def _all(self) -> list[np.ndarray]:
        """[n, P, G] each."""
        return [self.terminal[None], self.again[None], self.twins, *self.completions.values()]

    def failed(self, noisy: np.ndarray) -> float:
        """Share of the images that have no score. noisy: bool [T]; only twins from there are images
        of their own. So are completions of n steps only where more than n are left.
        """
        alone = {n: a[: self.steps - n] if n else a for n, a in self.completions.items()}
        own = self._replace(twins=self.twins[noisy], completions=alone)
        return float(1 - np.isfinite(np.concatenate(own._all())).mean())

    def whole(self) -> Rewards:
        """Samples with a missing reward are NaN throughout, so that all statistics are over the
        same samples.
        """
        good = np.isfinite(np.concatenate(self._all())).all(0)
        keep = lambda a: np.where(good, a, np.nan).astype(np.float64)
        return Rewards(
            keep(self.terminal),
            keep(self.again),
            keep(self.twins),
            {n: keep(a) for n, a in self.completions.items()},
            keep(self.similarity),
        )


class Interval(NamedTuple):
    """An estimate with a 95 % interval over prompts, by `jackknife` unless said otherwise."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if math.isnan(self.value):
            return 'unknown'
        if math.isnan(self.low) or math.isnan(self.high):
            return f'{self.value:.3g} (interval unknown)'
        return f'{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]'


def rounding(rewards: np.ndarray) -> float:
    """The difference up to which two of these rewards are equal; NaN where there is none."""
    known = np.abs(rewards[np.isfinite(rewards)])
    return _ROUNDING * float(known.max()) if known.size else math.nan


def within(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[..., P] unbiased covariances within groups [..., P, G]; NaN with fewer than two samples."""
    good = np.isfinite(a) & np.isfinite(b)
    n = good.sum(-1)
    of = lambda x: np.where(good, x, 0)
    centred = lambda x: np.where(good, x - (of(x).sum(-1) / np.maximum(n, 1))[..., None], 0)
    found = (centred(a) * centred(b)).sum(-1) / np.maximum(n - 1, 1)
    return np.where(n > 1, found, np.nan)


class Decided(NamedTuple):
    """Shares of the reward's variance. Those of the first noise, every transition and noise of the
    reward are of the variance within groups, and sum to 1; NaN where groups have none.

    Attributes:
      prompt: of the total variance, what differs between prompts; with `rollout.shared_noise` also
        between their first noises. GRPO subtracts it.
      noise: of the first noise; 0 where the samples of a group share it.
      trained: of all trained transitions together.
      last: of what those decide, the share of the last of them; NaN where it is not above 0.
      total: the total variance itself.
      telling: number of groups with a spread of these rewards, which all shares rest on.
    """

    prompt: Interval
    noise: Interval
    steps: list[Interval]
    reward: Interval
    trained: Interval
    last: Interval
    total: float
    telling: int


def jackknifed(statistic: Callable[..., np.ndarray], arrays: list[np.ndarray]) -> list[Interval]:
    """Intervals of a statistic (arrays [..., P] -> [S]) over the prompts that the first array has
    values of.
    """
    arrays = measured_prompts(*arrays)
    with np.errstate(all='ignore'), warnings.catch_warnings():
        warnings.simplefilter('ignore', RuntimeWarning)  # without a score nothing is defined
        value = np.atleast_1d(statistic(*arrays))
        prompts = range(arrays[0].shape[-1])
        others = [statistic(*(np.delete(a, p, axis=-1) for a in arrays)) for p in prompts]
        left_out = np.array([np.atleast_1d(other) for other in others])
        return [jackknife(v, left_out[:, i]) for i, v in enumerate(value)]


def measured_prompts(*arrays: np.ndarray) -> list[np.ndarray]:
    """The columns [..., P'] of arrays [..., P] that the first has values in; all if it has none.

    A prompt without two whole samples is no observation: counted as one it narrows the intervals.
    """
    kept = np.isfinite(arrays[0]).any(tuple(range(arrays[0].ndim - 1)))
    return [a[..., kept] for a in arrays] if kept.any() else list(arrays)


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
    last, flat = int(np.flatnonzero(on)[-1]), rounding(rewards.terminal) ** 2

    def shares(c, own, means, sizes):
        inner, variance = np.nanmean(c, axis=-1), np.nanmean(own)
        between = np.nanvar(means, ddof=1) - np.nanmean(own / np.maximum(sizes, 1))
        between, steps = max(float(between), 0.0), np.diff(inner)
        parts = np.array([inner[0], variance - inner[-1], steps[on].sum(), *steps])
        parts = parts / variance if variance > flat else np.full_like(parts, np.nan)
        parts[np.abs(parts) < 1e-9] = 0  # rounding
        _, _, together, *each = parts
        of_last = each[last] / together if together > 0 else np.nan
        return np.array([between / (between + variance), *parts, of_last, between + variance])

    found = jackknifed(shares, [c, own, means, sizes.astype(float)])
    prompt, noise, reward, together, *steps, of_last, total = found
    telling = int((own > flat).sum())
    return Decided(prompt, noise, steps, reward, together, of_last, total.value, telling)


class Signals(NamedTuple):
    """Credit -> its signal, and against that of `of`.

    Attributes:
      ratio: signal / signal of the credit `of`; NaN where the latter is not told from 0.
      parts: the terms of the sum that the signal is, one of each of T transitions; 0 where none is
        trained.
      squares: the squared correlation of the credit and the effect of each of T transitions: a part
        by the transition's share of what all trained ones decide. NaN where it is not trained, or
        where what it decides is not told from 0.
    """

    of: str
    signal: dict[str, Interval]
    ratio: dict[str, Interval]
    parts: dict[str, list[Interval]]
    squares: dict[str, list[Interval]]


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
    # [C, T, P]
    covered = np.stack([within(a, following - rewards.twins) for a in credits.values()])
    spread = np.stack([within(a, a) for a in credits.values()])
    own, steps = [*credits].index(of), rewards.steps
    flat = rounding(rewards.terminal) ** 2

    def square(x):
        x, count = np.where(np.isfinite(x), x, 0), np.isfinite(x).sum(-1)
        pairs = x.sum(-1) ** 2 - (x**2).sum(-1)
        return pairs / np.maximum(count * (count - 1), 1)

    def of_prompts(c, covered, spread):
        effect = np.where(trained, np.diff(np.nanmean(c[:, 0], -1)), 0)
        total, inner = effect.sum(), np.nanmean(spread, -1)
        usable = trained & (inner > flat)
        found = np.where(usable, square(covered) / np.where(usable, inner, 1), 0)  # [C, T]
        terms = found / total if total > 0 else np.full_like(found, np.nan)  # no effect, no signal
        value = terms.sum(-1)
        each = np.broadcast_to(effect, found.shape)
        rows = [value, np.log(value / value[own]), *terms.T, *(found / each).T, *each.T]
        return np.stack(rows)  # [2 + 3 T, C]

    found = jackknifed(lambda *a: of_prompts(*a).ravel(), [c, covered, spread])
    rows = (found[i : i + len(credits)] for i in range(0, len(found), len(credits)))
    signal, logs, *of_steps = (dict(zip(credits, row)) for row in rows)
    terms, squares, effects = (of_steps[i : i + steps] for i in range(0, 3 * steps, steps))
    unknown = Interval(*[float('nan')] * 3)
    if_told = lambda square, effect: square if effect.low > 0 else unknown
    told = lambda n: signal[of].low > 0 and signal[n].value > 0 and np.isfinite(logs[n]).all()
    return Signals(
        of,
        signal,
        {n: Interval(*np.exp(logs[n])) if told(n) else unknown for n in credits},
        {n: [term[n] for term in terms] for n in credits},
        {n: [if_told(q[n], e[n]) for q, e in zip(squares, effects)] for n in credits},
    )


def jackknife(value: float, left_out: np.ndarray) -> Interval:
    """A 95 % interval from the values with each of P prompts left out."""
    from scipy.stats import t as student

    count = len(left_out)
    error = np.sqrt((count - 1) / count * ((left_out - left_out.mean()) ** 2).sum())
    reach = float(student.ppf(0.975, count - 1) * error)
    return Interval(float(value), float(value) - reach, float(value) + reach)
