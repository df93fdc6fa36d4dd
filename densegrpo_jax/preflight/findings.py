"""What the measurements say against a run, and what they say of its credit and its noise."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from densegrpo_jax.core.calibration import calibrate_step
from densegrpo_jax.preflight.costs import Cost
from densegrpo_jax.preflight.measure import Spent
from densegrpo_jax.preflight.signal import Decided, Interval, Signals, Spread

FEW = 0.05  # shares below it count as nothing
NO_ADVICE = (
    'Signals and prices are measurements, not advice: over 15 variants on the miniature they did '
    'not foretell the order of learning curves (docs/preflight.md).'
)


class Finding(NamedTuple):
    """A finding; `stop`: training would teach nothing."""

    reason: str
    stop: bool = False


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
    """Of every credit whose cost is known, cheapest first; NaN where a signal is not measured."""
    own = costs[signals.of].seconds(speed)
    found = []
    for name, cost in costs.items():
        ratio, relative = signals.ratio[name], cost.seconds(speed) / own
        price = Interval(relative / ratio.value, relative / ratio.high, relative / ratio.low)
        found.append(Price(name, cost, cost.seconds(speed), *price))
    return sorted(found, key=lambda p: (math.isnan(p.price), p.price))


def findings(
    config,
    spread: Spread,
    decided: Decided,
    signals: Signals,
    priced: list[Price],
    balance: tuple[np.ndarray, np.ndarray],
    trained: np.ndarray,
) -> list[Finding]:
    """In the order in which they matter."""
    first = []
    if spread.valid < 1 - FEW:
        first = [
            Finding(f'{1 - spread.valid:.0%} of the samples have no score: see the log for why')
        ]
    if not math.isfinite(spread.zero):
        return [*first, Finding('no group has two samples with a score', stop=True)]
    if spread.zero > 1 - FEW:
        reason = (
            f'{spread.zero:.0%} of the groups have no spread of rewards: only the prompt decides, '
            'and a group teaches nothing. Use another reward, or other prompts'
        )
        return [*first, Finding(reason, stop=True)]
    if decided.reward.value > 0.5:
        reason = (
            f'{decided.reward.value:.0%} of the variance is noise of the reward itself: the same '
            'image scored again gets another score. Use a reward that agrees with itself'
        )
        return [*first, Finding(reason, stop=True)]
    if not decided.trained.low > 0 and decided.trained.value < FEW:
        reason = (
            f'the noise of the trained transitions decides {decided.trained.value:.0%} of the '
            'reward: updates would follow what they cannot change. Raise rollout.level, or use a '
            'reward that sees more'
        )
        return [*first, Finding(reason, stop=True)]
    first += _of_last(decided, trained)
    found = [*first, *_of_spread(spread), *_of_credit(signals, priced)]
    return [*found, *_of_noise(config, balance, trained)]


def _of_spread(spread: Spread) -> list[Finding]:
    if spread.zero <= 0.5:
        return []
    reason = (
        f'{spread.zero:.0%} of the groups have no spread of rewards and teach nothing. Larger '
        'groups (rollout.group), prompts of middling difficulty or a smoother reward have more'
    )
    return [Finding(reason)]


def _of_last(decided: Decided, trained: np.ndarray) -> list[Finding]:
    """A reward without any relation to what an image shows looks like this."""
    last = int(np.flatnonzero(trained)[-1])
    share = decided.steps[last].value / decided.trained.value
    if share < 0.8 or trained.sum() == 1:
        return []
    reason = (
        f'of what the trained transitions decide, the last one decides {share:.0%}: the reward may '
        'respond to fine noise and not to what an image shows. Look at the pictures'
    )
    return [Finding(reason)]


def _of_credit(signals: Signals, priced: list[Price]) -> list[Finding]:
    own = signals.signal[signals.of]
    if not own.low > 0:
        return [
            Finding(
                f'the signal of {signals.of} credit, {own}, is not told from 0: credits cannot be '
                'compared with so few prompts'
            )
        ]
    better = [p for p in priced if p.high < 1]
    if not better:
        return [
            Finding(
                f'no credit is measured to be cheaper than the {signals.of} credit of this recipe'
            )
        ]
    told = '; '.join(f'{p.credit} {p.price:.2g} [{p.low:.2g}, {p.high:.2g}]' for p in better)
    return [Finding(f'credits with a price below that of {signals.of}, which is 1: {told}')]


def _of_noise(config, balance: tuple[np.ndarray, np.ndarray], trained: np.ndarray) -> list[Finding]:
    if config.noise.psi_path or config.noise.calibrate:
        return []
    off = unbalanced(balance) & trained
    if 2 * off.sum() < trained.sum():
        return []
    reason = (
        f'gains and losses are out of balance at transitions {np.flatnonzero(off).tolist()}: '
        'noise.calibrate=True would lower their noise'
    )
    return [Finding(reason)]


def unbalanced(balance: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """bool [T]: transitions at which the first step of calibration lowers the noise."""
    count = len(balance[0])
    moved = calibrate_step(np.ones(count), *balance, np.ones(count, bool), z=2.0)
    return moved < 1
