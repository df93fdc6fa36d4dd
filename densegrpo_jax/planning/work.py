"""Operations of the parts of an iteration, counted from the networks: what plans and benchmarks
divide by. Rematerialisation's repetitions are not among them, and neither is what a reward
computes.
"""

from __future__ import annotations

import functools
import statistics
from typing import Any

import jax
import jax.numpy as jnp

from densegrpo_jax.pipelines.base import Pipeline
from densegrpo_jax.planning.flops import count_flops, countable
from densegrpo_jax.sampling.cost import executed, mean_process
from densegrpo_jax.sampling.schedule import Schedule
from densegrpo_jax.training.geometry import microbatches_evaluated, passes_of_row, rescored_together


class Work:
    """Operations on all devices together; nothing runs.

    Args:
      params: the stored parameters of transformer and autoencoder; arrays or their shapes.
      policy: the policy's parameters, likewise.
    """

    def __init__(self, config, pipeline: Pipeline, params: dict, policy: Any):
        self._config, self._pipeline, self._params = config, countable(pipeline), params
        self._policy = None if config.full else policy
        self.velocity = functools.cache(self._velocity)
        self.decoding = functools.cache(self._decoding)

    def _latents(self, rows: int) -> jax.ShapeDtypeStruct:
        m = self._config.model
        shape = self._pipeline.latent_shape(m.height, m.width)
        return jax.ShapeDtypeStruct((rows, *shape), jnp.float32)

    def _velocity(self, rows: int, guided: bool = True) -> float:
        """One velocity of `rows` samples. guided: with guidance, if it is classifier-free."""
        m, pipeline = self._config.model, self._pipeline

        def velocity(base, policy, conditioning, negative, x):
            network = pipeline.velocity_fn(
                base, policy, conditioning, m.guidance, m.height, m.width, negative=negative
            )
            return network(x, jnp.full(rows, 0.5))

        negative = guided and pipeline.takes_negative(m.guidance)
        text = (
            pipeline.conditioning_shapes(rows),
            pipeline.conditioning_shapes(1) if negative else None,
        )
        base = self._params['transformer']
        return count_flops(velocity, base, self._policy, *text, self._latents(rows))

    def _decoding(self, rows: int) -> float:
        """Decoding `rows` latents."""
        m = self._config.model
        decode = lambda p, z: self._pipeline.decode(p, z, m.height, m.width)
        return count_flops(decode, self._params, self._latents(rows))

    def rollout(self, schedule: Schedule) -> float:
        """One batch of prompts with its completions and decoding; of plans that differ between
        iterations the mean.
        """
        r, config = self._config.rollout, self._config
        batch = r.prompts_per_batch * r.group
        plans = [found.plan for found in executed(config, schedule)]
        work = statistics.fmean(plan.nfe for plan in plans) * self.velocity(batch)
        work += statistics.fmean(len(plan.completions) for plan in plans) * self.decoding(batch)
        if schedule.guide_steps:
            inside, value = mean_process(config, schedule), config.guide.source == 'value'
            work += inside.evaluations * self.velocity(batch, False)
            work += inside.images * self.decoding(batch)
            # Backward through the activations, as much as forward.
            through = self.velocity(batch, value) + (self.decoding(batch) if value else 0)
            work += inside.gradients * through
        return work

    def forward(self, schedule: Schedule) -> float:
        """One forward pass of all rows of an update. Of a loss that chooses its samples, as few as
        an update may have: one of each group.
        """
        config = self._config
        evaluated = config.optim.microbatch // rescored_together(config)
        parts = microbatches_evaluated(config, schedule)
        return self.velocity(evaluated, config.loss.cfg) * parts

    def update(self, schedule: Schedule) -> float:
        """An update: forward; backward through the activations, and through the weights if they are
        trained; and a forward pass for every other role that is read.
        """
        return self.forward(schedule) * passes_of_row(self._config)
