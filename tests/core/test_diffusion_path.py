"""Stable Diffusion 1's DDIM sampler against torch Diffusers': the same steps after the change of
variables, deterministic and with eta.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from densegrpo_jax.core import diffusion_path as path
from densegrpo_jax.core.ode_rollout import ode_rollout
from densegrpo_jax.core.schedules import check_noise_levels
from densegrpo_jax.core.sde_step import sde_step

# scheduler/scheduler_config.json of Stable Diffusion 1.5.
SD15 = {
    '_class_name': 'PNDMScheduler',
    'beta_end': 0.012,
    'beta_schedule': 'scaled_linear',
    'beta_start': 0.00085,
    'num_train_timesteps': 1000,
    'set_alpha_to_one': False,
    'skip_prk_steps': True,
    'steps_offset': 1,
    'trained_betas': None,
    'clip_sample': False,
}
CONFIGS = {
    'sd15': SD15,
    'to one': SD15 | {'set_alpha_to_one': True},
    'linear': SD15 | {'beta_schedule': 'linear'},
}


def torch_scheduler(config, steps):
    pytest.importorskip('torch')  # diffusers can be imported without it
    diffusers = pytest.importorskip('diffusers')
    scheduler = diffusers.DDIMScheduler.from_config(config)
    scheduler.set_timesteps(steps)
    return scheduler


def noise_network(x, t):
    """Any function of latent and timestep that is not linear in either."""
    wide = t.reshape(-1, *(1,) * (x.ndim - 1)) / 1000
    sin = np.sin if isinstance(x, np.ndarray) else jnp.sin
    return sin(2 * x) + wide * x


@pytest.mark.parametrize('name', CONFIGS)
@pytest.mark.parametrize('steps', [1, 7, 10, 50])
def test_timesteps_and_alphas(name, steps):
    scheduler = torch_scheduler(CONFIGS[name], steps)
    np.testing.assert_array_equal(
        path.ddim_timesteps(CONFIGS[name], steps), scheduler.timesteps.numpy()
    )
    np.testing.assert_allclose(
        path.alphas_cumprod(CONFIGS[name]), scheduler.alphas_cumprod.numpy(), rtol=1e-5
    )
    grid = path.ddim_grid(CONFIGS[name], steps)
    assert (np.diff(grid) < 0).all() and grid[0] < 1 and (grid[-1] == 0) == (name == 'to one')


@pytest.mark.parametrize('eta', [0.0, 0.5, 1.0])
@pytest.mark.parametrize('name', CONFIGS)
def test_trajectory_equals_torch(name, eta):
    torch = pytest.importorskip('torch')
    config, steps = CONFIGS[name], 10
    scheduler = torch_scheduler(config, steps)
    rng = np.random.default_rng(0)
    x, noise = (
        rng.standard_normal((2, 3, 4), np.float32),
        rng.standard_normal((steps, 2, 3, 4), np.float32),
    )
    grid = path.ddim_grid(config, steps)
    levels = path.ddim_noise_levels(grid, eta)
    check_noise_levels(levels, steps, 'cps')
    velocity = path.velocity_from_noise(noise_network, config)
    theirs, z = torch.tensor(x), jnp.asarray(x * path.scale(grid[0]))
    for k, t in enumerate(scheduler.timesteps):
        eps = torch.tensor(noise_network(theirs.numpy(), np.full(2, float(t), np.float32)))
        theirs = scheduler.step(
            eps, int(t), theirs, eta=eta, variance_noise=torch.tensor(noise[k])
        ).prev_sample
        s = jnp.full(2, grid[k])
        z = sde_step(
            velocity(z, s), z, s, grid[k + 1], levels[k], noise=noise[k], kernel='cps'
        ).sample
        np.testing.assert_allclose(z / path.scale(grid[k + 1]), theirs.numpy(), atol=2e-5)
    if eta == 0:
        np.testing.assert_allclose(
            ode_rollout(velocity, x * path.scale(grid[0]), grid), z, atol=1e-5
        )


def test_the_timestep_of_every_noise_level_is_found():
    seen = []
    velocity = path.velocity_from_noise(lambda x, t: seen.append(np.asarray(t)) or x, SD15)
    config = SD15 | {'steps_offset': 0, 'set_alpha_to_one': True}
    for steps in (10, 50, 1000):
        grid = path.ddim_grid(config, steps)[:-1]
        velocity(jnp.zeros((steps, 1)), jnp.asarray(grid))
        np.testing.assert_array_equal(seen[-1], path.ddim_timesteps(config, steps))


@pytest.mark.parametrize(
    'change',
    [
        {'prediction_type': 'v_prediction'},
        {'clip_sample': True},
        {'beta_schedule': 'cosine'},
        {'odd': 1},
        {'steps_offset': 0},
    ],
)
def test_unsupported_schedulers_are_named(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        path.ddim_grid(SD15 | change, 10)
