"""Noise grids of the Diffusers pipelines, and noise-level tables over them: host values, computed
once.
"""

import math
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, ArrayLike, Float

from densegrpo_jax.core.kernels import Kernel, as_kernel

# A grid of noise levels: T+1 host values.
Grid = Float[Array, 'states'] | Float[np.ndarray, 'states'] | Sequence[float]

_DEFAULTS = dict(
    num_train_timesteps=1000,
    shift=1.0,
    use_dynamic_shifting=False,
    base_shift=0.5,
    max_shift=1.15,
    base_image_seq_len=256,
    max_image_seq_len=4096,
    time_shift_type='exponential',
)
# Options of the scheduler that change the path and that this package does not implement: only their
# "off" value is accepted.
_UNSUPPORTED = (
    'invert_sigmas',
    'shift_terminal',
    'use_karras_sigmas',
    'use_exponential_sigmas',
    'use_beta_sigmas',
    'use_flow_sigmas',
    'stochastic_sampling',
)


def flux_shift_mu(
    num_tokens: int,
    base_seq_len: int = 256,
    max_seq_len: int = 4096,
    base_shift: float = 0.5,
    max_shift: float = 1.15,
) -> float:
    """Resolution-dependent shift of FLUX: linear in the number of image tokens (`calculate_shift`
    of FluxPipeline).

    Args:
        num_tokens: number of packed image tokens, e.g. 1024 at 512 x 512 px.

    Returns:
        mu, a float: 0.5 at 256 tokens, 0.63 at 1024, 1.15 at 4096.
    """
    if max_seq_len == base_seq_len:
        raise ValueError(
            f'scheduler config: base_image_seq_len and max_image_seq_len are both {max_seq_len}; '
            'expected two numbers, between which the shift grows'
        )
    slope = (max_shift - base_shift) / (max_seq_len - base_seq_len)
    return num_tokens * slope + (base_shift - slope * base_seq_len)


def sigmas_from_scheduler(
    config: Mapping[str, Any],
    num_steps: int,
    num_tokens: int,
    *,
    own_range: bool = False,
    shift_mu: Callable[[int, int], float] | None = None,
) -> Float[np.ndarray, '{num_steps}+1']:
    """The grid of a Diffusers pipeline with a FlowMatchEulerDiscreteScheduler.

    It starts from linspace(1, 1/T, T), as FLUX.1's, or, with `own_range`, from T points between the
    scheduler's own largest and smallest noise level, as SD3's. All are then shifted: statically,
    shift s / (1 + (shift - 1) s), or, with `use_dynamic_shifting`, e^mu / (e^mu + 1/s - 1); and 0
    is appended.

    Args:
        config: dict, the contents of `scheduler/scheduler_config.json`.
        num_steps: T >= 1.
        num_tokens: number of packed image tokens; used by dynamic shifting only.
        own_range: the pipeline passes no noise levels to its scheduler.
        shift_mu: (num_tokens, T) -> mu; None: `flux_shift_mu` with the scheduler's settings.

    Returns:
        np.float32 [T+1], strictly decreasing from 1 (or below) to 0.

    Raises:
        ValueError: an unknown key, an option that is not implemented, or T < 1.
    """
    if num_steps < 1:
        raise ValueError(f'num_steps is {num_steps}; a grid needs at least 1 step')
    settings = _scheduler_settings(config)
    shift, steps = settings['shift'], settings['num_train_timesteps']
    dynamic = settings['use_dynamic_shifting']

    # The arithmetic below follows the scheduler's dtypes operation by operation, so that the grids
    # agree to the last bit.
    sigmas: np.ndarray
    if not own_range:
        sigmas = np.linspace(1.0, 1 / num_steps, num_steps).astype(np.float32)
    else:
        ends = np.array([steps, 1], np.float32) / np.float32(steps)
        if not dynamic:
            ends = shift * ends / (1 + (shift - 1) * ends)
        sigmas = np.linspace(float(ends[0]) * steps, float(ends[1]) * steps, num_steps) / steps
    if dynamic:
        mu = (
            shift_mu(num_tokens, num_steps)
            if shift_mu is not None
            else flux_shift_mu(
                num_tokens,
                settings['base_image_seq_len'],
                settings['max_image_seq_len'],
                settings['base_shift'],
                settings['max_shift'],
            )
        )
        scale = mu
        if settings['time_shift_type'] == 'exponential':
            scale = math.exp(mu) if mu < 700 else math.inf  # refused below
        sigmas = scale / (scale + (1 / sigmas - 1))
    else:
        sigmas = shift * sigmas / (1 + (shift - 1) * sigmas)
    sigmas = np.append(sigmas.astype(np.float32), np.float32(0))
    if not np.isfinite(sigmas).all() or (np.diff(sigmas) > 0).any():
        raise ValueError(
            'scheduler config: its settings give noise levels that do not fall from 1 to 0: '
            f'{settings}'
        )
    # some shifts round the first value to a neighbour of 1, but noise tables compare it with 1
    if abs(sigmas[0] - 1) < 1e-6:
        sigmas[0] = 1
    return sigmas


