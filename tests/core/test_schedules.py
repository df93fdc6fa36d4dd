"""Grids against the torch scheduler as the Diffusers pipelines call it, and against numbers worked
out by hand.
"""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from densegrpo_jax.core.kernels import KERNELS, Kernel
from densegrpo_jax.core.schedules import (
    check_grid,
    check_noise_levels,
    constant_noise_levels,
    ddim_like_noise_levels,
    flow_grpo_noise_levels,
    flux_shift_mu,
    sigmas_from_scheduler,
)

SD3 = {'_class_name': 'FlowMatchEulerDiscreteScheduler', 'num_train_timesteps': 1000, 'shift': 3.0}
FLUX_DEV = dict(
    SD3,
    use_dynamic_shifting=True,
    base_shift=0.5,
    max_shift=1.15,
    base_image_seq_len=256,
    max_image_seq_len=4096,
    shift_terminal=None,
)
SCHNELL = dict(FLUX_DEV, use_dynamic_shifting=False, shift=1.0)
STEPS = (1, 2, 4, 6, 8, 10, 20, 28, 40, 50)
TOKENS = (12, 256, 576, 1024, 2025, 4096, 6000)


def torch_sigmas(config, num_steps, num_tokens, pipeline):
    """The scheduler driven by the pipeline's own helper functions, with the arguments of its
    __call__.
    """
    torch = pytest.importorskip('torch')
    diffusers = pytest.importorskip('diffusers')
    torch.set_num_threads(1)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(config)
    if pipeline == 'flux':
        from diffusers.pipelines.flux.pipeline_flux import calculate_shift, retrieve_timesteps

        mu = calculate_shift(
            num_tokens,
            scheduler.config.get('base_image_seq_len', 256),
            scheduler.config.get('max_image_seq_len', 4096),
            scheduler.config.get('base_shift', 0.5),
            scheduler.config.get('max_shift', 1.15),
        )
        retrieve_timesteps(
            scheduler, num_steps, 'cpu', sigmas=np.linspace(1.0, 1 / num_steps, num_steps), mu=mu
        )
    else:
        from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import (
            calculate_shift,
            retrieve_timesteps,
        )

        extra = {}
        if scheduler.config.use_dynamic_shifting:
            extra['mu'] = calculate_shift(
                num_tokens,
                scheduler.config.get('base_image_seq_len', 256),
                scheduler.config.get('max_image_seq_len', 4096),
                scheduler.config.get('base_shift', 0.5),
                scheduler.config.get('max_shift', 1.16),
            )
        retrieve_timesteps(scheduler, num_steps, 'cpu', sigmas=None, **extra)
    return scheduler.sigmas.numpy()


@pytest.mark.parametrize(
    'config, pipeline',
    [
        (FLUX_DEV, 'flux'),
        (SCHNELL, 'flux'),
        (dict(FLUX_DEV, time_shift_type='linear', base_shift=0.7), 'flux'),
        (dict(FLUX_DEV, base_shift=None), 'flux'),
        (SD3, 'sd3'),
        (dict(SD3, shift=1.0), 'sd3'),
        (dict(SD3, num_train_timesteps=500), 'sd3'),
        (FLUX_DEV, 'sd3'),
        ({}, 'sd3'),
    ],
)
def test_grid_equals_torch_scheduler(config, pipeline):
    for num_steps in STEPS:
        for num_tokens in TOKENS if num_steps in (6, 10) else (1024, 3072 + num_steps):
            ours = sigmas_from_scheduler(config, num_steps, num_tokens, own_range=pipeline == 'sd3')
            theirs = torch_sigmas(
                {k: v for k, v in config.items() if v is not None}, num_steps, num_tokens, pipeline
            )
            assert ours.dtype == np.float32 and ours.shape == (num_steps + 1,)
            # At most one unit in the last place at 1, where the network's timestep embedding cannot
            # tell.
            np.testing.assert_allclose(
                ours, theirs, rtol=0, atol=1.2e-7, err_msg=f'{num_steps} steps, {num_tokens} tokens'
            )
            check_grid(ours)


def test_named_numbers():
    np.testing.assert_allclose(
        [flux_shift_mu(n) for n in (256, 576, 1024, 4096)], [0.5, 0.5542, 0.63, 1.15], atol=5e-5
    )
    flux6 = sigmas_from_scheduler(FLUX_DEV, 6, 1024)
    np.testing.assert_allclose(flux6, [1, 0.9037, 0.7897, 0.6525, 0.4842, 0.2730, 0], atol=5e-5)
    flux10 = sigmas_from_scheduler(FLUX_DEV, 10, 1024)
    np.testing.assert_allclose(
        flux10,
        [1, 0.9441, 0.8825, 0.8142, 0.7380, 0.6525, 0.5559, 0.4459, 0.3195, 0.1726, 0],
        atol=5e-5,
    )
    sd3 = sigmas_from_scheduler(SD3, 10, 1024, own_range=True)
    np.testing.assert_allclose(
        sd3,
        [1, 0.9601, 0.9133, 0.8577, 0.7904, 0.7073, 0.6022, 0.4649, 0.2780, 0.0089, 0],
        atol=5e-5,
    )


