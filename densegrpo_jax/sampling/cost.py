"""What a sample of a run costs, counted in the plans that its iterations execute."""

from __future__ import annotations

import statistics
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from densegrpo_jax.config.moving_keys import ENTROPY
from densegrpo_jax.core.rollout_plan import RolloutPlan
from densegrpo_jax.sampling.guide import ProcessCost, process_cost
from densegrpo_jax.sampling.schedule import Schedule, beside, restricted


class SampleCost(NamedTuple):
    """Of one sample, as executed; not whole numbers where samples share some, or where the plans of
    iterations differ: then they are means over the choices of transitions.

    Attributes:
      rollout: network evaluations of trajectory and completions.
      images: distinct images that the reward scores.
      probe: evaluations by the attention probe, in the place of the sample of its prompt's.
      process: evaluations of the base network by a process reward, without classifier-free
        guidance.
      gradients: of a process reward through the network, about two evaluations each, which no other
        field has.
    """

    rollout: float
    images: float
    probe: float = 0.0
    process: float = 0.0
    gradients: float = 0.0

    @property
    def nfe(self) -> float:
        """Network evaluations; with classifier-free guidance `network` counts them."""
        return self.rollout + self.probe + self.process

    def network(self, guided: bool) -> float:
        """Forward passes of the network. guided: with classifier-free guidance, where an evaluation
        of the policy is two.
        """
        return (1 + guided) * (self.rollout + self.probe) + self.process


class Probed(NamedTuple):
    """Whose attention an iteration probes."""

    policy: bool
    base: bool


def of_sample(config, schedule: Schedule) -> SampleCost:
    """Counts; no weights are read."""
    plans = [each.plan for each in executed(config, schedule)]
    process = mean_process(config, schedule)
    # Samples of one start are alike up to their first noise, with which they also begin to drift.
    # Steps of a plan whose noise is 0 in an iteration (`moving.steps`) are not seen here.
    images = [distinct_images(plan, beside(config)) for plan in plans]
    return SampleCost(
        statistics.fmean(plan.nfe for plan in plans),
        statistics.fmean(images),
        probe_evaluations(config, schedule) / config.rollout.group,
        process.evaluations,
        process.gradients,
    )


def mean_process(config, schedule: Schedule) -> ProcessCost:
    """`process_cost` of the plans that iterations run, the mean over them."""
    found = [process_cost(config, each) for each in executed(config, schedule)]
    return ProcessCost(*map(statistics.fmean, zip(*found)))


def executed(config, schedule: Schedule) -> list[Schedule]:
    """The schedules of the plans that iterations run: itself, or one for each choice of transitions
    whose plan completes no state twice.
    """
    moving = schedule.moving
    if moving is None or not moving.own_plans:
        return [schedule]
    return [restricted(config, schedule, np.array(steps)) for steps in moving.choices]


def largest(config, schedule: Schedule) -> Schedule:
    """Of the schedules `executed` the one whose rollout needs most memory: with a gradient of the
    process reward if any has one, as that keeps the network's activations; then the one that holds
    and evaluates most.
    """

    def need(found):
        return process_cost(config, found).gradients > 0, found.plan.rows, found.plan.nfe

    return max(executed(config, schedule), key=need)


def probed(config, schedule: Schedule) -> Probed:
    """Whose attention an iteration probes."""
    base, moving = config.budget.by == ENTROPY, schedule.moving
    return Probed(base or (moving is not None and moving.choose is None), base)


def probe_evaluations(config, schedule: Schedule) -> int:
    """Network evaluations that the attention probe makes for a prompt, once an iteration."""
    return sum(probed(config, schedule)) * (len(schedule.sigmas) - 1)


def distinct_images(plan: RolloutPlan, alike: int) -> float:
    """Scored images of a sample; one that several samples have in common counts once for all.

    Args:
      alike: adjacent samples with one initial noise. What leaves them without noise stays alike.
    """
    rows = {0: alike}
    for read, k, to, _, noisy in zip(*plan.jobs):
        together = plan.together[k] if plan.together else 1
        rows |= {row: together if own else rows[read] for row, own in zip(to, noisy)}
    # the anchor of predictions is chosen sample by sample, by no job
    return float(sum(Fraction(1, rows.get(row, 1)) for row in plan.completions))
