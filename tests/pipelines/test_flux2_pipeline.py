"""The whole chain of FLUX.2 [klein] against the official torch Flux2KleinPipeline: base and
distilled, with and without classifier-free guidance.
"""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densegrpo_jax.core.ode_rollout import ode_rollout
from densegrpo_jax.pipelines.folder import load_pipeline, open_pipeline
from densegrpo_jax.pipelines.saving import save_pipeline
from tests import compiled, miniature
from tests.pipelines import official

PROMPTS = ['a neon sign that says "HELLO"', '', 'cat ' * 40]  # the last one is cut
LENGTH = 24


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return miniature.random_klein(tmp_path_factory.mktemp('klein'))


@pytest.fixture(scope='module')
def distilled(folder, tmp_path_factory):
    """The same weights as a distilled model."""
    copy = tmp_path_factory.mktemp('distilled') / 'model'
    shutil.copytree(folder, copy)
    index = copy / 'model_index.json'
    index.write_text(json.dumps(json.loads(index.read_text()) | {'is_distilled': True}))
    return copy


@pytest.fixture(scope='module')
def conditioned(folder):
    """Parameters, and the conditioning of PROMPTS and of the empty prompt."""
    pipeline, params = load_pipeline(folder, text_length=LENGTH)
    encode = jax.jit(pipeline.encode)
    found = encode(params, *pipeline.tokenize([*PROMPTS, '']))
    return params, {'context': found['context'][:3]}, {'context': found['context'][3:]}


def ours(folder, conditioned, height, width, steps, guidance, noise, *, scan=False):
    pipeline = open_pipeline(folder, text_length=LENGTH, scan=scan)
    params, conditioning, negative = conditioned
    base = (
        params['transformer']
        if not scan
        else load_pipeline(folder, text_length=LENGTH, scan=True)[1]['transformer']
    )
    velocity = pipeline.velocity_fn(
        base,
        None,
        conditioning,
        guidance,
        height,
        width,
        negative=negative if pipeline.takes_negative(guidance) else None,
    )
    latents = ode_rollout(velocity, jnp.asarray(noise), pipeline.sigmas(steps, height, width))
    images, finite = compiled.decode(pipeline, params, latents, height, width)
    assert finite.all()
    # where Flux2KleinPipeline returns them: in the autoencoder's layout and scale
    return np.asarray(pipeline.to_vae(params, latents, height, width)), np.asarray(images)


@pytest.fixture(scope='module')
def opened():
    return functools.cache(functools.partial(official.opened, 'Flux2KleinPipeline'))


