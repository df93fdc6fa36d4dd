"""AutoencoderKLFlux2 against Diffusers' torch module, and its weight table."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densegrpo_jax.networks import vae_flux2
from densegrpo_jax.pipelines.weights import files as weights
from tests.networks import parity
from tests.networks.parity import relative_error

SMALL = dict(
    block_out_channels=[8, 16],
    down_block_types=['DownEncoderBlock2D'] * 2,
    up_block_types=['UpDecoderBlock2D'] * 2,
    layers_per_block=1,
    latent_channels=4,
    norm_num_groups=4,
    sample_size=32,
)
CASES = {
    'klein': (SMALL, (2, 12, 20)),
    'small decoder': (
        SMALL
        | dict(
            decoder_block_out_channels=[4, 8],
            mid_block_add_attention=False,
            use_quant_conv=False,
            use_post_quant_conv=False,
            batch_norm_eps=1e-2,
        ),
        (3, 6, 10),
    ),
}


def reference(config, folder):
    diffusers = pytest.importorskip('diffusers')
    model = diffusers.AutoencoderKLFlux2
    module = parity.reference(model, config, move=parity.move_vectors)
    module.bn.running_mean.normal_()
    module.bn.running_var.uniform_(0.01, 2.0)
    module.save_pretrained(folder)
    return module


def load(folder):
    config = json.loads((folder / 'config.json').read_text())
    model = vae_flux2.AutoencoderKLFlux2(vae_flux2.Flux2VaeConfig.from_json(config))
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4, 4, 3)))['params']
    return model, weights.load_weights(folder, model.weight_rules(), shapes)


@pytest.mark.parametrize('case', CASES)
def test_equals_torch(case, tmp_path):
    config, (batch, height, width) = CASES[case]
    torch = pytest.importorskip('torch')
    module = reference(config, tmp_path)
    model, params = load(tmp_path)
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (batch, height, width, 3)).astype(np.float32)
    latents = rng.normal(size=(batch, height // 2, width // 2, 4)).astype(np.float32)
    first = lambda x: torch.from_numpy(x).permute(0, 3, 1, 2)
    apply = lambda method, *a: jax.jit(lambda p: model.apply({'params': p}, *a, method=method))(
        params
    )
    with torch.no_grad():
        posterior = module.encode(first(images)).latent_dist
        decoded = module.decode(first(latents)).sample
    mean, log_var = apply('encode', images)
    assert relative_error(mean, posterior.mean.permute(0, 2, 3, 1)) < 1e-5
    assert relative_error(log_var, posterior.logvar.permute(0, 2, 3, 1)) < 1e-5
    assert relative_error(apply('decode', latents), decoded.permute(0, 2, 3, 1)) < 1e-5
    bn_mean, deviation = apply('statistics')
    assert relative_error(bn_mean, module.bn.running_mean) == 0
    wanted = torch.sqrt(module.bn.running_var + module.config.batch_norm_eps)
    assert relative_error(deviation, wanted) < 1e-6


def test_torch_opens_what_is_saved(tmp_path):
    module = reference(SMALL, tmp_path / 'theirs')
    model, params = load(tmp_path / 'theirs')
    weights.save_weights(tmp_path / 'ours', model.weight_rules(), params)
    (tmp_path / 'ours' / 'config.json').write_text(
        (tmp_path / 'theirs' / 'config.json').read_text()
    )
    opened = type(module).from_pretrained(str(tmp_path / 'ours'))
    theirs = module.state_dict()
    for key, value in opened.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), theirs[key].numpy(), err_msg=key)


def test_config_is_that_of_diffusers():
    diffusers = pytest.importorskip('diffusers')
    stored = dict(diffusers.AutoencoderKLFlux2(**SMALL).config)
    config = vae_flux2.Flux2VaeConfig.from_json(stored)
    assert (config.downscale, config.packed_channels) == (2, 16)
    released = vae_flux2.Flux2VaeConfig.from_json({'_class_name': 'AutoencoderKLFlux2'})
    assert (released.downscale, released.packed_channels) == (8, 128)


@pytest.mark.parametrize(
    'change, named',
    [
        ({'_class_name': 'AutoencoderKL'}, '_class_name'),
        ({'act_fn': 'gelu'}, 'act_fn'),
        ({'up_block_types': ['AttnUpDecoderBlock2D'] * 2}, 'up_block_types'),
        ({'block_out_channels': [8, 18]}, 'block_out_channels'),
        ({'block_out_channels': 8}, 'block_out_channels'),
        ({'decoder_block_out_channels': [8]}, 'decoder_block_out_channels'),
        ({'patch_size': [1, 1]}, 'patch_size'),
        ({'batch_norm_eps': 0.0}, 'batch_norm_eps'),
        ({'scaling_factor': 0.5}, 'scaling_factor'),
        ({'latent_channels': 0}, 'latent_channels'),
    ],
)
def test_unsupported_config_values_are_named(change, named):
    with pytest.raises(ValueError, match=named):
        vae_flux2.Flux2VaeConfig.from_json(SMALL | change)
