"""Rollout budgets and exploring steps by attention entropy: a reconstruction of AEGPO (arXiv
2602.06825), of which neither the full text nor code could be had.
"""

from collections.abc import Sequence

import numpy as np


def entropy_change(policy: np.ndarray, base: np.ndarray, *, relative: bool = False) -> np.ndarray:
    """How far the policy's attention has moved from the base model's, for each prompt: the mean
    over the states of |H - H_base|, over H_base if `relative`.

    Args:
        policy, base: [T, P] entropies at the same states.

    Returns:
        float64 [P].
    """
    policy, base = np.asarray(policy, np.float64), np.asarray(base, np.float64)
    change = np.abs(policy - base)
    return (change / base if relative else change).mean(0)


def split_budget(change: np.ndarray, low: int, high: int) -> np.ndarray:
    """Samples of each prompt: `high` for the half with the larger changes, `low` for the others. Of
    equal changes the later prompt counts as larger.

    Args:
        change: [P], P even.

    Returns:
        int [P]; their sum is P (low + high) / 2.
    """
    if len(change) % 2:
        raise ValueError(f'{len(change)} prompts do not split into two halves')
    order = np.argsort(change, kind='stable')
    budget = np.full(len(change), low)
    budget[order[len(change) // 2 :]] = high
    return budget


def smoothed(average: Sequence[float] | None, now: np.ndarray, smooth: float) -> np.ndarray:
    """The moving average `smooth` * average + (1 - smooth) * now; `now` itself without one."""
    now = np.asarray(now, np.float64)
    return now if average is None else smooth * np.asarray(average, np.float64) + (1 - smooth) * now


def top_steps(entropy: np.ndarray, allowed: Sequence[int], count: int) -> np.ndarray:
    """The `count` allowed transitions k of the highest entropy at their state x_k; of equal ones
    the earlier.

    Args:
        entropy: [T].

    Returns:
        int32 [count], increasing.
    """
    if not 1 <= count <= len(allowed):
        raise ValueError(f'count is {count}; expected 1 to {len(allowed)} transitions')
    steps = np.asarray(allowed, np.int32)
    order = np.argsort(-np.asarray(entropy)[steps], kind='stable')
    return np.sort(steps[order[:count]])
