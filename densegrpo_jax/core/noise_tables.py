"""Noise tables: where the noise levels of a grid's transitions come from."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from densegrpo_jax.core.diffusion_path import ddim_noise_levels
from densegrpo_jax.core.kernels import ETA, SIGMA
from densegrpo_jax.core.schedules import constant_noise_levels, flow_grpo_noise_levels


@dataclasses.dataclass(frozen=True)
class NoiseTable:
    """A rule for the noise levels of a grid.

    Attributes:
        fn: (sigmas [T+1], level) -> noise levels [T], on the host; `level` is the one number that
            scales it.
        gives: what its values mean, as in `Kernel.level`; None: as the kernel takes them.
        in_levels: whether `level` is itself a noise level of the kernel, and bounded as those are.
    """

    fn: Callable[[Any, float], np.ndarray]
    gives: str | None = None
    in_levels: bool = False


NOISE_TABLES = {
    'flow_grpo': NoiseTable(flow_grpo_noise_levels, SIGMA),
    'constant': NoiseTable(constant_noise_levels, in_levels=True),
    'ddim': NoiseTable(ddim_noise_levels, ETA, in_levels=True),
}
