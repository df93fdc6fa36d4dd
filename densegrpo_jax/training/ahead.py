"""Compiles the programs of an iteration while the first evaluation runs.

A jitted function that is called with arguments of shapes for which it was compiled before compiles
nothing again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import logging

from densegrpo_jax.core.advantages import group_ids_of
from densegrpo_jax.pipelines.base import Conditioning
from densegrpo_jax.runtime.leaving import COMPILING


class Foreseen(NamedTuple):
    """What an iteration will call.

    Attributes:
      rollout: of one batch of prompts. given: its arguments.
      credit: from `make_credit`. scores: names of its scores. options: its named arguments.
      conditioning: of all prompts.
    """

    rollout: Callable
    given: Sequence[Any]
    credit: Callable
    scores: Sequence[str]
    options: Mapping[str, Any]
    conditioning: Conditioning


class Ahead:
    """Futures of compilations; None where nothing can be compiled ahead. Each is done when the
    program may be called, also if it could not be compiled: the call will say why.

    A context: at its end, what has not begun is not compiled. What has goes on, and
    `runtime.leaving` does not wait for it.
    """

    def __init__(self, config, foreseen: Foreseen | None, update: Callable, learned: Sequence[Any]):
        """Starts. learned: the arguments of the update without the iteration's own: state,
        parameters, negative conditioning, and what follows the record.
        """
        self._pool: ThreadPoolExecutor | None = None
        self.rollout: Future | None = None
        self.update: Future | None = None
        # On a GPU the compiler chooses kernels by their times, which an evaluation would disturb.
        if foreseen is None or jax.default_backend() == 'gpu':
            return
        # shapes, so that no array is kept for it
        foreseen = foreseen._replace(
            given=jax.tree.map(_shape, foreseen.given),
            conditioning=jax.tree.map(_shape, foreseen.conditioning),
        )
        learned = jax.tree.map(_shape, learned)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=COMPILING)
        self.rollout = self._pool.submit(_quietly, _rollout, foreseen)
        self.update = self._pool.submit(
            _quietly, _update, config, foreseen, self.rollout, update, *learned
        )

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *_) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)


def _shape(a: Any) -> jax.ShapeDtypeStruct:
    """What an argument is compiled for; only an array that must stay in its place has one."""
    committed = isinstance(a, jax.Array) and a.committed
    return jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding if committed else None)


def _quietly(make: Callable, *args):
    """The program, or None if anything went wrong."""
    try:
        return make(*args)
    except Exception as error:
        logging.info('not compiled ahead, %s: %s', make.__name__.strip('_'), error)
        return None


def _rollout(foreseen: Foreseen):
    """(shapes of its results, the program, which must not be forgotten before it is called)."""
    lowered = foreseen.rollout.lower(*foreseen.given)
    compiled = lowered.compile()
    return _shapes(lowered.out_info, compiled.output_shardings), compiled


def _update(config, foreseen, rollout, update, state, params, negative, *more):
    if rollout.result() is None:
        return None
    r, ((rollout_shapes, images, _), _) = config.rollout, rollout.result()
    points = images.shape[0], r.prompts * r.group
    score = jax.ShapeDtypeStruct(points, jnp.float32)
    credit = foreseen.credit.lower(
        [rollout_shapes] * (r.prompts // r.prompts_per_batch),
        score,
        jax.ShapeDtypeStruct(points, jnp.bool),
        group_ids_of([r.group] * r.prompts),
        {name: score for name in foreseen.scores},
        **foreseen.options,
    )
    compiled = credit.compile()
    record = _shapes(credit.out_info, compiled.output_shardings)[0]
    program = update.lower(state, params, foreseen.conditioning, negative, record, *more)
    return compiled, program.compile()


def _shapes(info: Any, shardings: Any) -> Any:
    of = lambda a, sharding: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding)
    return jax.tree.map(of, info, shardings)
