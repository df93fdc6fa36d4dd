"""Sd3Transformer against Diffusers' torch module: SD3, SD3.5-M (dual attention, QK norm) and
SD3.5-Large shapes, scanned and unscanned.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densegrpo_jax.networks import lora, sd3
from densegrpo_jax.pipelines.weights import files as weights
from densegrpo_jax.pipelines.weights.stored import open_file
from tests.networks import parity
from tests.networks.parity import random_tree, relative_error

torch = pytest.importorskip('torch')
diffusers = pytest.importorskip('diffusers')

SD3 = dict(
    sample_size=8,
    in_channels=4,
    out_channels=4,
    num_layers=2,
    attention_head_dim=8,
    num_attention_heads=3,
    joint_attention_dim=20,
    caption_projection_dim=24,
    pooled_projection_dim=12,
    pos_embed_max_size=12,
)
MEDIUM = SD3 | dict(num_layers=5, dual_attention_layers=[0, 1], qk_norm='rms_norm')
LARGE = SD3 | dict(num_layers=3, qk_norm='rms_norm', in_channels=16, out_channels=16)
# the last block is dual as well
SCATTERED = SD3 | dict(num_layers=4, dual_attention_layers=[1, 3], qk_norm='rms_norm')
#        config, batch, (latent rows, columns), text tokens
CASES = {
    'sd3': (SD3, 2, (8, 8), 6),
    'medium': (MEDIUM, 3, (6, 10), 5),
    'large': (LARGE, 1, (24, 24), 33),
    'odd': (SCATTERED, 2, (2, 14), 1),
}

reference = functools.partial(parity.reference, diffusers.SD3Transformer2DModel)


def inputs(config, batch, grid, length, seed=0):
    """(latents, text, pooled, timestep) in numpy, channels last."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    return (
        normal(batch, *grid, config['in_channels']),
        normal(batch, length, config['joint_attention_dim']),
        normal(batch, config['pooled_projection_dim']),
        rng.uniform(0, 1, batch).astype(np.float32),
    )


def torch_output(module, args):
    latents, text, pooled, timestep = map(torch.from_numpy, args)
    with torch.no_grad():
        out = module(
            latents.permute(0, 3, 1, 2),
            encoder_hidden_states=text,
            pooled_projections=pooled,
            timestep=timestep * 1000,
        ).sample
    return out.permute(0, 2, 3, 1).numpy()


def load(folder, config, scan, **kwargs):
    """(network, parameters) read from a Diffusers folder."""
    net = sd3.Sd3Transformer(sd3.Sd3Config.from_json(config), scan=scan, **kwargs)
    abstract = jax.eval_shape(net.init, jax.random.key(0), *inputs(config, 1, (2, 2), 1))['params']
    return net, weights.load_weights(folder, net.weight_rules(), abstract)


@pytest.mark.parametrize('case', CASES)
def test_equals_torch(case, tmp_path):
    config, *shape = CASES[case]
    module = reference(config, tmp_path)
    args = inputs(config, *shape)
    want = torch_output(module, args)
    for scan in (False, True):
        net, params = load(tmp_path, config, scan)
        out = jax.jit(net.apply)({'params': params}, *args)
        assert out.dtype == jnp.float32
        assert relative_error(out, want) <= 1e-5
        weights.save_weights(tmp_path / f'copy{scan}', net.weight_rules(), params)
        stored, copy = (
            f / 'diffusion_pytorch_model.safetensors' for f in (tmp_path, tmp_path / f'copy{scan}')
        )
        assert open_file(stored).keys() == open_file(copy).keys()


def test_position_table_is_the_stored_one():
    config = MEDIUM | dict(pos_embed_max_size=48)
    table = reference(config).pos_embed.pos_embed.numpy().reshape(48, 48, -1)
    np.testing.assert_allclose(sd3.position_table(sd3.Sd3Config(**config)), table, atol=1e-6)


def test_released_configurations_are_understood():
    medium = dict(
        sample_size=128,
        patch_size=2,
        in_channels=16,
        num_layers=24,
        attention_head_dim=64,
        num_attention_heads=24,
        joint_attention_dim=4096,
        caption_projection_dim=1536,
        pooled_projection_dim=2048,
        out_channels=16,
        pos_embed_max_size=384,
        dual_attention_layers=list(range(13)),
        qk_norm='rms_norm',
        _class_name='SD3Transformer2DModel',
        _diffusers_version='0.32.0',
    )
    large = medium | dict(
        num_layers=38,
        num_attention_heads=38,
        caption_projection_dim=2432,
        dual_attention_layers=[],
        pos_embed_max_size=192,
    )
    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
    for config, runs in (
        (medium, [(0, 13, True, False), (13, 10, False, False), (23, 1, False, True)]),
        (large, [(0, 37, False, False), (37, 1, False, True)]),
    ):
        net = sd3.Sd3Transformer(sd3.Sd3Config.from_json(config), scan=True)
        assert sd3.block_runs(net.config) == runs
        shapes = jax.eval_shape(net.init, jax.random.key(0), *inputs(config, 1, (2, 2), 1))[
            'params'
        ]
        table = config['pos_embed_max_size'] ** 2 * config['caption_projection_dim']
        with torch.device('meta'):
            module = diffusers.SD3Transformer2DModel(
                **{k: v for k, v in config.items() if k[0] != '_'}
            )
        theirs = sum(p.numel() for p in module.parameters())
        assert count(shapes) - table == theirs


def test_adapters_reach_every_linear_layer():
    for scan, layers in ((False, 2), (True, 3)):  # a scan has one block of each kind
        shape = MEDIUM | dict(num_layers=layers, dual_attention_layers=[0])
        config = sd3.Sd3Config.from_json(shape)
        targets = ('attn.to_q', 'attn2.to_out.0', 'ff.net.2')
        net = sd3.Sd3Transformer(config, scan=scan, lora=lora.LoraConfig(2, 4.0, targets))
        args = inputs(shape, 2, (4, 4), 3)
        shapes = jax.eval_shape(net.init, jax.random.key(0), *args)
        variables = random_tree(shapes)
        adapters = lora.init_adapters(
            net.lora, net.module_paths(), variables['params'], jax.random.key(1)
        )
        assert jax.tree.map(jnp.shape, adapters) == jax.tree.map(jnp.shape, shapes['lora'])
        apply = jax.jit(net.apply)
        base = apply({'params': variables['params']}, *args)
        adapted = lambda lora: apply({'params': variables['params'], 'lora': lora}, *args)
        np.testing.assert_allclose(adapted(adapters), base, atol=1e-6)
        moved = jax.tree.map(lambda a: a + 0.1, adapters)
        assert relative_error(adapted(moved), base) > 1e-2


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(qk_norm='layer_norm'), 'qk_norm'),
        (dict(caption_projection_dim=7), 'caption_projection_dim'),
        (dict(dual_attention_layers=[9]), 'dual_attention_layers'),
        (dict(out_channels=0), 'out_channels'),
        (dict(colour=1), 'colour'),
        (dict(_class_name='Flux'), '_class_name'),
    ],
)
def test_wrong_configuration_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        sd3.Sd3Config.from_json(MEDIUM | change)


def test_too_large_pictures_are_refused():
    net = sd3.Sd3Transformer(sd3.Sd3Config.from_json(SD3))
    with pytest.raises(ValueError, match='pos_embed_max_size=12'):
        jax.eval_shape(net.init, jax.random.key(0), *inputs(SD3, 1, (26, 8), 1))
