"""What a sample costs, and how many updates a budget pays for."""

from __future__ import annotations

import pathlib
from typing import NamedTuple

from densegrpo_jax.config.guide_keys import has_guide
from densegrpo_jax.preflight import costs
from densegrpo_jax.rewards.directional import read_direction
from densegrpo_jax.runtime.mesh import make_mesh
from densegrpo_jax.sampling.cost import SampleCost, of_sample
from densegrpo_jax.sampling.process_reward import read_probe
from densegrpo_jax.sampling.schedule import make_schedule
from densegrpo_jax.sampling.session import open_shapes


def cost(config) -> SampleCost:
    """Counts the plan that a run of `config` executes, as the run's own count: with classifier-free
    guidance an evaluation is two. No weights are read.
    """
    pipeline = open_shapes(config, make_mesh(config.mesh))
    found = of_sample(config, make_schedule(pipeline, config))
    twice = 1 + pipeline.takes_negative(config.model.guidance)
    return found._replace(rollout=twice * found.rollout, probe=twice * found.probe)


def updating(config) -> float:
    """Evaluations that the arithmetic of a sample's update counts as, in the unit of `cost`:
    forward and back through all weights is 3 (2 with adapters), one more where the forward pass is
    repeated (`model.remat`), and every other policy that is read is 1. The gradients of a process
    reward count with it, as about 2 each.
    """
    pipeline = open_shapes(config, make_mesh(config.mesh))
    twice = 1 + pipeline.takes_negative(config.model.guidance)
    gradients = of_sample(config, make_schedule(pipeline, config)).gradients
    return twice * costs.cost(config, pipeline).update + 2 * gradients


class Before(NamedTuple):
    """Spent once, before a training: network evaluations, and images scored or embedded."""

    nfe: float = 0.0
    images: float = 0.0


def before(config) -> Before:
    """What the file that a run reads took to make: of a process reward its rollouts, with the base
    network at each of their T + 1 states, of a direction its pictures by the ODE. The file says how
    many, else the keys. Those without a score are not among them.

    Raises:
      FileNotFoundError, ValueError: the file is missing or damaged.
    """
    pipeline = open_shapes(config, make_mesh(config.mesh))
    twice = 1 + pipeline.takes_negative(config.model.guidance)
    steps, guide, d2 = config.rollout.steps, config.guide, config.d2
    found = Before()
    if has_guide(config) and guide.source == 'probe':
        facts = read_probe(pathlib.Path(guide.file).expanduser()).facts
        count = facts.get('samples', guide.samples)
        found = Before(count * (twice * steps + steps + 1), count)
    if d2.file:
        facts = read_direction(pathlib.Path(d2.file).expanduser()).facts
        count = facts.get('pictures', d2.pictures)
        found = Before(found.nfe + count * twice * config.eval.steps, found.images + count)
    return found


def samples(config) -> int:
    """Samples of one iteration."""
    return config.rollout.prompts * config.rollout.group


def updates_within(spent: float, each: float) -> int:
    """Updates of `each` network evaluations that `spent` of them pay for; at least one."""
    # rounded, as a mean over a group's samples may lie one rounding above a whole number
    return max(1, int(spent // round(each, 3)))