def _scheduler_settings(config):
    name = config.get('_class_name', 'FlowMatchEulerDiscreteScheduler')
    if name != 'FlowMatchEulerDiscreteScheduler':
        raise ValueError(
            f'scheduler config: _class_name is {name!r}; only '
            "'FlowMatchEulerDiscreteScheduler' is supported"
        )
    for key, value in config.items():
        if key in _UNSUPPORTED and value:
            raise ValueError(
                f'scheduler config: {key} = {value!r} is not implemented; it must be off (absent, '
                'null or false)'
            )
    settings = settings_of(config, _DEFAULTS, _UNSUPPORTED)
    if settings['time_shift_type'] not in ('exponential', 'linear'):
        raise ValueError(
            f'scheduler config: time_shift_type is {settings["time_shift_type"]!r}; expected '
            "'exponential' or 'linear'"
        )
    return settings


def settings_of(
    config: Mapping[str, Any], defaults: Mapping[str, Any], ignored: Collection[str]
) -> dict[str, Any]:
    """The values of a scheduler_config.json for the keys of `defaults`, which stand for what is
    absent or null.

    Raises:
      ValueError: a key is neither of these nor `ignored`; or a value is of another kind than its
        default: a finite number, text, or a truth value. Anything goes where that is None.
    """
    for key, value in config.items():
        if key not in defaults and key not in ignored and not key.startswith('_'):
            raise ValueError(f'scheduler config: unknown key {key!r} = {value!r}')
    settings = {}
    for key, default in defaults.items():
        value = settings[key] = default if config.get(key) is None else config[key]
        if isinstance(default, bool | str):
            good, expected = type(value) is type(default), type(default).__name__
        else:
            number = isinstance(value, int | float) and not isinstance(value, bool)
            good = default is None or (number and abs(value) <= sys.float_info.max)
            expected = 'a finite number'
        if not good:
            raise ValueError(f'scheduler config: {key} is {value!r}; expected {expected}')
    return settings


def check_grid(sigmas: Grid) -> None:
    """Raises ValueError unless `sigmas` [T+1] is finite, strictly decreasing and inside [0, 1],
    with T >= 1.
    """
    sigmas = np.asarray(sigmas)
    if sigmas.ndim != 1 or len(sigmas) < 2:
        raise ValueError(f'sigmas has shape {sigmas.shape}; expected [T+1] with T >= 1')
    if not (np.all(np.diff(sigmas) < 0) and sigmas[0] <= 1 and sigmas[-1] >= 0):
        raise ValueError(
            f'sigmas must decrease strictly from at most 1 to at least 0; got {sigmas.tolist()}'
        )


def flow_grpo_noise_levels(sigmas: Grid, a: float = 0.7) -> Float[np.ndarray, 'T']:
    """Flow-GRPO's table sigma_k = a sqrt(s_k / (1 - s_k)) (arXiv 2505.05470); at s = 1 the
    denominator uses sigmas[1].

    Args:
        sigmas: [T+1] grid.
        a: noise scale (0.7 for SD3.5-M, 0.9 for FLUX.1-dev in Flow-GRPO).

    Returns:
        np.float32 [T]; the transition from sigmas[k] to sigmas[k+1] has std = sigma_k
        sqrt(sigmas[k] - sigmas[k+1]).
    """
    check_grid(sigmas)
    s = np.asarray(sigmas, np.float64)
    denominator = 1 - np.where(s[:-1] == 1, s[1], s[:-1])
    return (a * np.sqrt(s[:-1] / denominator)).astype(np.float32)


def constant_noise_levels(sigmas: Grid, eta: float) -> Float[np.ndarray, 'T']:
    """The constant table: DanceGRPO's sigma = eta for the `sde` kernel, or one eta in [0, 1] for
    `cps`.

    Returns:
        np.float32 [T].
    """
    check_grid(sigmas)
    return np.full(len(sigmas) - 1, eta, np.float32)


def ddim_like_noise_levels(sigmas: Grid, eta: float) -> Float[np.ndarray, 'T']:
    """Stepwise-Flow-GRPO's noise std = eta s' sqrt(1 - s) (arXiv 2603.28718) as noise levels of the
    `cps` kernel, std = s' sin(level pi / 2). The step from s = 1 adds none.

    Args:
        sigmas: [T+1] grid.
        eta: 0 (deterministic) to 1.

    Returns:
        np.float32 [T].
    """
    check_grid(sigmas)
    s = np.asarray(sigmas[:-1], np.float64)
    return (2 / np.pi * np.arcsin(eta * np.sqrt(1 - s))).astype(np.float32)


def check_noise_levels(
    noise_levels: Float[ArrayLike, 'T'] | Sequence[float], num_steps: int, kernel: str | Kernel
) -> None:
    """Raises ValueError unless the table [T] is finite, non-negative and at most the kernel's
    maximum (1 for `cps`).
    """
    levels = np.asarray(noise_levels)
    if levels.shape != (num_steps,):
        raise ValueError(
            f'noise levels have shape {levels.shape}; the grid has {num_steps} steps, so expected '
            f'({num_steps},)'
        )
    upper = as_kernel(kernel).max_level
    if not np.all(np.isfinite(levels) & (levels >= 0) & (levels <= upper)):
        raise ValueError(
            f'noise levels of this kernel must be finite and in [0, {upper:g}]; got '
            f'{levels.tolist()}'
        )
