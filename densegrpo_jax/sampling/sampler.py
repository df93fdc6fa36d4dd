"""The sampling half of an iteration: a jitted dense rollout with decoding, and a jitted plain-ODE
sampler for evaluation.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from densegrpo_jax.config.method import kernel_of, loss_of
from densegrpo_jax.core.guide import Guide
from densegrpo_jax.core.ode_rollout import ode_rollout
from densegrpo_jax.core.rollout import Rollout, run_plan
from densegrpo_jax.core.rollout_plan import RolloutPlan
from densegrpo_jax.core.sde_step import over
from densegrpo_jax.pipelines.base import Conditioning, Pipeline, repeat_rows
from densegrpo_jax.runtime.mesh import batch_sharding, batch_shards, replicated, rows_over
from densegrpo_jax.sampling.policy import policy_velocity
from densegrpo_jax.sampling.schedule import Schedule, beside, drawing_grid

# By default XLA may keep more precision than bfloat16 between fused operations, differently in each
# program. The update would then re-score the sampler's transitions with another rounding, and the
# ratio of the first update would differ from 1 by more than the clip range.
EXACT = {'xla_allow_excess_precision': False}


# A decoder's activations at full resolution are the largest arrays of a rollout: 1.3 GiB for a
# image of 512 x 512 on a TPU.
DECODED_PIXELS = 4 * 512 * 512


# (params, conditioning [p, ...], keys [B], velocity function of B samples, inputs of the process
# reward) -> Guide, inside a rollout
MakeGuide = Callable[..., Guide]


def sample_keys(key: jax.Array, prompts: jax.Array, group: int) -> jax.Array:
    """One key per sample, [P * G] prompt-major: folded with the prompt's index in the iteration and
    the sample's slot in its group.
    """
    per_prompt = jax.vmap(lambda p: jax.random.fold_in(key, p))(prompts)
    slots = jnp.arange(group)
    return jax.vmap(lambda k: jax.vmap(lambda g: jax.random.fold_in(k, g))(slots))(
        per_prompt
    ).reshape(-1)


def normal_rows(keys: jax.Array, index: int | jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """[B, *shape] standard normal, row b from fold_in(keys[b], index), independent of the batch and
    the devices.
    """
    return jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, index), shape))(keys)


def plan_noise(
    plan: RolloutPlan, keys: jax.Array, shape: tuple[int, ...], k: jax.Array
) -> jax.Array:
    """[B, *shape] standard normal noise of the transitions from grid index k (int32, traced).

    Every sample has its own, or where the plan has samples together, every node of theirs: that of
    the node's first sample. At a split a child's noise is (xi + b eta) / sqrt(1 + b^2) with xi of
    all children of its parent, eta its own and b = `plan.split_noise`.
    """
    if not plan.together:
        return normal_rows(keys, k + 1, shape)
    width = np.array(plan.together)
    before = np.array([plan.copies[0], *plan.together[:-1]])  # leaves of the parent

    def first(widths):
        of_step = jnp.asarray(widths)[k]
        return keys[jnp.arange(len(keys)) // of_step * of_step]

    own = normal_rows(first(width), k + 1, shape)
    # an index that no transition has
    common = normal_rows(first(before), plan.num_steps + 1 + k, shape)
    b = plan.split_noise
    return jnp.where(jnp.asarray(before > width)[k], (common + b * own) / np.hypot(1, b), own)


def split_rows(x: jax.Array, mesh: Mesh, axis: int = 0) -> jax.Array:
    """Splits an axis over the mesh's batch axes; if it does not divide, the compiler places the
    array, as a rule whole on every device: see `filled_rows`.
    """
    if x.shape[axis] % batch_shards(mesh):
        return x
    return jax.lax.with_sharding_constraint(x, batch_sharding(mesh, axis))


def filled_rows(tree: Any, mesh: Mesh, axis: int = 0, parts: int = 1) -> Any:
    """Arrays whose last row is repeated until each of equal `parts` of the axis divides over the
    mesh's batch axes. Else every device would compute all of a part; whoever calls it leaves the
    further rows out.
    """

    def filled(x):
        count = x.shape[axis]
        more = parts * rows_over(mesh, math.ceil(count / parts)) - count
        if not more:
            return x
        last = jax.lax.slice_in_dim(x, -1, None, axis=axis)
        return jnp.concatenate([x, jnp.repeat(last, more, axis)], axis)

    return jax.tree.map(filled, tree)


def decode_few(
    pipeline: Pipeline, params: dict, latents: jax.Array, height: int, width: int, mesh: Mesh
) -> tuple[jax.Array, jax.Array]:
    """Images of latents [S, B, ...], B split over the mesh: uint8 [S, B, height, width, 3] and
    finite [S, B].

    One decoder body serves all states; it decodes at most DECODED_PIXELS per device at a time.
    """
    decode = lambda z: pipeline.decode(params, z, height, width)
    return in_parts(decode, latents, mesh, DECODED_PIXELS // (height * width))


def in_parts(fn: Callable[[Any], Any], rows: Any, mesh: Mesh, most: int) -> Any:
    """fn of a few rows at a time, at most `most` per device.

    Args:
      fn: arrays [b, ...] -> arrays [b, ...], a tree of each; row by row.
      rows: arrays [S, B, ...], B split over the mesh.

    Returns:
      Arrays [S, B, ...].
    """
    count = jax.tree.leaves(rows)[0].shape[1]
    rows = filled_rows(rows, mesh, 1)
    states, batch = jax.tree.leaves(rows)[0].shape[:2]
    shards = batch_shards(mesh)
    here = batch // shards
    few = max(d for d in range(1, min(here, max(1, most)) + 1) if here % d == 0)

    # Part n holds the n-th few rows of every device: rows stay where they are.
    def parted(x):
        x = jnp.swapaxes(x.reshape(states, shards, here // few, few, *x.shape[2:]), 1, 2)
        return x.reshape(states * (here // few), shards * few, *x.shape[4:])

    def back(x):
        x = jnp.swapaxes(x.reshape(states, here // few, shards, few, *x.shape[2:]), 1, 2)
        return split_rows(x.reshape(states, batch, *x.shape[4:]), mesh, 1)[:, :count]

    split = lambda part: jax.tree.map(lambda x: split_rows(x, mesh), part)
    found = jax.lax.map(lambda part: fn(split(part)), jax.tree.map(parted, rows))
    return jax.tree.map(back, found)


def make_rollout(
    pipeline: Pipeline, config, schedule: Schedule, mesh: Mesh, make_guide: MakeGuide | None = None
):
    """The jitted rollout of one batch of prompts.

    Args:
      make_guide: of a process reward (`guide.guide_maker`), which moves and scores the
        samples as `guide` and `credit.process` say; None: whatever they say, none does.

    Returns:
      `(params, policy or None, conditioning [p, ...], negative conditioning [1, ...] or None,
      key_data of a key, prompt_places [p], noise_levels [T], inputs of the process reward if there
      is one) -> (Rollout of p * G samples, images uint8 [S, p * G, H, W, 3], finite bool
      [S, p * G])`; S distinct completions, the sample itself last, which alone the Rollout keeps as
      a latent. Batches are split over the mesh. The noise levels, a host array, are an argument
      instead of `schedule`'s, so that one program serves any table.
    """
    m, group, kernel = config.model, config.rollout.group, kernel_of(config)
    shape = pipeline.latent_shape(m.height, m.width)
    ends = _end_scales(pipeline, schedule.plan)

    def rollout(
        params,
        policy,
        conditioning: Conditioning,
        negative,
        key,
        places,
        noise_levels,
        process=None,
    ) -> tuple[Rollout, jax.Array, jax.Array]:
        keys = sample_keys(jax.random.wrap_key_data(key), places, group)
        split = lambda x, axis=0: split_rows(x, mesh, axis)

        def velocity_of(copies: int):
            repeated = jax.tree.map(split, repeat_rows(conditioning, group // copies))
            return policy_velocity(
                pipeline, config, params, policy, repeated, negative, sampling=True
            )

        # where samples are copies, one of them is evaluated
        velocities = {len(keys) // c: velocity_of(c) for c in {1, *schedule.plan.copies}}
        # Index 0 is the initial noise, k + 1 the noise of transition k. If the initial noise is
        # shared, it is that of the first of the samples that share it.
        same = beside(config)
        guide = None
        if make_guide is not None:
            guide = make_guide(params, conditioning, keys, velocities[len(keys)], process)
        first = jnp.repeat(keys.reshape(-1, same)[:, 0], same)
        result = run_plan(
            lambda x, s: velocities[len(x)](x if len(x) == len(keys) else split(x), s),
            pipeline.initial_scale(schedule.sigmas) * split(normal_rows(first, 0, shape)),
            schedule.sigmas,
            noise_levels,
            schedule.plan,
            lambda k: split(plan_noise(schedule.plan, keys, shape, k)),
            kernel=kernel,
            log_prob=config.rollout.log_prob,
            keep_means=loss_of(config).mean_old,
            guide=guide,
        )
        latents = result.completions
        if ends is not None:
            latents = latents * over(ends, latents)
        # Only the sample is read once they are images; kept to the update, they are gigabytes.
        result = dataclasses.replace(result, completions=result.completions[-1:])
        return result, *decode_few(pipeline, params, latents, m.height, m.width, mesh)

    return jax.jit(rollout, compiler_options=EXACT)


def _end_scales(pipeline: Pipeline, plan: RolloutPlan) -> np.ndarray | None:
    """float32 [S], what distinct completions are multiplied by for `Pipeline.decode`: predictions
    are exactly clean, the others at the end of the grid. None: by nothing.
    """
    clean = np.isin(plan.completions, [*plan.predictions, *filter(None, [plan.anchor])])
    if pipeline.end_scale == 1 or not clean.any():
        return None
    return np.where(clean, pipeline.end_scale, 1).astype(np.float32)


def make_sampler(pipeline: Pipeline, config, num_steps: int, mesh: Mesh):
    """The jitted plain-ODE sampler: `(params, policy or None, conditioning [B, ...], negative
    conditioning [1, ...] or None, key_data of keys [B]) -> (uint8 [B, H, W, 3], finite [B])`, whole
    on every device. The work is split over the mesh for any B.
    """
    m = config.model
    shape = pipeline.latent_shape(m.height, m.width)
    sigmas = drawing_grid(pipeline, config, num_steps)

    def sample(params, policy, conditioning: Conditioning, negative, keys):
        split, count = lambda x: split_rows(x, mesh), len(keys)
        conditioning, keys = filled_rows((conditioning, keys), mesh)
        velocity = pipeline.velocity_fn(
            params['transformer'],
            policy,
            jax.tree.map(split, conditioning),
            m.guidance,
            m.height,
            m.width,
            negative=negative,
        )
        noise = split(normal_rows(jax.random.wrap_key_data(keys), 0, shape))
        x0 = ode_rollout(velocity, pipeline.initial_scale(sigmas) * noise, sigmas)
        images, finite = decode_few(pipeline, params, x0[None], m.height, m.width, mesh)
        return images[0, :count], finite[0, :count]

    return jax.jit(sample, out_shardings=replicated(mesh))
