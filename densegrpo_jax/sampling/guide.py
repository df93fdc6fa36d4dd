"""Process rewards inside a rollout: the probe, the reward of the predicted image, and the drift
along their gradients (`core.guide`).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from densegrpo_jax.config.guide_keys import drifts
from densegrpo_jax.core.guide import Guide, clip_norm, process_states, reward_shift, spsa
from densegrpo_jax.core.sde_step import over
from densegrpo_jax.pipelines.base import Conditioning, Pipeline, repeat_rows
from densegrpo_jax.pipelines.inside import hidden_fn
from densegrpo_jax.rewards.composite import CompositeReward
from densegrpo_jax.rewards.differentiable import scores
from densegrpo_jax.sampling.sampler import MakeGuide, in_parts, normal_rows, split_rows
from densegrpo_jax.sampling.schedule import Schedule

# Per device at a time, with a gradient through the decoder: it keeps what a decoding lets go.
PIXELS_WITH_GRADIENT = 512 * 512


class ProcessCost(NamedTuple):
    """What a process reward adds to one sample; means (`cost.mean_process`) need not be whole."""

    evaluations: float  # of the network, forward
    gradients: float  # through a network: about two evaluations each
    images: float  # decoded and scored on the devices


def process_cost(config, schedule: Schedule) -> ProcessCost:
    """Counts; with T evaluations for the trajectory itself.

    A probe evaluates the base network once at every state that is scored or left by a drifting
    step. `value` takes its gradients from the evaluations of the trajectory, and `spsa` has none.
    """
    g, states = config.guide, {*_states(config, schedule)}
    steps = {*_steps(config, schedule)}
    if not schedule.guide_steps:
        return ProcessCost(0, 0, 0)
    if g.source == 'probe':
        return ProcessCost(len(steps | states), len(steps), 0)
    if g.source == 'value':
        return ProcessCost(0, len(steps), len(steps | states))
    return ProcessCost(0, 0, 2 * g.spsa_directions * len(steps) + len(states))


def guide_maker(
    pipeline: Pipeline, config, schedule: Schedule, mesh: Mesh, reward: CompositeReward | None
) -> MakeGuide:
    """The argument of `make_rollout` for a configuration with a process reward.

    Args:
      reward: of the images, for 'value' and 'spsa'; the inputs of the rollout are then those of
        `ProcessReward.inputs`.
    """
    m, g, group = config.model, config.guide, config.rollout.group
    size, source = (m.height, m.width), config.guide.source
    pixels = m.height * m.width

    def shift(gradient, std, s, s_next):
        if g.normalise or g.clip:
            gradient = clip_norm(gradient, g.clip or 1.0, normalise=g.normalise)
        if g.share < 1:
            first = np.arange(len(std)) % group < math.ceil(g.share * group)
            gradient = jnp.where(over(first, gradient), gradient, 0)
        if g.rate:
            return reward_shift(gradient, jnp.sqrt(s - s_next), 1 / g.rate)
        return reward_shift(gradient, std, 1 / g.scale)

    def make(params, conditioning: Conditioning, keys, velocity, inputs) -> Guide:
        split = lambda x: split_rows(x, mesh)
        of_samples = lambda tree: jax.tree.map(split, repeat_rows(tree, group))
        common = {
            'shift': shift,
            'steps': _steps(config, schedule),
            'states': _states(config, schedule),
        }
        if source == 'probe':
            hidden = hidden_fn(
                pipeline, params['transformer'], of_samples(conditioning), m.guidance, *size
            )

            def process(x, s):
                time = jnp.stack([jnp.ones_like(s), s, s**2], -1)
                return hidden(x, s) @ inputs['hidden'] + time @ inputs['time']

            def with_gradient(x, s, k, v):
                total = lambda x: (lambda found: (found.sum(), found))(process(x, s))
                (_, score), gradient = jax.value_and_grad(total, has_aux=True)(x)
                return score, gradient

            return Guide(with_gradient, score=lambda x, x0hat, s: process(x, s), **common)

        features = of_samples({str(i): text for i, text in enumerate(inputs['text'])})

        def scored(rows):
            """[b] of clean latents [b, ...] with features: NaN where there is none."""
            z, *text = rows
            unit, finite = pipeline.decode_float(params, z, *size)
            value = scores(reward, inputs['weights'], unit, text)
            return jnp.where(finite & jnp.isfinite(value), value, jnp.nan)

        def of_all(fn, z, most):
            rows = jax.tree.map(lambda a: a[None], (z, *features.values()))
            return jax.tree.map(lambda a: a[0], in_parts(fn, rows, mesh, most // pixels))

        def score(x, x0hat, s):
            # a prediction is exactly clean, the sample itself at the end of the grid
            end = jnp.where(s > schedule.sigmas[-1], pipeline.end_scale, 1.0)
            return of_all(scored, over(end, x0hat) * x0hat, 4 * PIXELS_WITH_GRADIENT)

        def slopes(rows):
            known = lambda found: jnp.where(jnp.isfinite(found), found, 0).sum()
            total = lambda z: (lambda found: (known(found), found))(scored((z, *rows[1:])))
            (_, value), slope = jax.value_and_grad(total, has_aux=True)(rows[0])
            return value, slope

        def through_network(x, s, k):
            def followed(x):
                found = velocity(x, s)
                return (found[1] if isinstance(found, tuple) else found), found

            v, pull_back, found = jax.vjp(followed, x, has_aux=True)
            x0hat = pipeline.end_scale * (x - over(s, x) * v)
            value, slope = of_all(slopes, x0hat, PIXELS_WITH_GRADIENT)
            slope = pipeline.end_scale * slope
            (through,) = pull_back((-over(s, x) * slope).astype(v.dtype))
            return found, value, slope + through

        if source == 'value':
            return Guide(through_network, score=score, evaluates=True, **common)

        def by_differences(x, s, k, v):
            x0hat = x - over(s, x) * v
            # indices that no transition's noise has
            first = 2 * len(schedule.sigmas) + k * g.spsa_directions
            directions = jnp.stack(
                [split(normal_rows(keys, first + i, x.shape[1:])) for i in range(g.spsa_directions)]
            )
            reward_of = lambda z: of_all(scored, pipeline.end_scale * z, 4 * PIXELS_WITH_GRADIENT)
            return jnp.zeros_like(s), spsa(reward_of, x0hat, directions, g.spsa_step)

        return Guide(by_differences, score=score, scores=False, **common)

    return make


def _steps(config, schedule: Schedule) -> tuple[int, ...]:
    """That drift: a window with a plan of its own has silent ones."""
    return _of(schedule, schedule.masks.stochastic) if drifts(config) else ()


def _states(config, schedule: Schedule) -> tuple[int, ...]:
    """That the credit of trained transitions reads."""
    return process_states(_of(schedule, schedule.masks.trained), config.credit.process)


def _of(schedule: Schedule, mask: np.ndarray) -> tuple[int, ...]:
    return tuple(k for k in schedule.guide_steps if mask[k])
