"""What each credit costs, by the rollouts that a run would execute, and at this device's speed.

A network evaluation is a forward pass, as training counts them (`nfe`): with classifier-free
guidance a velocity takes two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from densegrpo_jax.config.combinations import check_combinations
from densegrpo_jax.guard.check import GuardCost
from densegrpo_jax.pipelines.base import Pipeline
from densegrpo_jax.preflight.credits import BRANCHES, Credit
from densegrpo_jax.preflight.measure import Spent
from densegrpo_jax.sampling.cost import of_sample
from densegrpo_jax.sampling.schedule import Schedule, make_schedule
from densegrpo_jax.training.geometry import microbatches_evaluated, passes_of_row, rescored_together


class Cost(NamedTuple):
    """Of one sample.

    Attributes:
      nfe: network evaluations of its rollout and completions.
      images: scored images.
      update: evaluations that the arithmetic of its update counts as, an estimate.
    """

    nfe: float
    images: float
    update: float

    def seconds(self, speed: Spent) -> float:
        """At the speed of a measurement. Scoring counts in full; training hides part of it."""
        return sum(self.phases(speed).values())

    def phases(self, speed: Spent) -> dict[str, float]:
        """Seconds of sampling, of decoding and scoring, and of the update."""
        network, image = speed.each()
        return {
            'sampling': self.nfe * network,
            'decoding and scoring': self.images * image,
            'update': self.update * network,
        }


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
                check_combinations(c)
            found[name] = cost(c, pipeline)
        except ValueError:
            if name == own:
                raise
    return found


def of_branches(config, pipeline: Pipeline) -> Cost | None:
    """Of a sample of branches from every trained step; None if the configuration has no such."""
    c = config.copy_and_resolve_references()
    try:
        c.update_from_flattened_dict(BRANCHES)
        check_combinations(c)
        return cost(c, pipeline)
    except ValueError:
        return None


def cost(config, pipeline: Pipeline) -> Cost:
    """Of a sample of the configuration as it is."""
    schedule = make_schedule(pipeline, config)
    each = of_sample(config, schedule)
    nfe = each.network(passes(config, pipeline) == 2)
    return Cost(nfe, each.images, _update(config, pipeline, schedule))


def passes(config, pipeline: Pipeline) -> int:
    """Network evaluations of a velocity: 2 with classifier-free guidance."""
    return 2 if pipeline.takes_negative(config.model.guidance) else 1


def _update(config, pipeline: Pipeline, schedule: Schedule) -> float:
    """Evaluations of a sample's update, as `densegrpo_jax.plan` counts them, with what
    rematerialisation repeats. Of a loss that chooses its samples, as few as an update may have.
    """
    r, together = config.rollout, config.optim.microbatch / rescored_together(config)
    rows = microbatches_evaluated(config, schedule) * together / (r.prompts * r.group)
    of_row = passes_of_row(config) + (config.model.remat == 'full')
    return rows * of_row * (passes(config, pipeline) if config.loss.cfg else 1)


class Run(NamedTuple):
    """What a whole run takes; seconds at the speed of a measurement.

    Attributes:
      phases: seconds of an iteration, by phase.
      evaluations: how often the run is evaluated; `evaluation`: seconds of one.
      guarded: how often the guard measures beside it; `guard`: seconds of one measurement.
      nfe, images: of all iterations, evaluations and measurements.
      uncounted: what the hours leave out.
    """

    samples: int
    phases: dict[str, float]
    evaluations: int
    evaluation: float
    guarded: int
    guard: float
    nfe: float
    images: float
    hours: float
    uncounted: list[str]


def of_run(
    config, pipeline: Pipeline, own: Cost, speed: Spent, test: int, guard: GuardCost | None
) -> Run:
    """Of the configuration, whose samples cost `own`. test: prompts of an evaluation. guard: of a
    run with one; an image of it is scored at the reward's speed, whatever its panel takes.
    """
    e, samples = config.eval, config.rollout.prompts * config.rollout.group
    times = 1 + -(-config.iterations // e.every)  # the start and the end are among them
    network, image = speed.each()
    velocity = passes(config, pipeline)
    one = test * (e.steps * velocity * network + image)
    phases = {name: samples * s for name, s in own.phases(speed).items()}
    g = guard or GuardCost(0, 0, 0, 0, 0)
    measurement = g.nfe * velocity * network + g.images * image
    guarding = g.total_nfe * velocity * network + g.evaluations * g.images * image
    seconds = config.iterations * sum(phases.values()) + times * one + guarding
    drawn, scored = config.iterations * samples, times * test
    uncounted = ['compilation', 'encoding prompts', 'loading and checkpoints']
    uncounted += ["what the guard's panel takes beyond the reward"] * bool(guard)
    uncounted += ['calibration of the noise'] * bool(config.noise.calibrate)
    return Run(
        samples,
        phases,
        times,
        one,
        g.evaluations,
        measurement,
        drawn * own.nfe + velocity * (scored * e.steps + g.total_nfe),
        drawn * own.images + scored + g.evaluations * g.images,
        seconds / 3600,
        uncounted,
    )
