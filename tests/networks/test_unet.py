"""Unet against Diffusers' torch module on small configurations, its table and its errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densegrpo_jax.networks import lora, unet, unet_config
from densegrpo_jax.pipelines.weights import files as weights
from tests.networks import parity

torch = pytest.importorskip('torch')
diffusers = pytest.importorskip('diffusers')

SMALL = dict(
    sample_size=8,
    block_out_channels=[8, 16, 16],
    down_block_types=['CrossAttnDownBlock2D', 'CrossAttnDownBlock2D', 'DownBlock2D'],
    up_block_types=['UpBlock2D', 'CrossAttnUpBlock2D', 'CrossAttnUpBlock2D'],
    layers_per_block=2,
    norm_num_groups=4,
    cross_attention_dim=12,
    attention_head_dim=2,
)
SHALLOW = SMALL | dict(
    block_out_channels=[12, 24],
    down_block_types=['DownBlock2D', 'CrossAttnDownBlock2D'],
    up_block_types=['CrossAttnUpBlock2D', 'UpBlock2D'],
    layers_per_block=1,
    attention_head_dim=3,
)
CASES = {'small': (SMALL, 2, (8, 12), 5), 'shallow': (SHALLOW, 3, (6, 4), 1)}

reference = functools.partial(parity.reference, diffusers.UNet2DConditionModel)


def inputs(config, batch, grid, length):
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    return (
        normal(batch, *grid, 4),
        normal(batch, length, config['cross_attention_dim']),
        rng.integers(0, 1000, batch).astype(np.float32),
    )


@pytest.mark.parametrize('case', CASES)
def test_equals_torch(case, tmp_path):
    config, *shape = CASES[case]
    module = reference(config, tmp_path)
    x, text, t = inputs(config, *shape)
    with torch.no_grad():
        out = module(
            torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(t), torch.from_numpy(text)
        ).sample
    want = out.permute(0, 2, 3, 1).numpy()
    net = unet.Unet(unet_config.UnetConfig.from_json(dict(module.config)))
    shapes = jax.eval_shape(net.init, jax.random.key(0), x, text, t)['params']
    params = weights.load_weights(tmp_path, net.weight_rules(), shapes)
    out = jax.jit(net.apply)({'params': params}, x, text, t)
    assert np.abs(np.asarray(out) - want).max() <= 1e-5 * np.abs(want).max()
    weights.save_weights(tmp_path / 'copy', net.weight_rules(), params)
    assert weights.open_tensors(tmp_path / 'copy').keys() == weights.open_tensors(tmp_path).keys()


def test_stable_diffusion_1_has_its_published_size():
    config = unet_config.UnetConfig(cross_attention_dim=768)
    net = unet.Unet(config)
    shapes = jax.eval_shape(
        net.init, jax.random.key(0), jnp.zeros((1, 8, 8, 4)), jnp.zeros((1, 1, 768)), jnp.zeros(1)
    )['params']
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 859_520_964
    assert len(net.module_paths()) == 16 * 10


def test_adapters_reach_the_attention_layers():
    config = unet_config.UnetConfig.from_json(SHALLOW)
    net = unet.Unet(config, lora=lora.LoraConfig(2, 4.0, ('attn1.to_q', 'attn2.to_k', 'to_out.0')))
    args = inputs(SHALLOW, 1, (4, 4), 2)
    variables = jax.eval_shape(net.init, jax.random.key(0), *args)
    adapters = jax.eval_shape(
        lambda key, base: lora.init_adapters(net.lora, net.module_paths(), base, key),
        jax.random.key(1),
        variables['params'],
    )
    assert jax.tree.map(jnp.shape, adapters) == jax.tree.map(jnp.shape, variables['lora'])


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(act_fn='gelu'), 'act_fn'),
        (dict(use_linear_projection=True), 'use_linear_projection'),
        (dict(colour=1), 'colour'),
        (dict(block_out_channels=[8, 15, 16]), '15'),
        (dict(down_block_types=['DownBlock2D']), 'down_block_types'),
    ],
)
def test_wrong_configuration_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        unet_config.UnetConfig.from_json(SMALL | change)
