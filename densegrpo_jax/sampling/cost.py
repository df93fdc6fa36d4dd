"""What a sample of a run costs, counted in the plan that the run executes."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

from densegrpo_jax.config.moving_keys import ENTROPY
from densegrpo_jax.core.rollout_plan import RolloutPlan
from densegrpo_jax.sampling import guidance
from densegrpo_jax.sampling.sampler import Schedule, beside


class Cost(NamedTuple):
    """Of one sample, as executed; not whole numbers where samples share some.

    Attributes:
      nfe: network evaluations, with those of a process reward and of the attention probe. With
        classifier-free guidance each is two.
      images: distinct images that the reward scores.
    """

    nfe: float
    images: float


def of_sample(config, schedule: Schedule) -> Cost:
    """Counts; no weights are read."""
    plan = schedule.plan
    process = guidance.cost(config, schedule).evaluations
    probe = probed(config, schedule) / config.rollout.group
    alike = 1 if schedule.guided else beside(config)  # samples that drift may not be alike
    return Cost(plan.nfe + process + probe, distinct_images(plan, alike))


def probes(config, schedule: Schedule) -> tuple[bool, bool]:
    """Whether an iteration probes the policy's attention, and whether also the base model's."""
    base, moving = config.budget.by == ENTROPY, schedule.moving
    return base or (moving is not None and moving.choose is None), base


def probed(config, schedule: Schedule) -> int:
    """Network evaluations that the attention probe makes for a prompt, once an iteration."""
    return sum(probes(config, schedule)) * (len(schedule.sigmas) - 1)


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
