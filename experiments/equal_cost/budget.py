"""What a sample costs, and how many updates a budget pays for."""

from __future__ import annotations

from densegrpo_jax.preflight import costs
from densegrpo_jax.runtime.mesh import make_mesh
from densegrpo_jax.sampling.cost import SampleCost, of_sample
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


def samples(config) -> int:
    """Samples of one iteration."""
    return config.rollout.prompts * config.rollout.group


def updates_within(spent: float, each: float) -> int:
    """Updates of `each` network evaluations that `spent` of them pay for; at least one."""
    # rounded, as a mean over a group's samples may lie one rounding above a whole number
    return max(1, int(spent // round(each, 3)))
