"""The programs of an iteration: what is compiled once, and what changes between iterations."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from densegrpo_jax.sampling.sampler import Schedule, make_rollout, restricted
from densegrpo_jax.sampling.session import Session
from densegrpo_jax.training.learner import make_credit


class Programs(NamedTuple):
    """What an iteration runs."""

    rollout: Callable  # from `make_rollout`
    levels: np.ndarray  # [T], its noise levels
    credit: Callable  # from `make_credit`, without its last argument


class Rounds:
    """The programs of every iteration.

    Trained transitions that change are arguments of one pair of programs. Only if credit reads
    completions, and the transitions beside the chosen ones are silent, every choice has a pair of
    its own: its plan does not complete what is known to be equal.
    """

    def __init__(self, session: Session, schedule: Schedule):
        self._session, self._schedule = session, schedule
        self._made: dict[tuple[int, ...] | None, tuple[Callable, Callable]] = {}

    def __call__(self, iteration: int) -> Programs:
        """The programs of the iteration, 0 for the first."""
        schedule, moving = self._schedule, self._schedule.moving
        if moving is None:
            rollout, credit = self._pair(None)
            return Programs(rollout, schedule.noise_levels, credit)
        steps = moving.choose(iteration)
        if moving.own_plans:
            rollout, credit = self._pair(tuple(map(int, steps)))
            return Programs(rollout, schedule.noise_levels, credit)
        rollout, credit = self._pair(None)
        levels = moving.levels(schedule.noise_levels, steps)
        return Programs(rollout, levels, functools.partial(credit, chosen=steps))

    def _pair(self, steps: tuple[int, ...] | None) -> tuple[Callable, Callable]:
        if steps not in self._made:
            s = self._session
            config = s.config
            schedule = self._schedule
            if steps is not None:
                schedule = restricted(config, schedule, np.array(steps))
            self._made[steps] = (
                make_rollout(s.pipeline, config, schedule, s.mesh),
                make_credit(config, schedule, s.mesh, s.reward.weights),
            )
        return self._made[steps]