@pytest.mark.parametrize('shift, pipeline', [(16.97, 'flux'), (1.18, 'sd3'), (1.32, 'sd3')])
def test_a_shift_that_rounds_the_first_noise_level_to_a_neighbour_of_one_gives_one(shift, pipeline):
    sigmas = sigmas_from_scheduler(dict(SD3, shift=shift), 10, 1024, own_range=pipeline == 'sd3')
    assert sigmas[0] == 1
    # a sqrt(s_0 / (1 - s_1)); by the general formula, with s_0 just below 1, it would be a thousand
    # times that.
    assert flow_grpo_noise_levels(sigmas, 0.7)[0] == pytest.approx(
        0.7 / np.sqrt(1 - sigmas[1]), rel=1e-5
    )


def test_flow_grpo_table():
    sd3 = sigmas_from_scheduler(SD3, 10, 1024, own_range=True)
    table = flow_grpo_noise_levels(sd3, 0.7)
    assert table.dtype == np.float32 and np.isfinite(table).all()
    # sigmas[1] stands in for 1
    assert table[0] == pytest.approx(0.7 * math.sqrt(1 / (1 - 0.9601293)), rel=1e-5)
    assert table[4] == pytest.approx(0.7 * math.sqrt(0.79036826 / (1 - 0.79036826)), rel=1e-5)
    std = table * np.sqrt(-np.diff(sd3))
    assert std[0] == pytest.approx(0.7, rel=1e-6)  # std = a at the first step whatever the grid
    assert std[8] == pytest.approx(0.225, abs=1e-3)
    # TempFlow-GRPO's constants, 2.25 and 1.73
    assert 1 / std[:9].mean() == pytest.approx(2.252, abs=1e-3)
    flux = sigmas_from_scheduler(FLUX_DEV, 10, 4096)
    assert 1 / (flow_grpo_noise_levels(flux, 0.9) * np.sqrt(-np.diff(flux)))[
        :9
    ].mean() == pytest.approx(1.726, abs=1e-3)
    flux6 = sigmas_from_scheduler(FLUX_DEV, 6, 1024)
    for a, last_std in ((0.9, 0.29), (0.7, 0.22)):
        assert (flow_grpo_noise_levels(flux6, a) * np.sqrt(-np.diff(flux6)))[-1] == pytest.approx(
            last_std, abs=5e-3
        )
    np.testing.assert_array_equal(constant_noise_levels(flux6, 0.3), np.full(6, 0.3, np.float32))


@pytest.mark.parametrize(
    'change, names',
    [
        ({'use_karras_sigmas': True}, 'use_karras_sigmas'),
        ({'shift_terminal': 0.02}, 'shift_terminal'),
        ({'invert_sigmas': True}, 'invert_sigmas'),
        ({'stochastic_sampling': True}, 'stochastic_sampling'),
        ({'shfit': 3.0}, 'shfit'),
        ({'_class_name': 'DDIMScheduler'}, 'DDIMScheduler'),
        ({'time_shift_type': 'cubic'}, 'cubic'),
    ],
)
def test_unsupported_configs_are_named(change, names):
    with pytest.raises(ValueError, match=names):
        sigmas_from_scheduler(dict(SD3, **change), 10, 1024, own_range=True)


def test_bad_arguments():
    with pytest.raises(ValueError, match='num_steps is 0'):
        sigmas_from_scheduler(SD3, 0, 1024, own_range=True)
    for grid in ([1.0, 0.5, 0.5, 0.0], [1.1, 0.0], [1.0, -0.1], [1.0], [1.0, np.nan, 0.0]):
        with pytest.raises(ValueError, match='sigmas'):
            check_grid(grid)
    check_noise_levels([0.0, 1.5], 2, 'sde')
    check_noise_levels([3.7, 1.0], 2, 'sde')
    check_noise_levels([3.7, 1.0], 2, Kernel(lambda s, s_next, level: (level, level)))
    for levels, kernel in (
        ([0.5], 'sde'),
        ([0.5, -0.1], 'sde'),
        ([0.5, np.nan], 'sde'),
        ([0.5, 1.1], 'cps'),
    ):
        with pytest.raises(ValueError, match='noise levels'):
            check_noise_levels(levels, 2, kernel)


def test_ddim_like_table_by_hand():
    """std = eta s' sqrt(1 - s) of the cps kernel: 0, 0.8 * 0.5 * sqrt(0.25), 0.8 * 0.2 * sqrt(0.5),
    0.
    """
    sigmas = np.float32([1, 0.75, 0.5, 0.2, 0])
    levels = ddim_like_noise_levels(sigmas, 0.8)
    std, _ = KERNELS['cps'].coefficients(*map(jnp.asarray, (sigmas[:-1], sigmas[1:], levels)))
    np.testing.assert_allclose(std, [0, 0.2, 0.16 * 0.5**0.5, 0], atol=1e-7)
    assert levels.dtype == np.float32 and levels[0] == 0
    check_noise_levels(ddim_like_noise_levels(sigmas, 1.0), 4, 'cps')
