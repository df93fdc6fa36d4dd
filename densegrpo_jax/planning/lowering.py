"""Lowers the programs of an iteration from shapes alone, for devices that may be absent: loads
nothing and runs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from densegrpo_jax.config.guard_keys import BRAKE
from densegrpo_jax.config.guide_keys import IMAGES
from densegrpo_jax.core.advantages import group_ids_of
from densegrpo_jax.core.rollout import Rollout
from densegrpo_jax.evaluation.evaluator import prompts_together
from densegrpo_jax.networks.quantize import stored_shapes
from densegrpo_jax.pipelines.base import Pipeline
from densegrpo_jax.pipelines.inside import hidden_fn
from densegrpo_jax.planning.work import Work
from densegrpo_jax.rewards.build import build_reward
from densegrpo_jax.rewards.composite import CompositeReward
from densegrpo_jax.rewards.differentiable import shapes
from densegrpo_jax.runtime.mesh import batch_sharding, batch_shards, rows_over
from densegrpo_jax.runtime.sharding import shardings, with_shardings
from densegrpo_jax.sampling.conditioning import evaluated_prompts
from densegrpo_jax.sampling.cost import largest, probe_evaluations, probed
from densegrpo_jax.sampling.guide import guide_maker
from densegrpo_jax.sampling.probe import make_probe
from densegrpo_jax.sampling.process_reward import check_computes
from densegrpo_jax.sampling.sampler import make_rollout, make_sampler
from densegrpo_jax.sampling.schedule import Schedule
from densegrpo_jax.sampling.state import follow_rules, optimiser, state_shapes
from densegrpo_jax.training.geometry import samples_at_once
from densegrpo_jax.training.learner import make_credit, make_update

ASSUMED_PROMPTS = 1024  # of an evaluation with all of its file, which a plan does not read


class Phase(NamedTuple):
    """One program of an iteration.

    lower: makes it ready to compile. runs: how often an iteration runs it (evaluation: on average).
    flops: of one run on all devices, counted from the networks, without the repetitions of
    rematerialisation. repeated: operations that rematerialisation adds.
    """

    lower: Callable[[], Any]
    runs: float
    flops: float
    repeated: float = 0.0

    @property
    def lowered(self) -> Any:
        """The program, ready to compile; made anew at every call, as few need it."""
        return self.lower()


def phases(
    config,
    pipeline: Pipeline,
    schedule: Schedule,
    mesh: Mesh,
    reward: CompositeReward | None = None,
) -> dict[str, Phase]:
    """'probe' (of the attention, one batch of prompts) if there is one, 'rollout' (one batch of
    prompts with completions and decoding), 'update' and 'evaluation' (one batch) of a
    configuration. Of plans, groups and batches that differ, as the guard's from the evaluation's,
    the largest is lowered; operations are the mean, and the evaluation's. reward: of
    `reward_inside`; None: it is made here.
    """
    every, schedule = schedule, largest(config, schedule)
    r, m = config.rollout, config.model
    whole = lambda *shape, d=jnp.float32: jax.ShapeDtypeStruct(shape, d)
    row = lambda *shape, d=jnp.float32: jax.ShapeDtypeStruct(
        shape, d, sharding=batch_sharding(mesh)
    )
    base, blocks = pipeline.abstract_params(['transformer', 'vae']), pipeline.transformer.BLOCKS
    stored = stored_shapes(base, m.dtype, m.quantize, blocks)
    split = lambda tree: with_shardings(tree, shardings(tree, mesh, pipeline.sharding_rules))
    params = split(stored)
    negative = pipeline.conditioning_shapes(1) if pipeline.takes_negative(m.guidance) else None
    tx = optimiser(config, pipeline.transformer)
    state = split(state_shapes(pipeline, tx, follow_rules(config)))
    work = Work(config, pipeline, params, state.policy)
    reward = reward_inside(config, schedule) if reward is None else reward

    def rollout_of(config) -> tuple[Callable, tuple]:
        """The rollout, and the shapes of its last argument: () without a process reward."""
        process = _process(config, pipeline, schedule, mesh, reward)
        return make_rollout(pipeline, config, schedule, mesh, *process[1:]), process[:1]

    rollout, inputs = rollout_of(config)
    arguments = (
        params,
        state.policy,
        pipeline.conditioning_shapes(r.prompts_per_batch),
        negative,
        whole(2, d=jnp.uint32),
    )
    arguments += (whole(r.prompts_per_batch, d=jnp.int32), whole(r.steps))
    arguments += inputs
    lowered = rollout
    if (most := samples_at_once(config)) > r.prompts_per_batch * r.group:
        # one prompt at a time, half of them with more samples than the mean
        larger = config.copy_and_resolve_references()
        larger.rollout.group = most
        lowered, _ = rollout_of(larger)
    update = make_update(pipeline, config, tx, mesh)

    def lower_update() -> Any:
        # What it learns from is known from a traced rollout: only where it is asked for.
        sampled, *_ = jax.eval_shape(rollout, *arguments)
        record = jax.tree.map(
            lambda leaf: row(*leaf.shape, d=leaf.dtype), _record(config, schedule, sampled)
        )
        learned = state, params, pipeline.conditioning_shapes(r.prompts), negative, record
        if config.guard.on and config.guard.action == BRAKE:
            learned = *learned, jax.ShapeDtypeStruct((), np.float32)
        return update.lower(*learned)

    repeated = work.forward(schedule) if m.remat == 'full' else 0.0

    sampler = make_sampler(pipeline, config, config.eval.steps, mesh)
    count, together, most = evaluation_rows(config, batch_shards(mesh))
    drawn = (
        params,
        state.ema,
        pipeline.conditioning_shapes(most),
        negative,
        whole(most, 2, d=jnp.uint32),
    )
    computed = rows_over(mesh, together)
    runs, found = r.prompts / r.prompts_per_batch, {}
    if evaluations := probe_evaluations(config, schedule):  # a row for each prompt
        base = probed(config, schedule).base
        probe = make_probe(pipeline, config, schedule.sigmas, mesh, base=base)
        asked = evaluations * work.velocity(rows_over(mesh, r.prompts_per_batch))
        found['probe'] = Phase(partial(probe.lower, *arguments[:6]), runs, asked)
    return {
        **found,
        'rollout': Phase(partial(lowered.lower, *arguments), runs, work.rollout(every)),
        'update': Phase(lower_update, 1, work.update(schedule), repeated),
        'evaluation': Phase(
            partial(sampler.lower, *drawn),
            count / together / config.eval.every,
            config.eval.steps * work.velocity(computed) + work.decoding(computed),
        ),
    }


def evaluation_rows(config, shards: int) -> tuple[int, int, int]:
    """(prompts of an evaluation, those that it draws together, rows that it or the guard draws
    together, whichever are more).
    """
    count, g = evaluated_prompts(config) or ASSUMED_PROMPTS, config.guard
    together = prompts_together(config, count, 1, shards)
    if not g.on:
        return count, together, together
    guarded = prompts_together(config, g.prompts or count, g.images, shards) * g.images
    return count, together, max(together, guarded)


def reward_inside(config, schedule: Schedule) -> CompositeReward | None:
    """The reward that scores predicted images inside the rollouts; None if none does. Reads the
    headers of its files. Raises ValueError if it computes elsewhere.
    """
    if not schedule.guide_steps or config.guide.source not in IMAGES:
        return None
    reward = build_reward(config.reward)
    check_computes(config.guide.source, reward)
    return reward


def _process(
    config, pipeline: Pipeline, schedule: Schedule, mesh: Mesh, reward: CompositeReward | None
) -> tuple:
    """(shapes of the process reward's inputs of a rollout, how it makes its guide); () without
    one.
    """
    if not schedule.guide_steps:
        return ()
    m = config.model
    whole = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    if reward is None:
        text = pipeline.conditioning_shapes(1)
        base = pipeline.abstract_params(['transformer'])['transformer']
        hidden = jax.eval_shape(
            lambda base, text, x, s: hidden_fn(pipeline, base, text, m.guidance, m.height, m.width)(
                x, s
            ),
            *(base, text, whole(1, *pipeline.latent_shape(m.height, m.width)), whole(1)),
        )
        inputs = {'hidden': whole(hidden.shape[-1]), 'time': whole(3)}
    else:
        weights, text = shapes(reward, config.rollout.prompts_per_batch)
        inputs = {'weights': weights, 'text': text}
    return inputs, guide_maker(pipeline, config, schedule, mesh, reward)


def _record(config, schedule: Schedule, sampled: Rollout) -> Any:
    """Shapes of the record that an update trains on; `sampled`: shapes of one batch of prompts."""
    r = config.rollout
    added_up = config.copy_and_resolve_references()
    added_up.credit.combine = 'sum'  # needs no single scores; the record is the same
    points = len(schedule.plan.completions), r.prompts * r.group
    scored = (jax.ShapeDtypeStruct(points, dtype) for dtype in (jnp.float32, jnp.bool))
    rollouts = [sampled] * (r.prompts // r.prompts_per_batch)
    credit = make_credit(added_up, schedule)
    ids = group_ids_of([r.group] * r.prompts)
    moving = schedule.moving
    chosen = None
    if moving is not None and not moving.own_plans:
        chosen = jax.ShapeDtypeStruct((moving.count,), jnp.int32)
    return jax.eval_shape(credit, rollouts, *scored, ids, None, chosen)[0]
