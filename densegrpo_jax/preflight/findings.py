"""What the measurements say against a run. They recommend no credit."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from densegrpo_jax.preflight.costs import Cost
from densegrpo_jax.preflight.groups import Spread, Without
from densegrpo_jax.preflight.measure import Spent
from densegrpo_jax.preflight.signal import Decided, Interval, Signals

FEW = 0.05  # shares below it count as nothing
MOST = 0.8  # a share whose whole interval is above it leaves nothing to learn
# Groups with a spread of rewards below which no share is judged, unless nearly all have one: a 0/1
# reward that succeeds 4 times in 100 has about 8 in 32, and 95 % intervals that hold the truth in
# 68 to 83 % of simulated runs. Those of continuous rewards hold it with 8 groups of 8, too.
ENOUGH, NEARLY = 16, 0.8
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
    `prompts`: how many were measured.
    """

    failed: float
    used: float
    prompts: int


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
    without: Without,
    size: int,
) -> list[Finding]:
    """In the order in which they matter. Shares are of the variance within groups: what tells
    prompts apart is no part of an advantage.

    Args:
      without: groups that have no spread, of the size of training as far as that was measured.
      size: samples of a group in training.
    """
    first = []
    if images.failed > FEW or images.used < 1 - FEW:
        reason = (
            f'{images.failed:.0%} of all images have no score, and {1 - spread.valid:.0%} of the '
            f'samples: see the log for why. Credit is measured on the {images.used:.0%} of samples '
            'with a score for every twin and completion'
        )
        first = [Finding(reason)]
    if not math.isfinite(without.share.value):
        return [*first, Finding('no group has two samples with a score', stop=True)]
    of_spread = _of_spread(without, size)
    if any(found.stop for found in of_spread):
        return [*first, *of_spread]
    if not math.isfinite(decided.reward.value):
        reason = (
            'no group has two samples with a spread of rewards and all their scores: what decides '
            'the reward is unknown'
        )
        return [*first, *of_spread, Finding(reason)]
    if decided.telling < ENOUGH and decided.telling < NEARLY * images.prompts:
        reason = (
            f'of {images.prompts} groups {decided.telling} have a spread of rewards and all their '
            f'scores: with fewer than {ENOUGH} the intervals of shares, signals and prices may be '
            'too narrow, and no finding rests on them. Measure more --prompts'
        )
        return [*first, *of_spread, Finding(reason)]
    if decided.reward.value > 0.5:
        first = [*first, _of_noise(decided.reward)]
        if first[-1].stop:
            return first
    if decided.trained.high < 1 - MOST and decided.trained.value < FEW:  # NaN: unknown
        reason = (
            'the noise of the trained transitions decides '
            f'{max(decided.trained.value, 0):.0%} of the variance within groups (at most '
            f'{decided.trained.high:.0%}): updates would follow what they cannot change. Raise '
            'rollout.level, or use a reward that sees more'
        )
        return [*first, Finding(reason, stop=True)]
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


def _of_spread(without: Without, size: int) -> list[Finding]:
    share = without.share
    reason = (
        f'{share.value:.0%} of groups of {without.size} samples have no spread of rewards and '
        'teach nothing'
    )
    if without.size >= size and share.low > MOST:
        return [Finding(f'{reason}. Use another reward, or other prompts', stop=True)]
    if share.value <= 0.5:
        return []
    if without.size < size:
        reason += (
            f' (training has groups of {size}, of which fewer may be without: measure with '
            f'--group={size})'
        )
    more = 'Larger groups (rollout.group), prompts of middling difficulty or a smoother reward have'
    return [Finding(f'{reason}. {more} more')]


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
