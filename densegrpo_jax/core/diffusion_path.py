"""Variance-preserving diffusion models as flow models: a change of variables after which DDIM *is*
the Euler step.

With the model's x = alpha x_0 + sigma eps, alpha^2 + sigma^2 = 1, let s = sigma / (alpha + sigma)
and z = x / (alpha + sigma). Then

    z = (1 - s) x_0 + s eps,    v = eps - x_0,    1 / (alpha + sigma) = sqrt(s^2 + (1 - s)^2)

so the grid of a DDIM scheduler (arXiv 2010.02502) becomes a grid of noise levels, its deterministic
step the ODE's Euler step, and DDIM-eta the `cps` kernel of `sde_step` with one noise level per
step. Two differences remain: s_0 < 1, and s_T > 0 if the scheduler does not end in clean latents.
Then the last latents are scale(s_T) x, a prediction z - s v of x_0 is not: it is on the scale of x.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from densegrpo_jax.core.schedules import Grid, settings_of
from densegrpo_jax.core.sde_step import over

_SUPPORTED = {  # no other value
    'prediction_type': 'epsilon',
    'timestep_spacing': 'leading',
    'clip_sample': False,
    'trained_betas': None,
    'rescale_betas_zero_snr': False,
    'thresholding': False,
}
_DEFAULTS = {
    'num_train_timesteps': 1000,
    'beta_start': 0.0001,
    'beta_end': 0.02,
    'beta_schedule': 'linear',
    'set_alpha_to_one': True,
    'steps_offset': 0,
    **_SUPPORTED,
}
_IRRELEVANT = (
    'skip_prk_steps',
    'clip_sample_range',
    'dynamic_thresholding_ratio',
    'sample_max_value',
    'variance_type',
)


def scheduler_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a DDIM or PNDM scheduler_config.json of Stable Diffusion 1. Raises ValueError
    for unsupported settings.
    """
    settings = settings_of(config, _DEFAULTS, _IRRELEVANT)
    for key, value in _SUPPORTED.items():
        if settings[key] != value:
            raise ValueError(
                f'scheduler config: {key} = {settings[key]!r} is not supported, expected {value!r}'
            )
    if settings['beta_schedule'] not in ('linear', 'scaled_linear'):
        raise ValueError(
            f"scheduler config: beta_schedule = {settings['beta_schedule']!r} is not 'linear' or "
            "'scaled_linear'"
        )
    return settings


def alphas_cumprod(config: Mapping[str, Any]) -> Float[np.ndarray, 'N']:
    """alpha^2 of every training timestep, float64 [N]: the cumulated product of 1 - beta."""
    c = scheduler_settings(config)
    low, high, count = c['beta_start'], c['beta_end'], c['num_train_timesteps']
    if c['beta_schedule'] == 'scaled_linear':
        betas = np.linspace(low**0.5, high**0.5, count) ** 2
    else:
        betas = np.linspace(low, high, count)
    return np.cumprod(1 - betas)


def noise_level(alpha_squared: Float[np.ndarray, '*shape']) -> Float[np.ndarray, '*shape']:
    """s = sigma / (alpha + sigma) of alpha^2."""
    alpha, sigma = np.sqrt(alpha_squared), np.sqrt(1 - alpha_squared)
    return sigma / (alpha + sigma)


def ddim_timesteps(config: Mapping[str, Any], num_steps: int) -> Int[np.ndarray, '{num_steps}']:
    """The training timesteps that Diffusers' DDIMScheduler visits, int [num_steps], noise first
    ('leading' spacing).
    """
    c = scheduler_settings(config)
    return (np.arange(num_steps) * (c['num_train_timesteps'] // num_steps))[::-1] + c[
        'steps_offset'
    ]


def ddim_grid(config: Mapping[str, Any], num_steps: int) -> Float[np.ndarray, '{num_steps}+1']:
    """The scheduler's grid as noise levels, float32 [num_steps + 1].

    Raises:
        ValueError: unsupported settings, or settings whose last step does nothing.
    """
    c, products = scheduler_settings(config), alphas_cumprod(config)
    if c['steps_offset'] == 0 and not c['set_alpha_to_one']:
        raise ValueError(
            'scheduler config: steps_offset = 0 with set_alpha_to_one = false ends in a step that '
            'does nothing; use 1'
        )
    visited = products[ddim_timesteps(config, num_steps)]
    final = 1.0 if c['set_alpha_to_one'] else products[0]
    return noise_level(np.append(visited, final)).astype(np.float32)


def ddim_noise_levels(sigmas: Grid, eta: float) -> Float[np.ndarray, 'T']:
    """DDIM-eta as noise levels of the `cps` kernel, float32 [T]: std = s' sin(level pi / 2) with

        std / s' = sigma_eta / sigma' = eta sqrt(1 - alpha^2 / alpha'^2) / sigma

    (arXiv 2010.02502, Eq. 16).

    Args:
        sigmas: [T+1] grid of noise levels.
        eta: 0 (deterministic) to 1 (ancestral).
    """
    s = np.asarray(sigmas, np.float64)
    weight = s**2 + (1 - s) ** 2
    alpha2, sigma2 = (1 - s) ** 2 / weight, s**2 / weight
    share = eta * np.sqrt(np.maximum(1 - alpha2[:-1] / alpha2[1:], 0) / sigma2[:-1])
    return (2 / np.pi * np.arcsin(np.minimum(share, 1))).astype(np.float32)


def scale(
    s: Float[Array, '*shape'] | np.floating | float,
) -> Float[Array, '*shape'] | np.floating | float:
    """sqrt(s^2 + (1 - s)^2) = 1 / (alpha + sigma): z = scale(s) x. It is the standard deviation of
    z if that of x is 1.
    """
    return (s**2 + (1 - s) ** 2) ** 0.5


def velocity_from_noise(
    predict_noise: Callable[[Array, Array], Array], config: Mapping[str, Any]
) -> Callable[[Array, Array], Array]:
    """The velocity `v(z [B, ...], s [B])` of a network that predicts eps.

    Args:
        predict_noise: (x [B, ...], timestep [B] float32) -> eps [B, ...].
        config: of the scheduler; its table gives the nearest timestep of a noise level.
    """
    table = noise_level(alphas_cumprod(config)).astype(np.float32)

    def velocity(z, s):
        wide = over(s, z)
        timestep = jnp.round(jnp.interp(s, table, np.arange(len(table), dtype=np.float32)))
        eps = predict_noise(z / scale(wide), timestep)
        return eps - (z - wide * eps) / (1 - wide)

    return velocity
