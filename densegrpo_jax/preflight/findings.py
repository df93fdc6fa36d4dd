"""What the measurements say against a run. They recommend no credit."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from densegrpo_jax.preflight.costs import Cost
from densegrpo_jax.preflight.groups import Spread
from densegrpo_jax.preflight.measure import Spent
from densegrpo_jax.preflight.signal import Decided, Interval, Signals

FEW = 0.05  # shares below it count as nothing
MOST = 0.8  # a share whose whole interval is above it leaves nothing to learn
# Groups with a spread of rewards below which no share is judged: a 0/1 reward that succeeds 4 times
# in 100 has about 8 in 32, and 95 % intervals that hold the truth in 68 to 83 % of simulated runs.
ENOUGH = 16
# The last transition is told at a share of MOST whose interval begins above this: with 32 prompts
# x 8 samples in 2 of 100 simulated runs where it decides 0.7, in 96 where it decides all.
LAST = 2 / 3
NO_ADVICE = (
    'Signals and prices are measurements, not advice: on the miniature they are not shown to '
    'foretell the order of learning curves (docs/preflight.md).'
)


class Finding(NamedTuple):
    """A finding; `stop`: training would teach nothing."""

    reason: str
    stop: bool = False


class Images(NamedTuple):
    """Scores that are missing: `failed`, share of all images, twins and completions among them;
    `used`, share of samples with a score for each of theirs. Credit is measured on the latter.
    """

    failed: float
    used: float


class Price(NamedTuple):
    """A credit's cost, and its price: seconds by signal, relative to the configuration's own
    credit, with the signal's interval.
    """

    credit: str
    cost: Cost
    seconds: float
    price: float
    low: float
    high: float


def prices(signals: Signals, costs: dict[str, Cost], speed: Spent) -> list[Price]:
    """Of every credit whose cost is known, in the order of seconds; NaN where a signal is not
    measured.
    """
    own = costs[signals.of].seconds(speed)
    found = []
    for name, cost in costs.items():
        ratio, relative = signals.ratio[name], cost.seconds(speed) / own
        price = Interval(relative / ratio.value, relative / ratio.high, relative / ratio.low)
        found.append(Price(name, cost, cost.seconds(speed), *price))
    return sorted(found, key=lambda p: p.seconds)


def findings(
    images: Images,
    spread: Spread,
    decided: Decided,
    signals: Signals,
    trained: np.ndarray,
    groups: tuple[int, int],
) -> list[Finding]:
    """In the order in which they matter. Shares are of the variance within groups: what tells
    prompts apart is no part of an advantage.

    Args:
      groups: samples of a group, as measured and as training has them.
    """
    first = []
    if images.failed > FEW or images.used < 1 - FEW:
        reason = (
            f'{images.failed:.0%} of all images have no score, and {1 - spread.valid:.0%} of the '
            f'samples: see the log for why. Credit is measured on the {images.used:.0%} of samples '
            'with a score for every twin and completion'
        )
        first = [Finding(reason)]
    if not math.isfinite(spread.zero.value):
        return [*first, Finding('no group has two samples with a score', stop=True)]
    without = _without_spread(spread, *groups)
    if spread.zero.low > MOST and groups[0] >= groups[1]:
        return [*first, Finding(f'{without}. Use another reward, or other prompts', stop=True)]
    if not math.isfinite(decided.reward.value):
        reason = (
            'no group has two samples with a spread of rewards and all their scores: what decides '
            'the reward is unknown'
        )
        return [*first, *_of_spread(spread, without), Finding(reason)]
    if spread.telling < ENOUGH:
        reason = (
            f'{spread.telling} groups have a spread of rewards: with fewer than {ENOUGH} the '
            'intervals of shares, signals and prices are too narrow, and no finding rests on them. '
            'Measure more --prompts'
        )
        return [*first, *_of_spread(spread, without), Finding(reason)]
    if decided.reward.value > 0.5:
        first = [*first, _of_noise(decided.reward)]
        if first[-1].stop:
            return first
    if decided.trained.high < 1 - MOST and decided.trained.value < FEW:  # NaN: unknown
        reason = (
            f'the noise of the trained transitions decides {decided.trained.value:.0%} of the '
            'variance within groups: updates would follow what they cannot change. Raise '
            'rollout.level, or use a reward that sees more'
        )
        return [*first, Finding(reason, stop=True)]
    of_spread = _of_spread(spread, without)
    return [*first, *_of_last(decided, trained), *of_spread, *_of_signal(signals)]


def _of_noise(share: Interval) -> Finding:
    reason = (
        f'{share.value:.0%} of the variance within groups is noise of the reward itself: the same '
        'image scored again gets another score. '
    )
    if share.low > MOST:
        return Finding(reason + 'Use a reward that agrees with itself', stop=True)
    times = f'{1 / (1 - share.value):.2g}' if share.value < 0.99 else 'many'
    return Finding(
        reason + f'Training takes about {times} times the samples with sparse credit, and many '
        'more with credit of completions, whose differences are small beside that noise'
    )


def _without_spread(spread: Spread, measured: int, trained: int) -> str:
    groups = 'the groups' if measured == trained else f'the groups, of {measured} samples,'
    return f'{spread.zero.value:.0%} of {groups} have no spread of rewards and teach nothing' + (
        f' (training has groups of {trained}, of which fewer are without: measure with '
        f'--group={trained})'
        if measured < trained
        else ''
    )


def _of_spread(spread: Spread, without: str) -> list[Finding]:
    if spread.zero.value <= 0.5:
        return []
    more = 'Larger groups (rollout.group), prompts of middling difficulty or a smoother reward have'
    return [Finding(f'{without}. {more} more')]


def _of_last(decided: Decided, trained: np.ndarray) -> list[Finding]:
    """A reward without any relation to what an image shows looks like this."""
    share = decided.last
    if trained.sum() == 1 or not (share.value >= MOST and share.low > LAST):  # NaN: unknown
        return []
    reason = (
        'of what the trained transitions decide, the last one decides '
        f'{min(share.value, 1):.0%} (at least {share.low:.0%}): the reward may respond to fine '
        'noise and not to what an image shows. Look at the pictures'
    )
    return [Finding(reason)]


def _of_signal(signals: Signals) -> list[Finding]:
    own = signals.signal[signals.of]
    if own.low > 0:
        return []
    reason = (
        f'the signal of {signals.of} credit, {own}, is not told from 0: credits cannot be compared '
        'with so few prompts'
    )
    return [Finding(reason)]
