"""The phases of an iteration on one accelerator, one by one: velocity, decoding, rollouts, update.

Operations are those of the model (`planning.flops`): the forward pass once per velocity; for the
update the forward pass and the backward pass to the activations (the base is frozen), without what
rematerialisation repeats.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.bases import random_weights
from densegrpo_jax.core.advantages import group_ids_of
from densegrpo_jax.pipelines.base import repeat_rows
from densegrpo_jax.planning.flops import count_flops
from densegrpo_jax.runtime.streams import STREAM_ROLLOUT, key_data, stream_key
from densegrpo_jax.sampling.sampler import make_rollout, make_schedule
from densegrpo_jax.sampling.session import Session
from densegrpo_jax.sampling.state import init_state, optimiser
from densegrpo_jax.training.learner import make_credit, make_update

VELOCITY, DECODING, SPARSE, DENSE, UPDATE = PHASES = (
    'one velocity',
    'decode',
    'rollout',
    'rollout with completions',
    'update',
)


class Phase(NamedTuple):
    """One program, timed alone. count: network evaluations, images or transitions of one run.

    seconds: the median of the runs. flops: of one run. bytes: arguments, results and temporaries.
    ratio: of an update, the largest deviation of its first ratio from 1.
    """

    name: str
    count: int
    compile_s: float
    seconds: float
    spread: float
    flops: float
    bytes: int
    ratio: float | None = None


def compiled(function: Callable, *arguments) -> tuple[Callable, float]:
    """The compiled program of `function(*arguments)`, and the seconds that it took."""
    began = time.perf_counter()
    jitted = function if hasattr(function, 'lower') else jax.jit(function)
    return jitted.lower(*arguments).compile(), time.perf_counter() - began


def timed(function: Callable[[], object], repeat: int) -> tuple[float, float]:
    """(median, spread) of the wall seconds of `repeat` calls, after one that warms up."""
    jax.block_until_ready(function())
    walls = []
    for _ in range(repeat):
        start = time.perf_counter()
        jax.block_until_ready(function())
        walls.append(time.perf_counter() - start)
    return statistics.median(walls), max(walls) - min(walls)


def needs(program) -> int:
    """Bytes of arguments, results and temporaries of a compiled program."""
    m = program.memory_analysis()
    return (
        m.argument_size_in_bytes
        + m.output_size_in_bytes
        + m.temp_size_in_bytes
        - m.alias_size_in_bytes
    )


def phases(
    session: Session, repeat: int, wanted: Collection[str] = PHASES, *, merged: bool = False
) -> Iterator[Phase]:
    """Compiles and times the phases of `session.config`, one batch of prompts and one update.

    Args:
      wanted: of PHASES. merged: velocities and rollouts without adapters, as if they were merged
        into the base.
    """
    config, mesh, pipeline, params = session.config, session.mesh, session.pipeline, session.params
    m, batch = config.model, config.rollout.prompts_per_batch * config.rollout.group
    tx, conditioning = optimiser(config), session.conditioning([''])
    state = jax.jit(lambda base: init_state(pipeline, tx, jax.random.key(0), base))(
        params['transformer']
    )
    policy = None if merged else state.policy
    repeated = repeat_rows(conditioning, batch)
    latent = (batch, *pipeline.latent_shape(m.height, m.width))
    x = random_weights(jax.ShapeDtypeStruct(latent, jnp.float32), jnp.float32)

    def velocity(params, adapters, x):
        network = pipeline.velocity_fn(
            params['transformer'],
            adapters,
            repeated,
            m.guidance,
            m.height,
            m.width,
            negative=session.negative,
        )
        return network(x, jnp.full(batch, 0.7))

    decode = lambda params, x: pipeline.decode(params, x, m.height, m.width)
    forward, decoding = count_flops(velocity, params, None, x), count_flops(decode, params, x)

    def measured(name: str, count: int, function: Callable, flops: float, arguments, ratio=None):
        program, compile_s = function
        seconds, spread = timed(lambda: program(*arguments), repeat)
        return Phase(name, count, compile_s, seconds, spread, flops, needs(program), ratio)

    if VELOCITY in wanted:
        inputs = params, policy, x
        yield measured(VELOCITY, 1, compiled(velocity, *inputs), forward, inputs)
    if DECODING in wanted:
        program = compiled(decode, params, x)
        yield measured(DECODING, batch, program, decoding, (params, x))
    key = key_data(stream_key(0, STREAM_ROLLOUT, 0))
    for rule, name in (('sparse', SPARSE), ('dense', DENSE)):
        if name not in wanted and not (name == DENSE and UPDATE in wanted):
            continue
        config = config.copy_and_resolve_references()
        config.unlock()
        config.credit.rule = rule
        schedule = make_schedule(pipeline, config)
        inputs = (params, policy, conditioning, session.negative, key, np.arange(1))
        inputs += (schedule.noise_levels,)
        program = compiled(make_rollout(pipeline, config, schedule, mesh), *inputs)
        rollout, images, _ = program[0](*inputs)
        if name in wanted:
            work = rollout.nfe * forward + len(images) * decoding
            yield measured(name, int(rollout.nfe), program, work, inputs)
    if UPDATE in wanted:
        values = jnp.asarray(np.random.default_rng(0).random(images.shape[:2]), jnp.float32)
        ids = group_ids_of([values.shape[1]])
        valid = jnp.ones_like(values, bool)
        record, _ = make_credit(config, schedule)([rollout], values, valid, ids)
        del images
        undonated = jax.jit(make_update(pipeline, config, tx, mesh).__wrapped__)
        inputs = state, params, conditioning, session.negative, record
        program, compile_s = compiled(undonated, *inputs)
        metrics = jax.device_get(program(*inputs)[1])
        rows, flops = record.x.shape[0], 2 * forward * record.x.shape[0] / batch
        row = measured(UPDATE, rows, (program, compile_s), flops, inputs)
        yield row._replace(ratio=float(metrics['ratio_deviation_first']))
