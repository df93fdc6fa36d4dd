"""The trained transitions of an iteration, if they change between iterations (`moving.steps`)."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable

import numpy as np

from densegrpo_jax.config.method import credit_rule_of
from densegrpo_jax.config.moving_keys import ENTROPY, SILENT_BESIDE
from densegrpo_jax.core.dense_reward import needed_states
from densegrpo_jax.core.masks import StepMasks
from densegrpo_jax.core.moving_steps import (
    random_subset,
    random_window,
    stays,
    subset_size,
    window_at,
)
from densegrpo_jax.core.rollout_plan import STATE
from densegrpo_jax.runtime.streams import STREAM_STEPS, stream_key

MOST_PLANS = 16  # each is compiled


@dataclasses.dataclass(frozen=True)
class StepChoice:
    """Chooses the trained transitions of an iteration.

    Attributes:
      allowed: the transitions to choose from, increasing.
      count: how many are chosen.
      silent: whether the others add no noise.
      choices: all that may be chosen, if each has a plan of its own because credit reads
        completions, of which fewer differ; else ().
      choose: iteration -> int32 [count], increasing; the same in every process and in a run that
        continues. None: it depends on a probe of the policy (`sampling.probe`).
    """

    allowed: tuple[int, ...]
    count: int
    silent: bool
    choices: tuple[tuple[int, ...], ...]
    choose: Callable[[int], np.ndarray] | None

    @property
    def own_plans(self) -> bool:
        """Whether every choice has a plan of its own."""
        return bool(self.choices)

    def levels(self, noise_levels: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """float32 [T], the noise levels of an iteration that trains `steps`."""
        if not self.silent:
            return noise_levels
        return np.where(np.isin(np.arange(len(noise_levels)), steps), noise_levels, 0).astype(
            np.float32
        )


def step_choice(config, masks: StepMasks) -> StepChoice | None:
    """The choice that `moving.steps` names, among the trained transitions of the masks; None if
    the same are trained in all iterations, also because all are chosen.

    Raises:
      ValueError: the window is wider than what may be trained, or has too many places for a rule
        that reads completions.
    """
    m, allowed = config.moving, tuple(int(k) for k in np.flatnonzero(masks.trained))
    if m.steps == 'none':
        return None
    key = lambda iteration: stream_key(config.seed, STREAM_STEPS, iteration)
    if m.steps == 'subset':
        count = subset_size(m.fraction, len(allowed))
        if count == len(allowed):
            return None
        return StepChoice(
            allowed, count, False, (), lambda step: random_subset(key(step), allowed, count)
        )
    if m.width > len(allowed):
        raise ValueError(
            f'moving.width={m.width}: only {len(allowed)} transitions may be trained, {allowed}; '
            'use a smaller window, or more rollout.steps'
        )
    if m.width == len(allowed):
        return None
    choose: Callable[[int], np.ndarray] | None
    if m.steps == ENTROPY:
        choose = None
    elif m.steps == 'random':
        choose = lambda step: random_subset(key(step), allowed, m.width)
    elif m.steps == 'random_window':
        choose = lambda step: random_window(key(step), allowed, m.width)
    else:
        staying = stays(len(allowed) - m.width + 1, m.stay, m.stay_rule, m.stay_least)
        choose = lambda step: window_at(step, allowed, m.width, staying)
    # predictions need no evaluation of their own, completions of states do
    rule = credit_rule_of(config)
    own_plans = rule.reads == STATE and needed_states(rule, masks) != (len(masks.trained),)
    windows = m.steps in ('window', 'random_window')
    plans = len(allowed) - m.width + 1 if windows else math.comb(len(allowed), m.width)
    if own_plans and plans > MOST_PLANS:
        wider = f'moving.width={len(allowed) + 1 - MOST_PLANS} or more, or ' if windows else ''
        raise ValueError(
            f'credit.rule={config.credit.rule!r} with moving.steps={m.steps!r} compiles a program '
            f'for each of the {plans} choices of transitions, at most {MOST_PLANS}: use {wider}'
            "credit.rule='sparse'"
        )
    every = itertools.combinations(allowed, m.width)
    if windows:
        every = (allowed[place : place + m.width] for place in range(plans))
    choices = tuple(every) if own_plans else ()
    return StepChoice(allowed, m.width, m.steps in SILENT_BESIDE, choices, choose)
