"""The whole chain of SD3.5 against the official torch StableDiffusion3Pipeline, with and without
classifier-free guidance.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densegrpo_jax.core.ode_rollout import ode_rollout
from densegrpo_jax.pipelines.folder import load_pipeline
from densegrpo_jax.pipelines.saving import save_pipeline
from tests import compiled, miniature
from tests.miniature import PROMPTS
from tests.pipelines import official


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return miniature.random_sd3(tmp_path_factory.mktemp('sd3'))


def ours(folder, height, width, steps, guidance, noise, *, scan=False):
    pipeline, params = load_pipeline(folder, text_length=16, scan=scan)
    conditioning = compiled.encode(pipeline, params, PROMPTS)
    negative = compiled.encode(pipeline, params, ['']) if guidance != 1 else None
    velocity = pipeline.velocity_fn(
        params['transformer'], None, conditioning, guidance, height, width, negative=negative
    )
    latents = ode_rollout(velocity, jnp.asarray(noise), pipeline.sigmas(steps, height, width))
    images, finite = compiled.decode(pipeline, params, latents, height, width)
    assert finite.all()
    return np.asarray(latents), np.asarray(images)


@pytest.fixture(scope='module')
def torch_pipe(folder):
    return official.opened('StableDiffusion3Pipeline', folder)


@pytest.mark.parametrize(
    'height, width, guidance', [pytest.param(32, 96, 1.0, marks=pytest.mark.slow), (48, 80, 4.5)]
)
def test_random_folder_makes_the_official_picture(folder, torch_pipe, height, width, guidance):
    noise = (
        np.random.default_rng(0)
        .standard_normal((3, height // 8, width // 8, 16))
        .astype(np.float32)
    )
    call = height, width, 4, guidance, noise
    expected, expected_images = official.pictures(
        torch_pipe, PROMPTS, *call, max_sequence_length=16
    )
    for scan in (False, True):
        latents, images = ours(folder, *call, scan=scan)
        official.check_latents(latents, expected)
        official.check_images(images, expected_images)


def test_saves_what_it_loads(folder, tmp_path):
    pipeline, params = load_pipeline(folder, text_length=16, scan=True)
    save_pipeline(tmp_path / 'copy', pipeline, params)
    for name, filename in (('transformer', 'diffusion_pytorch_model'), ('text_encoder_2', 'model')):
        copy, original = (f / name / f'{filename}.safetensors' for f in (tmp_path / 'copy', folder))
        assert copy.read_bytes() == original.read_bytes()
    assert (tmp_path / 'copy' / 'model_index.json').read_text() == (
        folder / 'model_index.json'
    ).read_text()


def test_guidance_one_is_the_plain_network(folder):
    pipeline, params = load_pipeline(folder, text_length=16)
    x = jax.random.normal(jax.random.key(0), (3, *pipeline.latent_shape(32, 32)))
    s = jnp.array([0.3, 0.7, 1.0])
    encode = jax.jit(pipeline.encode)
    conditioning = encode(params, *pipeline.tokenize(PROMPTS))
    negative = encode(params, *pipeline.tokenize(['']))

    @jax.jit
    def v(guidance, negative):
        return pipeline.velocity_fn(
            params['transformer'], None, conditioning, guidance, 32, 32, negative=negative
        )(x, s)

    np.testing.assert_allclose(v(1.0, negative), v(7.0, None), atol=1e-5)
    assert np.abs(v(3.0, negative) - v(1.0, negative)).max() > 1e-3
