"""Images into clean latents, on all three layouts: against Diffusers' autoencoder, and back."""

import jax
import numpy as np
import pytest

from densegrpo_jax.pipelines.folder import load_params, open_pipeline
from tests import miniature

RANDOM = {'flux': miniature.random_flux, 'sd3': miniature.random_sd3, 'sd15': miniature.random_sd15}


@pytest.mark.parametrize('name', RANDOM)
def test_latents_are_those_of_the_oracle_and_decode_to_the_same_image(name, tmp_path):
    torch, diffusers = pytest.importorskip('torch'), pytest.importorskip('diffusers')
    folder = RANDOM[name](tmp_path / name)
    pipeline = open_pipeline(folder, text_length=8)
    params = load_params(folder, pipeline, ('vae',))
    vae = diffusers.AutoencoderKL.from_pretrained(folder / 'vae')
    down = 2 ** (len(vae.config.block_out_channels) - 1)
    height, width = 4 * down, 6 * down
    images = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), np.uint8)
    signed = torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32)) / 127.5 - 1
    with torch.no_grad():
        mean = vae.encode(signed).latent_dist.mean
        decoded = vae.decode(mean).sample
    scaled = (mean - (vae.config.shift_factor or 0)) * vae.config.scaling_factor
    encode = jax.jit(lambda p, x: pipeline.encode_images(p, x, height, width))
    latents = encode(params, images)
    assert latents.shape[1:] == pipeline.latent_shape(height, width)
    z = np.asarray(pipeline.spatial(latents, height, width))
    np.testing.assert_allclose(z.transpose(0, 3, 1, 2), scaled, atol=2e-5)
    again = pipeline.from_spatial(z, height, width)
    np.testing.assert_allclose(again, latents, rtol=1e-6, atol=1e-7)
    decode = jax.jit(lambda p, z: pipeline.decode_float(p, z, height, width))
    unit, finite = decode(params, latents)
    expected = (decoded.numpy().transpose(0, 2, 3, 1) / 2 + 0.5).clip(0, 1)
    np.testing.assert_allclose(unit, expected, atol=2e-5)
    assert np.asarray(finite).all()
