"""The statistics of the probes: rank correlations and the bias of the ODE as a value, from raw
rewards; numpy arrays in, tables out.

Axes: state k = 0 ... T first, then prompts P, the samples G of a prompt, and continuations C. A
missing reward is NaN. A value is reported with a 95 % interval as NAME, NAME_low and NAME_high:
percentiles of a bootstrap that draws prompts, because the samples of one prompt are not independent
observations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from densegrpo_jax.evaluation.evaluator import finite_mean

DRAWS = 1000  # of the bootstrap
LAMBDAS = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)  # values with a column in the bias table
_FINE = np.linspace(0, 1, 21)  # candidates for the best lambda


class Method(NamedTuple):
    """Rewards of the same trajectories by one way of completing their states."""

    calls: int  # network evaluations per sample, the trajectory included
    rewards: np.ndarray  # [T+1, P, G]; NaN where a state was not completed


def correlation(predicted: np.ndarray, reference: np.ndarray, *, ranks: bool = True) -> float:
    """Correlation of all pairs without a NaN; with ranks it is Spearman's, with average ranks for
    ties.

    A constant prediction says nothing about the order and counts as 0; a constant reference, or
    fewer than two pairs, gives NaN.
    """
    both = np.isfinite(predicted) & np.isfinite(reference)
    x, y = predicted[both].astype(float), reference[both].astype(float)
    if ranks and x.size:
        x, y = rankdata(x), rankdata(y)
    if x.size < 2 or np.ptp(y) == 0:
        return float('nan')
    if np.ptp(x) == 0:
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))


def group_correlations(predicted: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """`correlation` within every group: [P, G], [P, G] -> [P]; NaN if a group's reference has no
    spread.
    """
    return np.array([correlation(x, y) for x, y in zip(predicted, reference)])


def bootstrap(statistic: Callable[[np.ndarray], float], prompts: int, draws: int) -> np.ndarray:
    """95 % percentile interval [2] of `statistic(drawn)`, int [P] drawn from the prompts with
    replacement.

    Draws in which the statistic is undefined (NaN) are left out.
    """
    rng = np.random.default_rng(0)
    values = np.array([statistic(rng.integers(prompts, size=prompts)) for _ in range(draws)])
    return np.full(2, np.nan) if np.isnan(values).all() else np.nanpercentile(values, (2.5, 97.5))


def _mean(values: Iterable[float]) -> float:
    return finite_mean(np.array([*values]))


def _interval(
    name: str, statistic: Callable[[np.ndarray], float], prompts: int
) -> dict[str, float]:
    """Columns NAME, NAME_low and NAME_high."""
    low, high = bootstrap(statistic, prompts, DRAWS)
    return {
        name: float(statistic(np.arange(prompts))),
        f'{name}_low': float(low),
        f'{name}_high': float(high),
    }


def _compare(
    name: str, predicted: Sequence[np.ndarray], reference: Sequence[np.ndarray]
) -> dict[str, float]:
    """Rank correlations of pairs of [P, G], overall (NAME) and within groups (group_NAME), as means
    over the pairs.
    """
    pairs, prompts = list(zip(predicted, reference)), len(reference[0])
    within = [group_correlations(x, y) for x, y in pairs]
    overall = lambda drawn: _mean(correlation(x[drawn].ravel(), y[drawn].ravel()) for x, y in pairs)
    grouped = lambda drawn: _mean(finite_mean(of_pair[drawn]) for of_pair in within)
    return {**_interval(name, overall, prompts), **_interval(f'group_{name}', grouped, prompts)}


def latent_reward_rows(rewards: np.ndarray, sigmas: np.ndarray) -> list[dict]:
    """How well the reward of a state's completion predicts the terminal reward (the paper's Fig.
    8), a row per state 0 ... T.

    Columns: the mean reward; `difference`, mean |R_k - R_T|; `rank_correlation` with the terminal
    reward over all samples, and `group_rank_correlation`, the mean over the `groups` whose terminal
    rewards have spread.

    Args:
      rewards: [T+1, P, G].
      sigmas: [T+1].
    """
    terminal, prompts, rows = rewards[-1], rewards.shape[1], []
    for k, (of_state, s) in enumerate(zip(rewards, sigmas)):
        difference = np.abs(of_state - terminal)
        rows.append(
            {
                'state': k,
                's': float(s),
                'timesteps_left': len(rewards) - 1 - k,
                **_interval('reward', lambda drawn: finite_mean(of_state[drawn]), prompts),
                **_interval('difference', lambda drawn: finite_mean(difference[drawn]), prompts),
                **_compare('rank_correlation', [of_state], [terminal]),
                'groups': int(np.isfinite(group_correlations(of_state, terminal)).sum()),
                'prompts': prompts,
                'samples': int(terminal.size),
            }
        )
    return rows


def cost_rows(
    methods: Mapping[str, Method], reference: str, trained: np.ndarray, states: Sequence[int]
) -> list[dict]:
    """Compares each method's rewards with those of the method `reference`, a row per method.

    The reference is the paper's choice, not the truth: a method that differs from it can be an
    equally good value (`bias_rows`).

    Columns: network evaluations per sample, `calls`; rank correlations overall and within groups
    (`group_...`), each a mean over `states` or trained transitions: `reward_correlation` of the
    latent rewards with the reference's, `gain_correlation` of the gains with the reference's, which
    credit uses, `terminal_correlation` of the latent rewards with the terminal reward.
    `group_gain_correlation_K` is that of transition K alone.

    Args:
      trained: bool [T].
      states: states whose completion is not the sample itself.
    """
    whole = methods[reference].rewards
    steps, gain = np.flatnonzero(trained), np.diff(whole, axis=0)
    rows = []
    for name, (calls, rewards) in methods.items():
        mine = np.diff(rewards, axis=0)
        rows.append(
            {
                'method': name,
                'calls': calls,
                **_compare(
                    'reward_correlation', [rewards[k] for k in states], [whole[k] for k in states]
                ),
                **_compare('gain_correlation', [mine[k] for k in steps], [gain[k] for k in steps]),
                **_compare(
                    'terminal_correlation', [rewards[k] for k in states], [whole[-1]] * len(states)
                ),
                **{
                    f'group_gain_correlation_{k}': finite_mean(group_correlations(mine[k], gain[k]))
                    for k in steps
                },
                'prompts': whole.shape[1],
                'samples': int(whole[0].size),
            }
        )
    return rows


def bias_rows(
    values: np.ndarray, continued: np.ndarray, sigmas: np.ndarray, states: Sequence[int]
) -> list[dict]:
    """The completion V_k as an estimate of the policy's own value E[R_T | x_k], which is the mean
    over stochastic continuations.

    A row per state, and one row, state 'all', with the advantages' correlations averaged over the
    transitions. Columns:

    * `value`, `expected`: means of V_k and of the continuations. `bias` = mean(E[R_T | x_k] - V_k)
      with its `standard_error` over x_k (with the x_k of a prompt taken together). `rms_bias`: root
      of the mean squared bias, minus the noise of a mean over few continuations. `group_rms_bias`:
      the same for the deviation of the bias from its group mean.
    * `continuation_std`: std of R_T around E[R_T | x_k], the error of a single continuation as an
      estimate (the cost of lambda = 1). `gain_std`: std of the gain V_{k+1} - V_k within groups.
      `bias_to_gain` = group_rms_bias / gain_std.
    * `value_correlation` and `continuation_correlation`: V_k, and one continuation, with the mean
      of the other continuations.
    * The transition from k: its true advantage is A = E[R_T | x_{k+1}] - E[R_T | x_k]. For each
      lambda of `LAMBDAS`, `advantage_correlation_L` is the within-group correlation of GAE(L) with
      the measured A, whose noise reduces all of these by the same factor, about
      `advantage_reliability`. `advantage_error_L` is the mean squared difference from A within
      groups, corrected for that noise; `..._sparse` are those of R_T alone. `best_lambda` has the
      largest correlation.

    Args:
      values: [T+1, P, G].
      continued: [T+1, P, G, C >= 3] terminal rewards of continuations from each state; the terminal
        reward where nothing random is left.
      sigmas: [T+1].
      states: the states to report; no two coincide.
    """
    num_steps, prompts = len(values) - 1, values.shape[1]
    count = np.isfinite(continued).sum(-1)
    if continued.shape[-1] < 3 or continued.shape[:-1] != values.shape:
        raise ValueError(
            f'continuations have shape {continued.shape}; expected {values.shape} and at least 3 '
            'more'
        )
    with np.errstate(invalid='ignore', divide='ignore'):
        expected = np.where(count > 0, np.nansum(continued, -1) / count, np.nan)
        variance = np.nansum(np.square(continued - expected[..., None]), -1) / np.where(
            count > 1, count - 1, np.nan
        )
        noise = variance / count
    rows, advantages = [], _Advantages(values, expected, noise)
    for k in states:
        bias, gain = expected[k] - values[k], values[k + 1] - values[k]
        per_prompt = np.array([finite_mean(b) for b in bias])
        corrected = lambda drawn: _root(
            finite_mean(np.square(bias[drawn])) - finite_mean(noise[k][drawn])
        )
        # Of G differences around their mean, independent noise leaves G - 1 parts.
        within = lambda drawn: _root(_variance_within(bias[drawn]) - finite_mean(noise[k][drawn]))
        spread = lambda drawn: _root(_variance_within(gain[drawn]))
        others = (count[k][..., None] * expected[k][..., None] - continued[k]) / (
            count[k][..., None] - 1
        )
        each = np.moveaxis(others, -1, 0)
        pearson = lambda x, y: correlation(x.ravel(), y.ravel(), ranks=False)
        against = lambda drawn, of: _mean(pearson(x[drawn], y[drawn]) for x, y in zip(of, each))
        everyone = np.arange(prompts)
        rows.append(
            {
                'state': k,
                's': float(sigmas[k]),
                'timesteps_left': num_steps - k,
                'value': finite_mean(values[k]),
                'expected': finite_mean(expected[k]),
                **_interval('bias', lambda drawn: finite_mean(bias[drawn]), prompts),
                'standard_error': float(
                    np.nanstd(per_prompt, ddof=1) / np.sqrt(np.isfinite(per_prompt).sum())
                ),
                **_interval('rms_bias', corrected, prompts),
                **_interval('group_rms_bias', within, prompts),
                **_interval(
                    'continuation_std',
                    lambda drawn: _root(finite_mean(variance[k][drawn])),
                    prompts,
                ),
                **_interval('gain_std', spread, prompts),
                'bias_to_gain': within(everyone) / (spread(everyone) or float('nan')),
                **_interval(
                    'value_correlation',
                    lambda drawn: against(drawn, [values[k]] * len(each)),
                    prompts,
                ),
                **_interval(
                    'continuation_correlation',
                    lambda drawn: against(drawn, np.moveaxis(continued[k], -1, 0)),
                    prompts,
                ),
                **advantages.columns([k]),
                'prompts': prompts,
                'samples': int(values[k].size),
                'continuations': continued.shape[-1],
            }
        )
    whole = {
        'state': 'all',
        **advantages.columns(list(states)),
        'prompts': prompts,
        'samples': int(values[0].size),
    }
    return [*rows, {**dict.fromkeys(rows[0]), **whole, 'continuations': continued.shape[-1]}]


class _Advantages:
    """Within-group covariances of estimated advantages with the measured true one."""

    def __init__(self, values: np.ndarray, expected: np.ndarray, noise: np.ndarray):
        measured, self._noise = np.diff(expected, axis=0), noise[1:] + noise[:-1]
        terminal = np.broadcast_to(values[-1], measured.shape)
        estimates = {
            **{lam: gae(values, lam) for lam in {*LAMBDAS, *_FINE.tolist()}},
            'sparse': terminal,
        }
        # Sums over the groups' deviations: [T, P].
        centred = lambda x, y: _centred(np.where(np.isnan(y), np.nan, x))
        truth = {name: centred(measured, x) for name, x in estimates.items()}
        mine = {name: centred(x, measured) for name, x in estimates.items()}
        total = lambda x, y: np.nansum(x * y, -1)
        self._sums = {
            name: (
                total(mine[name], truth[name]),
                total(mine[name], mine[name]),
                total(truth[name], truth[name]),
            )
            for name in estimates
        }
        # degrees of freedom of a group
        self._free = np.maximum(np.isfinite(mine[0.0]).sum(-1) - 1, 0)
        self._noise = np.where(np.isfinite(mine[0.0]), self._noise, np.nan)

    def _correlation(self, name, k: int, drawn) -> float:
        cross, own, true = (s[k][drawn].sum() for s in self._sums[name])
        if not true > 0:
            return float('nan')
        return 0.0 if own == 0 else float(cross / np.sqrt(own * true))

    def _reliability(self, name, k: int, drawn) -> float:
        """Correlation of the measured A with A."""
        true, free = self._sums[name][2][k][drawn].sum(), self._free[k][drawn].sum()
        if not true > 0:
            return float('nan')
        return _root(1 - free * finite_mean(self._noise[k][drawn]) / true)

    def _error(self, name, k: int, drawn) -> float:
        cross, own, true = (s[k][drawn].sum() for s in self._sums[name])
        free = self._free[k][drawn].sum()
        if not free:
            return float('nan')
        return float((own - 2 * cross + true) / free - finite_mean(self._noise[k][drawn]))

    def _best(self, steps: list[int], drawn) -> float:
        found = np.array(
            [_mean(self._correlation(lam, k, drawn) for k in steps) for lam in _FINE.tolist()]
        )
        # in the last transition there is no lambda
        return float('nan') if not np.ptp(found) > 1e-9 else float(_FINE[np.argmax(found)])

    def columns(self, steps: list[int]) -> dict[str, float]:
        """Columns of transitions `steps`, averaged over them."""
        prompts = self._free.shape[1]
        mean = lambda of, name, drawn: _mean(of(name, k, drawn) for k in steps)
        everyone = np.arange(prompts)
        result = {'advantage_reliability': mean(self._reliability, 0.0, everyone)}
        for name in (*LAMBDAS, 'sparse'):
            label = name if name == 'sparse' else f'{name:g}'
            of_drawn = lambda drawn: mean(self._correlation, name, drawn)
            result |= _interval(f'advantage_correlation_{label}', of_drawn, prompts)
            result[f'advantage_error_{label}'] = mean(self._error, name, everyone)
        return result | _interval('best_lambda', lambda drawn: self._best(steps, drawn), prompts)


def gae(values: np.ndarray, lam: float) -> np.ndarray:
    """GAE(lam) [T, P, G] of values [T+1, P, G]: `dense_reward(values, 'gae')` for any shape,
    without a compilation for each lambda.
    """
    advantages = np.diff(values, axis=0)
    for k in range(len(advantages) - 2, -1, -1):
        advantages[k] += lam * advantages[k + 1]
    return advantages


def _centred(x: np.ndarray) -> np.ndarray:
    """Deviations from the group's mean, [..., G]."""
    count = np.isfinite(x).sum(-1, keepdims=True)
    return x - np.nansum(x, -1, keepdims=True) / np.maximum(count, 1)


def _variance_within(x: np.ndarray) -> float:
    """Pooled variance within groups, [P, G] -> sum of squared deviations / (N - groups)."""
    free = np.maximum(np.isfinite(x).sum(-1) - 1, 0).sum()
    return float(np.nansum(np.square(_centred(x))) / free) if free else float('nan')


def _root(square: float) -> float:
    """Square root of an unbiased estimate of a non-negative quantity; noise can make the estimate
    negative.
    """
    return float(np.sqrt(max(square, 0.0)))
