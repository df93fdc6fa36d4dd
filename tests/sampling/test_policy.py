"""The velocity of a rollout: adapters merged into the base are the adapters beside it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import tiny_ocr
from densegrpo_jax.networks import quantize
from densegrpo_jax.networks.lora import LoraConfig, init_adapters
from densegrpo_jax.pipelines.folder import load_pipeline
from densegrpo_jax.sampling.policy import merges, policy_velocity
from tests import miniature


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

    def found(policy, sampling):
        of = policy_velocity(
            pipeline, config, params, policy, conditioning, None, sampling=sampling
        )
        return np.asarray(jax.jit(of)(x, s))

    beside, merged, base = found(policy, False), found(policy, True), found(None, True)
    scale = abs(beside).max()
    np.testing.assert_allclose(merged, beside, atol=3e-6 * scale)
    assert abs(merged - base).max() > 1e-2 * scale


def test_only_a_float32_base_takes_adapters_in(opened):
    base = opened[1]['transformer']
    assert merges(small(), base)
    for changes in ({'full': True}, {'model.dtype': 'bfloat16'}):
        config = small()
        config.update_from_flattened_dict(changes)
        assert not merges(config, base)
    assert not merges(small(), jax.tree.map(lambda x: x.astype(jnp.bfloat16), base))
    one = {'kernel': quantize.quantize_kernel(jnp.ones((64, 64)), 'int8')}
    assert not merges(small(), base | {'quantised': one})
