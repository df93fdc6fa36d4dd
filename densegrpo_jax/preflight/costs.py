"""What each credit costs, by the plan that a run would execute, and at this device's speed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from densegrpo_jax.config.plan_keys import AS_TRAJECTORY
from densegrpo_jax.config.variants import apply_method
from densegrpo_jax.pipelines.base import Pipeline
from densegrpo_jax.preflight.measure import Spent
from densegrpo_jax.sampling.sampler import Schedule, make_schedule

BACKWARD = 3  # evaluations that an update's forward and backward pass of a transition counts as
BRANCH = 'g2rpo'  # the method whose plan stands for siblings that leave one state


class Cost(NamedTuple):
    """Of one sample: network evaluations, scored images, trained transitions."""

    nfe: float
    images: int
    trained: int

    def seconds(self, speed: Spent) -> float:
        """At the speed of a measurement, with the update (an estimate: BACKWARD evaluations for
        every trained transition).
        """
        network = speed.network_s / max(speed.nfe, 1)
        image = speed.image_s / max(speed.images, 1)
        return (self.nfe + BACKWARD * self.trained) * network + self.images * image


def own_credit(config) -> str:
    """The name, among those of `signal.credits_of`, of what the configuration trains with, or the
    nearest.
    """
    if config.plan.kind == 'branch':
        return 'branch'
    if config.credit.rule == 'sparse':
        return 'sparse'
    n = config.credit.completion_steps
    return f'dense {n}' if n else 'dense'


def overrides(credit: str) -> dict[str, object]:
    """The keys that choose a credit on trajectories, or on branches."""
    if credit == 'branch':
        return {}
    rule, _, n = credit.partition(' ')
    return {**AS_TRAJECTORY, 'credit.rule': rule, 'credit.completion_steps': int(n or 0)}


def costs(config, pipeline: Pipeline, credits: Iterable[str]) -> dict[str, Cost]:
    """Credit -> cost of a sample; those that the configuration does not go with are left out."""
    found = {}
    for credit in credits:
        c = config.copy_and_resolve_references()
        try:
            with c.unlocked():
                c.update_from_flattened_dict(overrides(credit))
                if credit == 'branch' and c.plan.kind != 'branch':
                    apply_method(c, BRANCH)
            found[credit] = _cost(make_schedule(pipeline, c))
        except ValueError:
            continue
    return found


def _cost(schedule: Schedule) -> Cost:
    plan = schedule.plan
    return Cost(plan.nfe, len(plan.completions), sum(plan.transitions.trained))
