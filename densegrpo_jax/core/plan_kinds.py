"""The shapes of rollouts by name: each makes the plan that a run's settings ask for."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from densegrpo_jax.core.branch_plan import BRANCH, branch_plan, merged_targets
from densegrpo_jax.core.credit_rules import CreditRule
from densegrpo_jax.core.dense_reward import every_state, needed_states
from densegrpo_jax.core.masks import StepMasks, completion_source
from densegrpo_jax.core.options import keyword_options
from densegrpo_jax.core.rollout_plan import (
    ANCHOR,
    STATE,
    X0HAT,
    Point,
    RolloutPlan,
    trajectory_plan,
)
from densegrpo_jax.core.tree_plan import tree_plan

ACTIVE = ('window', 'first_half')  # the transitions that a plan trains, of those in the window


class Setting(NamedTuple):
    """What every shape is made from."""

    sigmas: np.ndarray  # [T+1]
    noise_levels: np.ndarray  # [T]
    masks: StepMasks  # of the active transitions
    last: int  # the largest grid index at which a noisy step may end
    rule: CreditRule
    beside: int = 1  # adjacent samples that share their initial noise, as many in every group


@dataclasses.dataclass(frozen=True)
class PlanKind:
    """A shape of rollouts.

    Attributes:
        make: (Setting, options by keyword) -> RolloutPlan, on the host. Its keyword-only arguments
            are keys of the configuration's groups `plan` and `credit`.
        points: kinds of the points that its plans may have; `CreditRule.reads` is one of them.
        one_start: whether the samples of a seed must share their initial noise.
        one_state: whether the samples of a seed leave the same latents in every transition.
        scores_states: whether it scores what the credit rule reads; False: the samples alone.
    """

    make: Callable[..., RolloutPlan]
    points: tuple[str, ...]
    one_start: bool = False
    scores_states: bool = True
    one_state: bool = False

    @property
    def options(self) -> dict[str, bool]:
        """The options of `make` by name, and whether they have a default."""
        return keyword_options(self.make)


def active_masks(masks: StepMasks, active: str) -> StepMasks:
    """The masks without the transitions that are not active: 'window' keeps all, 'first_half' those
    of the first half of the grid.

    Raises:
        ValueError: nothing is left to train.
    """
    if active not in ACTIVE:
        raise ValueError(f'active is {active!r}; expected one of {ACTIVE}')
    if active == 'window':
        return masks
    kept = np.arange(len(masks.trained)) < len(masks.trained) // 2
    if not (masks.trained & kept).any():
        raise ValueError(
            f'no transition is trained: the window has none in the first half of '
            f'{len(masks.trained)} steps'
        )
    return StepMasks(masks.stochastic & kept, masks.trained & kept)


def _trajectory(setting: Setting, *, completion_every=1, completion_steps=0) -> RolloutPlan:
    """`trajectory_plan` with the states that the credit rule reads."""
    masks, kind, n = setting.masks, setting.rule.reads, completion_steps or None
    # every prediction is an image of its own
    source = lambda k: completion_source(masks, k, n) if kind == STATE else k
    states = every_state(needed_states(setting.rule, masks), completion_every, source)
    last = len(masks.trained)
    points = [Point(kind if k < last else STATE, k) for k in states]
    end = Point(X0HAT, last - 1)
    if setting.rule.reads_predictions:
        points.append(Point(ANCHOR, 0))
    # The last prediction is the sample itself if the last step goes there without noise.
    ends_there = not masks.stochastic[-1] and setting.sigmas[-1] == 0 and end in points
    asked = [p for p in points if not (ends_there and p == end)]
    plan = trajectory_plan(masks, asked, n, setting.beside)
    if ends_there:
        sample = len(plan.completions) - 1
        plan = plan._replace(points=(*plan.points, end), sources=(*plan.sources, sample))
    return plan._replace(credited=(kind,))


def _branch(setting: Setting, *, strides=(1,), merge_tau=0.0, merge=()) -> RolloutPlan:
    """`branch_plan` at the trained transitions, merged by entropy or by a list of lengths."""
    active = [int(k) for k in np.flatnonzero(setting.masks.trained)]
    grid = setting.sigmas, setting.noise_levels
    targets = merged_targets(*grid, active, merge_tau, setting.last)
    if merge:
        if len(merge) != len(active):
            raise ValueError(
                f'plan.merge={tuple(merge)} has {len(merge)} lengths; expected {len(active)}, one '
                f'for each active step of {active}'
            )
        ends = dict(zip(active, np.add(active, merge).tolist()))
        if late := [k for k, end in ends.items() if end > max(setting.last, k + 1)]:
            raise ValueError(
                f'plan.merge={tuple(merge)}: the noisy step from {late[0]} would end at '
                f'{ends[late[0]]}, in a latent so clean that its noise stays in the scored image; '
                f'expected at most {setting.last}'
            )
        targets = tuple(ends.get(k, end) for k, end in enumerate(targets))
    num_steps = len(setting.sigmas) - 1
    return branch_plan(num_steps, active, targets, tuple(strides), setting.beside)


def _tree(setting: Setting, *, splits=(0,), split_noise=4.0) -> RolloutPlan:
    """`tree_plan`, with the samples of a seed as leaves."""
    try:
        return tree_plan(setting.masks, tuple(splits), setting.beside, split_noise)
    except ValueError as error:
        raise ValueError(
            f'plan.splits={tuple(splits)} with {setting.beside} samples (rollout.group / '
            f'plan.seeds): {error}'
        ) from None


PLAN_KINDS = {
    'trajectory': PlanKind(_trajectory, (STATE, X0HAT)),
    'branch': PlanKind(_branch, (BRANCH,), one_start=True, one_state=True),
    'tree': PlanKind(_tree, (STATE,), one_start=True, scores_states=False),
}
