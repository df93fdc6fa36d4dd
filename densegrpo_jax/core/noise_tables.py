"""Noise tables: the noise levels of a grid's transitions."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from densegrpo_jax.core.diffusion_path import ddim_noise_levels
from densegrpo_jax.core.kernels import ETA, SIGMA
from densegrpo_jax.core.schedules import (
    constant_noise_levels,
    ddim_like_noise_levels,
    flow_grpo_noise_levels,
)


@dataclasses.dataclass(frozen=True)
class NoiseTable:
    """A rule for the noise levels of a grid.

    Attributes:
        fn: (sigmas [T+1], level) -> noise levels [T], on the host; the number `level` scales them.
        gives: the meaning of its values, as in `Kernel.level`; None: that of the kernel in use.
        in_levels: whether `level` is itself a noise level of the kernel, with the same bounds.
    """

    fn: Callable[[Any, float], np.ndarray]
    gives: str | None = None
    in_levels: bool = False


NOISE_TABLES = {
    'flow_grpo': NoiseTable(flow_grpo_noise_levels, SIGMA),
    'constant': NoiseTable(constant_noise_levels, in_levels=True),
    'ddim': NoiseTable(ddim_noise_levels, ETA, in_levels=True),
    'ddim_like': NoiseTable(ddim_like_noise_levels, ETA, in_levels=True),
}
