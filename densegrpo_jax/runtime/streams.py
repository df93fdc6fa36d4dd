"""Streams of randomness: key = fold_in(fold_in(seed, stream), iteration), then folded with prompt,
slot in the group and transition.
"""

import jax
import numpy as np

STREAM_INIT, STREAM_ROLLOUT, STREAM_EVAL, STREAM_CALIBRATION = 0, 1, 2, 3
STREAM_SEARCH = 5
STREAM_UPDATE = 6
STREAM_DIRECTION = 7
STREAM_STEPS = 8
STREAM_PROCESS = 9
STREAM_PREFLIGHT = 10
STREAM_PROBE = 4  # measurements without training: experiments/reproduction/probe.py


def stream_key(seed: int, stream: int, step: int | jax.Array) -> jax.Array:
    """The typed key [] of a stream at an iteration: no two of (seed, stream, step) share their
    randomness.
    """
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stream), step)


def key_data(keys: jax.Array) -> np.ndarray:
    """uint32 [..., 2] of typed keys: a host array is the same for every process of a run, an array
    on a device is not.
    """
    return np.asarray(jax.random.key_data(keys))
