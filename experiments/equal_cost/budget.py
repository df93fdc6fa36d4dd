"""What a sample costs, and how many updates a budget pays for."""

from __future__ import annotations

from densegrpo_jax.runtime.mesh import make_mesh
from densegrpo_jax.sampling.cost import SampleCost, of_sample
from densegrpo_jax.sampling.sampler import make_schedule
from densegrpo_jax.sampling.session import open_shapes


def cost(config) -> SampleCost:
    """Counts the plan that a run of `config` executes, as the run's own count: with classifier-free
    guidance an evaluation is two. No weights are read.
    """
    pipeline = open_shapes(config, make_mesh(config.mesh))
    found = of_sample(config, make_schedule(pipeline, config))
    twice = 1 + pipeline.takes_negative(config.model.guidance)
    return found._replace(rollout=twice * found.rollout, probe=twice * found.probe)


def samples(config) -> int:
    """Samples of one iteration."""
    return config.rollout.prompts * config.rollout.group


def updates_within(spent: float, each: float) -> int:
    """Updates of `each` network evaluations that `spent` of them pay for; at least one."""
    # rounded, as a mean over a group's samples may lie one rounding above a whole number
    return max(1, int(spent // round(each, 3)))
