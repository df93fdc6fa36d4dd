"""Programs compiled and timed alone. Needs JAX only."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

_HIT = '/jax/compilation_cache/cache_hits'


class Timing(NamedTuple):
    """Wall seconds of a call: the median, the least, and the range; `processor`: seconds of all
    threads of this process, on average; runs: calls that were timed.
    """

    seconds: float
    least: float
    spread: float
    processor: float
    runs: int


def timed(
    function: Callable[[], object], repeat: int, *, most: float = math.inf, warm: bool = False
) -> Timing:
    """Times `repeat` calls, or fewer once `most` seconds have passed, but at least one.

    warm: the function has run before; else a first call does not count.
    """
    if not warm:
        jax.block_until_ready(function())
    walls, processor = [], time.process_time()
    while not walls or (len(walls) < repeat and sum(walls) < most):
        start = time.perf_counter()
        jax.block_until_ready(function())
        walls.append(time.perf_counter() - start)
    processor = (time.process_time() - processor) / len(walls)
    spread = max(walls) - min(walls)
    return Timing(statistics.median(walls), min(walls), spread, processor, len(walls))


class Program(NamedTuple):
    """A compiled program. seconds: that tracing and compiling took; cached: read from the cache of
    compiled programs, so that the seconds tell nothing.
    """

    call: Any
    seconds: float
    cached: bool

    @property
    def bytes(self) -> int:
        """Of arguments, results and temporaries."""
        m = self.call.memory_analysis()
        return (
            m.argument_size_in_bytes
            + m.output_size_in_bytes
            + m.temp_size_in_bytes
            - m.alias_size_in_bytes
        )


def compiled(function: Callable, *arguments) -> Program:
    """The compiled program of `function(*arguments)`; a jitted function keeps its options."""
    began = time.perf_counter()
    jitted = function if hasattr(function, 'lower') else jax.jit(function)
    lowered, hits = jitted.lower(*arguments), []  # what lowering computes is no hit of the program
    listen = lambda event, **_: hits.append(event) if event == _HIT else None
    jax.monitoring.register_event_listener(listen)
    try:
        program = lowered.compile()
    finally:
        jax.monitoring.unregister_event_listener(listen)
    return Program(program, time.perf_counter() - began, bool(hits))
