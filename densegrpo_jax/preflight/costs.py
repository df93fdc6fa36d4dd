"""What each credit costs, by the plan that a run would execute, and at this device's speed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from densegrpo_jax.config.method import check_method
from densegrpo_jax.pipelines.base import Pipeline
from densegrpo_jax.preflight.credits import Credit
from densegrpo_jax.preflight.measure import Spent
from densegrpo_jax.sampling.cost import of_sample
from densegrpo_jax.sampling.sampler import Schedule, make_schedule

BACKWARD = 3  # evaluations that an update's forward and backward pass of a transition counts as


class Cost(NamedTuple):
    """Of one sample: network evaluations, scored images, trained transitions."""

    nfe: float
    images: float
    trained: int

    def seconds(self, speed: Spent) -> float:
        """At the speed of a measurement, with the update (an estimate: BACKWARD evaluations for
        every trained transition). Scoring counts in full: in training part of it is hidden.
        """
        network = speed.network_s / max(speed.nfe, 1)
        image = speed.image_s / max(speed.images, 1)
        return (self.nfe + BACKWARD * self.trained) * network + self.images * image


def costs(config, pipeline: Pipeline, credits: Mapping[str, Credit], own: str) -> dict[str, Cost]:
    """Credit -> cost of a sample; `own` is the configuration as it is. Those that it does not go
    with are left out.
    """
    found = {}
    for name, credit in credits.items():
        c = config.copy_and_resolve_references()
        try:
            if name != own:
                c.update_from_flattened_dict(credit.overrides)
                check_method(c)
            found[name] = _cost(c, make_schedule(pipeline, c))
        except ValueError:
            if name == own:
                raise
    return found


def _cost(config, schedule: Schedule) -> Cost:
    each = of_sample(config, schedule)
    return Cost(each.nfe, each.images, sum(schedule.plan.transitions.trained))
