"""The velocity of a rollout: adapters merged into the base are the adapters beside it."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import tiny_ocr
from densegrpo_jax.core.sde_step import sde_step
from densegrpo_jax.networks import quantize
from densegrpo_jax.networks.lora import LoraConfig, init_adapters
from densegrpo_jax.pipelines.folder import load_pipeline
from densegrpo_jax.sampling.policy import merged, merges, policy_velocity
from tests import miniature
from tests.training.small_run import one_device


@pytest.fixture(scope='module')
def opened(tmp_path_factory):
    folder = miniature.random_flux(tmp_path_factory.mktemp('flux'))
    c = tiny_ocr.get_config().lora
    adapters = LoraConfig(2, 4.0, tuple(c.targets))
    return load_pipeline(folder, text_length=16, lora=adapters)


def small():
    config = tiny_ocr.get_config()
    config.model.update(height=16, width=32)
    return config


def test_a_rollouts_velocity_is_that_of_the_update(opened):
    pipeline, params = opened
    config = small()
    names, adapters = pipeline.adapter_names(), pipeline.transformer.lora
    policy = init_adapters(adapters, names, params['transformer'], jax.random.key(0))
    keys = iter(jax.random.split(jax.random.key(1), len(jax.tree.leaves(policy))))
    policy = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape), policy)
    conditioning = pipeline.encode(params, *pipeline.tokenize(['A neon sign that says "ONE"'] * 2))
    x = jax.random.normal(jax.random.key(2), (2, *pipeline.latent_shape(16, 32)))
    s = jnp.array([0.9, 0.3])

    def velocity(params, policy):
        of = policy_velocity(pipeline, config, params, policy, conditioning, None)
        return jax.jit(of)(x, s)

    beside, base = velocity(params, policy), velocity(params, None)
    taken = merged(pipeline, config, params, policy, one_device())
    assert taken[1] is None
    within = velocity(*taken)
    scale = abs(beside).max()
    np.testing.assert_allclose(within, beside, atol=3e-6 * scale)
    assert abs(within - base).max() > 1e-2 * scale
    # and so the ratio of a sample that moved by one, under the other, is 1
    noise = jax.random.normal(jax.random.key(3), x.shape)
    for kernel, level, log_prob in (('sde', 0.7, 'gaussian'), ('cps', 0.8, 'unscaled')):
        step = functools.partial(sde_step, kernel=kernel, log_prob=log_prob)
        sampled = step(within, x, s, s - 0.2, level, noise=noise)
        again = step(beside, x, s, s - 0.2, level, sample=sampled.sample)
        np.testing.assert_allclose(jnp.exp(again.log_prob - sampled.log_prob), 1, atol=1e-6)


def test_only_a_float32_base_on_cpus_takes_adapters_in(opened):
    base, mesh = opened[1]['transformer'], one_device()
    assert merges(small(), base, mesh)
    gpu = types.SimpleNamespace(devices=np.array([types.SimpleNamespace(platform='gpu')]))
    assert not merges(small(), base, gpu)
    for changes in ({'full': True}, {'model.dtype': 'bfloat16'}):
        config = small()
        config.update_from_flattened_dict(changes)
        assert not merges(config, base, mesh)
    assert not merges(small(), jax.tree.map(lambda x: x.astype(jnp.bfloat16), base), mesh)
    one = {'kernel': quantize.quantize_kernel(jnp.ones((64, 64)), 'int8')}
    assert not merges(small(), base | {'quantised': one}, mesh)
