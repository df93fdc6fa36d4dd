"""Settings that the measurements speak for, each with its reason."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from densegrpo_jax.core.calibration import calibrate_step
from densegrpo_jax.preflight.costs import Cost
from densegrpo_jax.preflight.credits import BRANCH, candidates
from densegrpo_jax.preflight.measure import Spent
from densegrpo_jax.preflight.signal import Decided, Signals, Spread

FEW = 0.05  # shares below it count as nothing
UNTESTED = (
    'This advice has not been compared with learning curves: it says what the measurements speak '
    'for, not what was seen to train better.'
)


class Advice(NamedTuple):
    """A reason, with keys to set if there are any; `stop`: training would teach nothing."""

    reason: str
    keys: dict[str, object] = {}
    stop: bool = False


class Price(NamedTuple):
    """A credit's cost, and its price: seconds for a gradient of equal precision, relative to the
    configuration's own credit, with the signal's interval.
    """

    credit: str
    cost: Cost
    seconds: float
    price: float
    low: float
    high: float


def prices(signals: Signals, costs: dict[str, Cost], speed: Spent) -> list[Price]:
    """Of every credit whose cost is known, cheapest first."""
    own = costs[signals.of].seconds(speed)
    found = []
    for name, cost in costs.items():
        ratio, relative = signals.ratio[name], cost.seconds(speed) / own
        over = lambda x: relative / x if x > 0 else float('inf')
        price = Price(
            name, cost, cost.seconds(speed), over(ratio.value), over(ratio.high), over(ratio.low)
        )
        found.append(price)
    return sorted(found, key=lambda p: p.price)


def advise(
    config,
    spread: Spread,
    decided: Decided,
    signals: Signals,
    priced: list[Price],
    balance: tuple[np.ndarray, np.ndarray],
    trained: np.ndarray,
    steps: Sequence[int],
) -> list[Advice]:
    """In the order in which they matter. steps: of the completions measured."""
    if spread.valid < 1 - FEW:
        first = [
            Advice(f'{1 - spread.valid:.0%} of the samples have no score: see the log for why')
        ]
    else:
        first = []
    changed = sum(s.value for s, on in zip(decided.steps, trained) if on)
    if spread.zero > 1 - FEW:
        reason = (
            f'{spread.zero:.0%} of the groups have no spread of rewards: only the prompt decides, '
            'and a group teaches nothing. Use another reward, or other prompts'
        )
        return [*first, Advice(reason, stop=True)]
    if not any(s.low > FEW for s in decided.steps) and changed < FEW:
        reason = (
            f'the noise of the trained transitions decides {changed:.0%} of the reward: updates '
            'would follow what they cannot change. Raise rollout.level, or use a reward that sees '
            'more'
        )
        return [*first, Advice(reason, stop=True)]
    found = [*first, *_of_spread(config, spread), *_of_credit(signals, priced, steps)]
    return [*found, *_of_noise(config, balance, trained)]


def _of_spread(config, spread: Spread) -> list[Advice]:
    if spread.zero <= 0.5:
        return []
    reason = (
        f'{spread.zero:.0%} of the groups have no spread of rewards and teach nothing. Larger '
        'groups (rollout.group), prompts of middling difficulty or a smoother reward have more'
    )
    return [Advice(reason)]


def _of_credit(signals: Signals, priced: list[Price], steps: Sequence[int]) -> list[Advice]:
    own = next((p for p in priced if p.credit == signals.of), None)
    better = [p for p in priced if p.high < 1]
    if own is None or not np.isfinite(signals.signal[signals.of].value):
        return [Advice('the effect of single transitions was not found: more prompts may show it')]
    if not better:
        return [
            Advice(
                f'no credit is shown to be cheaper than the {signals.of} credit of this recipe for '
                'a gradient of equal precision'
            )
        ]
    best = better[0]
    reason = (
        f'{best.credit} credit needs {best.price:.2g} times the seconds '
        f'[{best.low:.2g}, {best.high:.2g}] of {signals.of} for a gradient of equal precision'
    )
    if best.credit == BRANCH:
        return [Advice(f'{reason}: see the methods on branches, such as :method=g2rpo')]
    credit = candidates(steps)[best.credit]
    keys = {k: v for k, v in credit.overrides.items() if k.startswith('credit.')}
    return [Advice(reason, keys)]


def _of_noise(config, balance: tuple[np.ndarray, np.ndarray], trained: np.ndarray) -> list[Advice]:
    if config.noise.psi_path or config.noise.calibrate:
        return []
    off = unbalanced(balance) & trained
    if 2 * off.sum() < trained.sum():
        return []
    reason = (
        f'gains and losses are out of balance at transitions {np.flatnonzero(off).tolist()}: '
        'calibration would lower their noise'
    )
    return [Advice(reason, {'noise.calibrate': True})]


def unbalanced(balance: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """bool [T]: transitions at which the first step of calibration lowers the noise."""
    count = len(balance[0])
    moved = calibrate_step(np.ones(count), *balance, np.ones(count, bool), z=2.0)
    return moved < 1
