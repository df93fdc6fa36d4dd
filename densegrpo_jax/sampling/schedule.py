"""What the rollouts of a run share on the host: grid, noise table, masks and plan."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from densegrpo_jax.config.guide_keys import has_guide
from densegrpo_jax.config.method import (
    credit_rule_of,
    kernel_of,
    loss_of,
    plan_kind_of,
    plan_options,
)
from densegrpo_jax.core.losses import CLEAN
from densegrpo_jax.core.masks import StepMasks, step_masks
from densegrpo_jax.core.plan_kinds import Setting, active_masks
from densegrpo_jax.core.rollout_plan import RolloutPlan
from densegrpo_jax.core.schedules import check_grid
from densegrpo_jax.pipelines.base import Pipeline
from densegrpo_jax.sampling.noise import noise_table
from densegrpo_jax.sampling.steps import StepChoice, step_choice


class Schedule(NamedTuple):
    """Host data shared by all rollouts of a run."""

    sigmas: np.ndarray  # [T+1]
    noise_levels: np.ndarray  # [T]
    masks: StepMasks
    plan: RolloutPlan  # which transitions and completions are sampled and scored
    moving: StepChoice | None = None  # the trained transitions of an iteration, if they change
    guide_steps: tuple[int, ...] = ()  # transitions of `guide.steps`, if there is a process reward


def make_schedule(pipeline: Pipeline, config) -> Schedule:
    """Grid, noise table, masks and plan of a configuration. With `noise.calibrate` the table is the
    start of the calibration.
    """
    r = config.rollout
    sigmas = pipeline.sigmas(r.steps, config.model.height, config.model.width)
    check_clean(config, sigmas)
    ends = {'noisy_end': r.noisy_end, 'train_end': r.train_end, 'kernel': kernel_of(config)}
    window = step_masks(sigmas, first=r.first, last=r.last or None, **ends)
    masks = active_masks(window, config.plan.active)
    levels = noise_table(config, sigmas, masks)
    last = int(np.flatnonzero(window.stochastic)[-1]) + 1
    plan = _plan(config, Setting(sigmas, levels, masks, last, credit_rule_of(config)))
    return Schedule(
        sigmas, levels, masks, plan, step_choice(config, masks), guide_steps(config, masks)
    )


def guide_steps(config, masks: StepMasks) -> tuple[int, ...]:
    """The transitions that `guide.steps` names: by default the trained ones in the second half of
    the grid; none without a process reward.

    Raises:
      ValueError: one of them adds no noise, or there is none.
    """
    if not has_guide(config):
        return ()
    named, count = tuple(sorted({*config.guide.steps})), len(masks.trained)
    if not named:
        named = tuple(k for k in range(count) if masks.trained[k] and 2 * k >= count)
        if not named:
            raise ValueError(
                'guide.steps=() are the trained transitions in the second half of the grid, and '
                f'there is none among {np.flatnonzero(masks.trained).tolist()} of {count}: name '
                'those that drift'
            )
    if silent := [k for k in named if k >= count or not masks.stochastic[k]]:
        raise ValueError(
            f'guide.steps={named}: transition {silent[0]} adds no noise, so nothing drifts there; '
            f'expected some of {np.flatnonzero(masks.stochastic).tolist()}'
        )
    return named


def check_clean(config, sigmas: np.ndarray) -> None:
    """Raises ValueError if the loss trains on clean samples, at noise levels of 0 ... 1, and the
    model's grid ends elsewhere (Stable Diffusion 1.5): samples would not be clean, and most of the
    loss would come from levels that the model has never seen.
    """
    if loss_of(config).batch == CLEAN and not (sigmas[0] == 1 and sigmas[-1] == 0):
        raise ValueError(
            f'loss.kind={config.loss.kind!r} trains at noise levels of 0 to 1, and those of the '
            f'model are {sigmas[-1]:.3g} to {sigmas[0]:.3g}: use a loss on transitions, such as '
            "loss.kind='grpo'"
        )


def restricted(config, schedule: Schedule, steps: np.ndarray) -> Schedule:
    """The schedule in which only the transitions `steps` [w] are stochastic and trained: its plan
    completes no state twice.
    """
    on = np.isin(np.arange(len(schedule.masks.trained)), steps)
    masks = StepMasks(*(mask & on for mask in schedule.masks))
    last = int(np.flatnonzero(masks.stochastic)[-1]) + 1
    grid = schedule.sigmas, schedule.noise_levels
    plan = _plan(config, Setting(*grid, masks, last, credit_rule_of(config)))
    return schedule._replace(masks=masks, plan=plan)


def beside(config) -> int:
    """Adjacent samples of a prompt that share their initial noise."""
    r = config.rollout
    return r.group // config.plan.seeds if r.shared_noise else 1


def _plan(config, setting: Setting) -> RolloutPlan:
    # Groups of two sizes have one plan; samples that drift may not be alike.
    if config.budget.by == 'none' and not has_guide(config):
        setting = setting._replace(beside=beside(config))
    return plan_kind_of(config).make(setting, **plan_options(config))


def drawing_grid(pipeline: Pipeline, config, num_steps: int) -> np.ndarray:
    """The noise levels [num_steps + 1] of `make_sampler`. Raises ValueError if images of this size
    have none: the scheduler shifts them towards 1 until they are equal.
    """
    m = config.model
    sigmas = pipeline.sigmas(num_steps, m.height, m.width)
    try:
        check_grid(sigmas)
    except ValueError as error:
        raise ValueError(
            f'model.height={m.height} and model.width={m.width} cannot be drawn in {num_steps} '
            f'steps ({error}): use smaller images, or other steps'
        ) from None
    return sigmas
