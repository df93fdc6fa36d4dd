"""The phases of an iteration on one accelerator, one by one: velocity, decoding, rollouts, update.

Operations are those that `densegrpo_jax.plan` divides by (`planning.work`): without what
rematerialisation repeats.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.bases import random_values
from benchmarks.names import DECODING, DENSE, SPARSE, UPDATE, VELOCITY
from benchmarks.timing import Program, compiled, timed
from densegrpo_jax.core.advantages import group_ids_of
from densegrpo_jax.pipelines.base import repeat_rows
from densegrpo_jax.planning.work import Work
from densegrpo_jax.runtime.streams import STREAM_ROLLOUT, key_data, stream_key
from densegrpo_jax.sampling.sampler import make_rollout
from densegrpo_jax.sampling.schedule import Schedule, make_schedule
from densegrpo_jax.sampling.session import Session
from densegrpo_jax.sampling.state import init_state, optimiser
from densegrpo_jax.training.learner import make_credit, make_update

MOST = 20.0  # seconds of repeating a program


class Phase(NamedTuple):
    """One program, timed alone. count: network evaluations, images or transitions of one run.

    seconds: the median of `runs`. flops: of one run. bytes: arguments, results and temporaries.
    ratio: of an update, the largest deviation of its first ratio from 1.
    """

    name: str
    count: int
    compile_s: float
    cached: bool
    seconds: float
    spread: float
    runs: int
    flops: float
    bytes: int
    ratio: float | None = None


class Bench:
    """The phases of `session.config`: one batch of prompts and one update.

    Args:
      repeat: runs of each phase, fewer of one that takes long.
      merged: velocities and rollouts without adapters, as if they were merged into the base.
    """

    def __init__(self, session: Session, repeat: int, *, merged: bool = False):
        self.session, self._repeat = session, repeat
        config, pipeline, base = session.config, session.pipeline, session.params['transformer']
        self._tx = optimiser(config, pipeline.transformer)
        self._text = session.conditioning([''])
        self._state = jax.jit(lambda base: init_state(pipeline, self._tx, jax.random.key(0), base))(
            base
        )
        self._policy = None if merged else self._state.policy
        self._batch = config.rollout.prompts_per_batch * config.rollout.group
        self.work = Work(config, pipeline, session.params, self._policy)
        self._rollouts: dict[str, tuple[Program, tuple, tuple, Schedule]] = {}

    def measure(self, name: str) -> Phase:
        """Compiles and times a phase of `names.PHASES`."""
        if name == UPDATE:
            return self.update(self.session)
        if name in (SPARSE, DENSE):
            program, inputs, results, schedule = self._sampled(name)
            work = self.work.rollout(schedule)
            return self._timed(name, int(results[0].nfe), program, inputs, work)
        inputs = (self.session.params, self._policy, self._latents)
        if name == VELOCITY:
            flops = self.work.velocity(self._batch)
            return self._timed(
                name, 1, compiled(self._velocity, *inputs), inputs, flops, warm=False
            )
        inputs, flops = (inputs[0], inputs[2]), self.work.decoding(self._batch)
        program = compiled(self._decode, *inputs)
        return self._timed(DECODING, self._batch, program, inputs, flops, warm=False)

    def update(self, session: Session) -> Phase:
        """Compiles and times the update of a session that differs from this one only in how it
        trains, on the transitions of this one: the program that training runs.
        """
        config, pipeline, schedule = session.config, session.pipeline, self._schedule(DENSE)
        made = make_update(pipeline, config, self._tx, session.mesh, donate=False)
        inputs = self._state, session.params, self._text, session.negative, self.record
        program = compiled(made, *inputs)
        metrics = jax.device_get(program.call(*inputs)[1])
        flops = Work(config, pipeline, session.params, self._policy).update(schedule)
        phase = self._timed(UPDATE, self.record.x.shape[0], program, inputs, flops)
        return phase._replace(ratio=float(metrics['ratio_deviation_first']))

    @functools.cached_property
    def record(self):
        """The trained transitions of one batch of prompts, with random scores."""
        _, _, (rollout, images, _), schedule = self._sampled(DENSE)
        values = jnp.asarray(np.random.default_rng(0).random(images.shape[:2]), jnp.float32)
        ids, valid = group_ids_of([values.shape[1]]), jnp.ones_like(values, bool)
        return make_credit(self._config(DENSE), schedule)([rollout], values, valid, ids)[0]

    @functools.cached_property
    def _latents(self) -> jax.Array:
        m = self.session.config.model
        shape = (self._batch, *self.session.pipeline.latent_shape(m.height, m.width))
        return random_values(jax.ShapeDtypeStruct(shape, jnp.float32))

    def _velocity(self, params, adapters, x):
        session, m = self.session, self.session.config.model
        text, negative = repeat_rows(self._text, self._batch), session.negative
        network = session.pipeline.velocity_fn(
            params['transformer'], adapters, text, m.guidance, m.height, m.width, negative=negative
        )
        return network(x, jnp.full(self._batch, 0.7))

    def _decode(self, params, x):
        m = self.session.config.model
        return self.session.pipeline.decode(params, x, m.height, m.width)

    def _config(self, name: str) -> Any:
        config = self.session.config.copy_and_resolve_references()
        config.unlock()
        config.credit.rule = 'dense' if name == DENSE else 'sparse'
        return config

    def _schedule(self, name: str) -> Schedule:
        return make_schedule(self.session.pipeline, self._config(name))

    def _sampled(self, name: str) -> tuple[Program, tuple, tuple, Schedule]:
        """A rollout, compiled and run once: program, arguments, results, schedule."""
        if name not in self._rollouts:
            session, schedule = self.session, self._schedule(name)
            key = key_data(stream_key(0, STREAM_ROLLOUT, 0))
            inputs = (session.params, self._policy, self._text, session.negative, key, np.arange(1))
            inputs += (schedule.noise_levels,)
            made = make_rollout(session.pipeline, self._config(name), schedule, session.mesh)
            program = compiled(made, *inputs)
            self._rollouts[name] = program, inputs, program.call(*inputs), schedule
        return self._rollouts[name]

    def _timed(
        self,
        name: str,
        count: int,
        program: Program,
        inputs: tuple,
        flops: float,
        *,
        warm: bool = True,
    ) -> Phase:
        call: Callable = program.call
        t = timed(lambda: call(*inputs), self._repeat, most=MOST, warm=warm)
        return Phase(
            name,
            count,
            program.seconds,
            program.cached,
            t.seconds,
            t.spread,
            t.runs,
            flops,
            program.bytes,
        )