@pytest.mark.parametrize(
    'kind, height, width, steps, guidance',
    [
        ('base', 48, 80, 3, 4.0),
        ('base', 32, 96, 8, 1.0),
        ('distilled', 80, 48, 4, 4.0),
        ('distilled', 16, 16, 1, 1.0),
    ],
)
def test_random_folder_makes_the_official_picture(
    folder, distilled, conditioned, opened, kind, height, width, steps, guidance
):
    where = {'base': folder, 'distilled': distilled}[kind]
    tokens = height * width // 256
    noise = np.random.default_rng(0).standard_normal((3, tokens, 64)).astype(np.float32)
    call = height, width, steps, guidance, noise
    packed = noise.reshape(len(noise), height // 16, width // 16, -1)
    expected, expected_images = official.pictures(
        opened(where), PROMPTS, *call[:-1], packed, max_sequence_length=LENGTH
    )
    for scan in (False, True) if height == 48 else (True,):
        latents, images = ours(where, conditioned, *call, scan=scan)
        official.check_latents(latents, expected)
        official.check_images(images, expected_images)


def test_conditioning_is_that_of_the_official_pipeline(folder, conditioned, opened):
    torch = pytest.importorskip('torch')
    pipe = opened(folder)
    with torch.no_grad():
        expected, ids = pipe.encode_prompt(list(PROMPTS), max_sequence_length=LENGTH)
    found = np.asarray(conditioned[1]['context'])
    assert np.abs(found - expected.numpy()).max() <= 1e-5 * np.abs(expected.numpy()).max()
    assert ids.shape == (3, LENGTH, 4)


def test_guidance_is_for_base_models(folder, distilled):
    base, few_steps = (open_pipeline(f, text_length=LENGTH) for f in (folder, distilled))
    assert base.takes_negative(4.0) and not base.takes_negative(1.0)
    assert not few_steps.takes_negative(4.0)


@pytest.mark.parametrize('steps', [1, 4, 28, 200, 250])
@pytest.mark.parametrize('side', [64, 512, 1024, 2048])
def test_grid_is_that_of_the_official_scheduler(folder, steps, side):
    pytest.importorskip('torch')
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

    pipeline = open_pipeline(folder, text_length=LENGTH)
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipeline.scheduler)
    scheduler.set_timesteps(
        sigmas=np.linspace(1.0, 1 / steps, steps), mu=compute_empirical_mu((side // 16) ** 2, steps)
    )
    expected = scheduler.sigmas.numpy()
    np.testing.assert_allclose(pipeline.sigmas(steps, side, side), expected, rtol=1e-6)


def test_encodes_images_as_the_official_pipeline(folder, conditioned, opened):
    torch = pytest.importorskip('torch')
    pipe = opened(folder)
    pipeline, params = open_pipeline(folder, text_length=LENGTH), conditioned[0]
    images = np.random.default_rng(1).integers(0, 256, (2, 32, 48, 3)).astype(np.uint8)
    signed = torch.from_numpy(images.astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = pipe._pack_latents(pipe._encode_vae_image(signed, None)).numpy()
    found = jax.jit(lambda x: pipeline.encode_images(params, x, 32, 48))(images)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    back = pipeline.from_vae(params, pipeline.to_vae(params, found, 32, 48), 32, 48)
    np.testing.assert_allclose(back, found, atol=1e-5)


def test_saves_what_it_loads(folder, tmp_path):
    pipeline, params = load_pipeline(folder, text_length=LENGTH, scan=True)
    save_pipeline(tmp_path / 'copy', pipeline, params)
    for name in ('transformer', 'vae', 'text_encoder'):
        (original,) = (folder / name).glob('*.safetensors')
        assert (tmp_path / 'copy' / name / original.name).read_bytes() == original.read_bytes()
    index = (tmp_path / 'copy' / 'model_index.json').read_text()
    assert index == (folder / 'model_index.json').read_text()
    assert json.loads(index)['is_distilled'] is False


def test_a_prompt_is_read_to_its_end_or_not(folder):
    pipeline = open_pipeline(folder, text_length=LENGTH)
    assert pipeline.reads(['cat cat', PROMPTS[2], 'cat']).tolist() == [True, False, True]


@pytest.mark.parametrize(
    'path, change, said',
    [
        ('model_index.json', {'is_distilled': 'yes'}, 'is_distilled.*bool'),
        ('transformer/config.json', {'joint_attention_dim': 24}, 'joint_attention_dim=24.*48'),
        ('transformer/config.json', {'in_channels': 128}, 'in_channels=128.*64'),
        ('transformer/config.json', {'guidance_embeds': True}, 'guidance_embeds=True'),
        ('text_encoder/config.json', {'num_hidden_layers': 24}, 'there is no 27'),
    ],
)
def test_parts_that_do_not_fit_are_named(folder, tmp_path, path, change, said):
    copy = tmp_path / 'model'
    shutil.copytree(folder, copy)
    file = copy / path
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=said):
        open_pipeline(copy, text_length=LENGTH)


def test_a_tokenizer_without_a_template_is_named(folder, tmp_path):
    copy = tmp_path / 'model'
    shutil.copytree(folder, copy)
    (copy / 'tokenizer' / 'chat_template.jinja').unlink()
    with pytest.raises(ValueError, match='tokenizer has no chat template'):
        open_pipeline(copy, text_length=LENGTH)
