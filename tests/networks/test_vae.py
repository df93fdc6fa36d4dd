"""AutoencoderKL against Diffusers' torch module, and its weight table."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densegrpo_jax.networks import vae
from densegrpo_jax.pipelines.weights import files as weights
from tests.networks import parity
from tests.networks.parity import relative_error

FLUX_JSON = {
    '_class_name': 'AutoencoderKL',
    '_diffusers_version': '0.30.0',
    '_name_or_path': '../checkpoints/flux-dev',
    'act_fn': 'silu',
    'block_out_channels': [128, 256, 512, 512],
    'down_block_types': ['DownEncoderBlock2D'] * 4,
    'force_upcast': True,
    'in_channels': 3,
    'latent_channels': 16,
    'latents_mean': None,
    'latents_std': None,
    'layers_per_block': 2,
    'mid_block_add_attention': True,
    'norm_num_groups': 32,
    'out_channels': 3,
    'sample_size': 1024,
    'scaling_factor': 0.3611,
    'shift_factor': 0.1159,
    'up_block_types': ['UpDecoderBlock2D'] * 4,
    'use_post_quant_conv': False,
    'use_quant_conv': False,
}
CASES = {
    'flux': (
        dict(block_out_channels=[8, 16, 16, 16], layers_per_block=2, norm_num_groups=4),
        (2, 32, 48),
    ),
    'no_attention': (
        dict(
            block_out_channels=[8, 24],
            layers_per_block=1,
            norm_num_groups=8,
            mid_block_add_attention=False,
        ),
        (3, 10, 6),
    ),
    'quant_convs': (
        dict(
            block_out_channels=[8, 16, 8],
            layers_per_block=1,
            norm_num_groups=8,
            use_quant_conv=True,
            use_post_quant_conv=True,
            latent_channels=4,
        ),
        (1, 16, 24),
    ),
}


def reference(overrides, folder):
    diffusers = pytest.importorskip('diffusers')
    blocks = len(overrides['block_out_channels'])
    config = (
        FLUX_JSON
        | {
            'down_block_types': ['DownEncoderBlock2D'] * blocks,
            'up_block_types': ['UpDecoderBlock2D'] * blocks,
        }
        | overrides
    )
    config = {k: v for k, v in config.items() if not k.startswith('_')}
    return parity.reference(diffusers.AutoencoderKL, config, folder, move=parity.move_vectors)


def abstract(config):
    model = vae.AutoencoderKL(config)
    side = 2 * config.downscale
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))['params']


def load(folder):
    config = vae.VaeConfig.from_json(json.loads((folder / 'config.json').read_text()))
    rules = vae.AutoencoderKL(config).weight_rules()
    return config, weights.load_weights(folder, rules, abstract(config))


@pytest.mark.parametrize('case', CASES)
def test_equals_torch(case, tmp_path):
    overrides, (batch, height, width) = CASES[case]
    torch = pytest.importorskip('torch')
    module = reference(overrides, tmp_path)
    config, params = load(tmp_path)
    images = np.random.default_rng(0).uniform(-1, 1, (batch, height, width, 3)).astype(np.float32)
    with torch.no_grad():
        posterior = module.encode(torch.from_numpy(images.transpose(0, 3, 1, 2))).latent_dist
        decoded = module.decode(posterior.mean).sample
    model = vae.AutoencoderKL(config)
    reconstruction, mean, log_var = jax.jit(model.apply)({'params': params}, images)
    last = lambda x: x.permute(0, 2, 3, 1)
    assert relative_error(mean, last(posterior.mean)) < 1e-5
    assert relative_error(log_var, last(posterior.logvar)) < 1e-5
    assert relative_error(reconstruction, last(decoded)) < 1e-5


def test_halves_need_only_their_own_parameters(tmp_path):
    reference(CASES['no_attention'][0], tmp_path)
    config, params = load(tmp_path)
    model = vae.AutoencoderKL(config)
    images = np.random.default_rng(1).uniform(-1, 1, (1, 8, 8, 3)).astype(np.float32)
    apply = jax.jit(model.apply, static_argnames='method')
    reconstruction, mean, log_var = apply({'params': params}, images)
    encoded = apply({'params': {'encoder': params['encoder']}}, images, method='encode')
    np.testing.assert_allclose(encoded[0], mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(encoded[1], log_var, rtol=1e-5, atol=1e-6)
    decoded = apply({'params': {'decoder': params['decoder']}}, mean, method='decode')
    np.testing.assert_allclose(decoded, reconstruction, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('case', ['flux', 'quant_convs'])
def test_saved_layout_is_that_of_torch(case, tmp_path):
    reference(CASES[case][0], tmp_path / 'theirs')
    config, params = load(tmp_path / 'theirs')
    weights.save_weights(
        tmp_path / 'ours',
        vae.AutoencoderKL(config).weight_rules(),
        params,
        filename='diffusion_pytorch_model.safetensors',
    )
    numpy_io = pytest.importorskip('safetensors.numpy')
    theirs, ours = (
        numpy_io.load_file(tmp_path / side / 'diffusion_pytorch_model.safetensors')
        for side in ('theirs', 'ours')
    )
    assert sorted(ours) == sorted(theirs)
    for key in theirs:
        np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)


def test_the_old_names_of_attention_are_read(tmp_path):
    """As Diffusers does: most files of Stable Diffusion 1 have them."""
    module = reference(CASES['flux'][0], tmp_path)
    _, expected = load(tmp_path)
    numpy_io, diffusers = pytest.importorskip('safetensors.numpy'), pytest.importorskip('diffusers')
    file = tmp_path / 'diffusion_pytorch_model.safetensors'
    old = {'to_q': 'query', 'to_k': 'key', 'to_v': 'value', 'to_out.0': 'proj_attn'}
    tensors = {}
    for key, value in numpy_io.load_file(file).items():
        for new, before in old.items():
            key = key.replace(f'.attentions.0.{new}.', f'.attentions.0.{before}.')
        tensors[key] = value
    assert sum('.proj_attn.' in key for key in tensors) == 4
    numpy_io.save_file(tensors, file)
    _, params = load(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    theirs = diffusers.AutoencoderKL.from_pretrained(tmp_path).state_dict()
    for key, value in module.state_dict().items():
        np.testing.assert_array_equal(theirs[key], value, err_msg=key)


@pytest.mark.slow  # fresh networks are made for the miniatures alone
def test_gradients_of_a_fresh_model():
    """The miniature trains from scratch: outputs of order one, and a gradient in every
    parameter.
    """
    config = vae.VaeConfig(
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, latent_channels=4
    )
    model = vae.AutoencoderKL(config)
    images = jax.random.uniform(jax.random.key(1), (2, 8, 12, 3), minval=-1.0)
    # rbg compiles faster
    params = jax.jit(model.init)(jax.random.key(0, impl='rbg'), images)['params']

    def loss(params):
        reconstruction, mean, log_var = model.apply({'params': params}, images)
        return jnp.square(reconstruction - images).mean() + 1e-3 * (
            jnp.square(mean) + log_var
        ).mean(), (mean, reconstruction)

    (_, outputs), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert all(0.1 < float(output.std()) < 10 for output in outputs)
    dead = [
        jax.tree_util.keystr(path)
        for path, g in jax.tree.leaves_with_path(grads)
        if not np.isfinite(g).all() or not np.any(g)
    ]
    assert not dead


def test_group_norm_of_a_large_offset_and_of_a_constant():
    """One-pass statistics stay usable where the mean is 100 standard deviations, and a constant
    picture gives the bias.
    """
    x = 100.0 + jax.random.normal(jax.random.key(0), (2, 8, 8, 8))
    y, _ = vae.GroupNorm(4).init_with_output(jax.random.key(1), x)
    grouped = np.asarray(x, np.float64).reshape(2, -1, 4, 2)
    expected = (grouped - grouped.mean((1, 3), keepdims=True)) / np.sqrt(
        grouped.var((1, 3), keepdims=True) + 1e-6
    )
    np.testing.assert_allclose(y, expected.reshape(x.shape), atol=0.01)
    y, _ = vae.GroupNorm(4).init_with_output(jax.random.key(1), jnp.full((1, 4, 4, 8), 0.5))
    np.testing.assert_allclose(y, 0.0, atol=1e-3)


def test_upsample_equals_the_plain_formula():
    x = jax.random.normal(jax.random.key(0), (2, 3, 5, 4))
    y, variables = vae.Sampler(6, up=True).init_with_output(jax.random.key(1), x)
    doubled = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
    conv = variables['params']['conv']
    expected = jax.lax.conv_general_dilated(
        doubled, conv['kernel'], (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )
    np.testing.assert_allclose(y, expected + conv['bias'], rtol=1e-5, atol=1e-5)


def test_flux_config():
    assert vae.VaeConfig.from_json(FLUX_JSON) == vae.VaeConfig()
    assert vae.VaeConfig().downscale == 8


@pytest.mark.parametrize(
    'change, named',
    [
        ({'act_fn': 'relu'}, 'act_fn'),
        ({'latents_mean': [0.0]}, 'latents_mean'),
        ({'block_out_channels': [100]}, 'down_block_types'),
        ({'norm_num_groups': 48}, 'norm_num_groups'),
        ({'layers_per_block': 0}, 'layers_per_block'),
        ({'temporal': 3}, 'temporal'),
        ({'_class_name': 'AutoencoderTiny'}, '_class_name'),
    ],
)
def test_unsupported_config_values_are_named(change, named):
    with pytest.raises(ValueError, match=named):
        vae.VaeConfig.from_json(FLUX_JSON | change)
