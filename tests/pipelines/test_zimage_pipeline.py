"""The whole chain of Z-Image against the official torch ZImagePipeline, with and without
classifier-free guidance.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densegrpo_jax.core.ode_rollout import ode_rollout
from densegrpo_jax.pipelines.folder import load_pipeline, open_pipeline
from densegrpo_jax.pipelines.saving import save_pipeline
from tests import compiled, miniature
from tests.pipelines import official
from tests.qwen_folder import random_tokenizer

PROMPTS = ['a neon sign that says "HELLO"', '', 'cat ' * 60]  # the last one is cut
LENGTH = 40  # some texts fill one unit of 32 tokens, others two


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return miniature.random_zimage(tmp_path_factory.mktemp('zimage'))


@pytest.fixture(scope='module')
def conditioned(folder):
    """Parameters, and the conditioning of PROMPTS and of the empty prompt."""
    pipeline, params = load_pipeline(folder, text_length=LENGTH)
    found = jax.jit(pipeline.encode)(params, *pipeline.tokenize([*PROMPTS, '']))
    part = lambda rows: {name: a[rows] for name, a in found.items()}
    return params, part(slice(3)), part(slice(3, None))


@pytest.fixture(scope='module')
def torch_pipe(folder):
    pipe = official.opened('ZImagePipeline', folder)
    given = pipe.scheduler.set_timesteps

    @functools.wraps(given)  # the pipeline asks for its arguments
    def in_double(*args, **options):
        # The network gets (1000 - t) / 1000. In float32 that is off 1 - s by up to half a step of
        # 1000, which its angles multiply by 1000: up to 1e-4 of the latents, by CPU.
        given(*args, **options)
        pipe.scheduler.timesteps = pipe.scheduler.sigmas[:-1].double() * 1000

    pipe.scheduler.set_timesteps = in_double
    return pipe


def torch_pictures(pipe, height, width, steps, guidance, noise, **options):
    """`guidance` as here: that of the pipeline counts from 0."""
    call = height, width, steps, guidance - 1, noise
    return official.pictures(pipe, PROMPTS, *call, max_sequence_length=LENGTH, **options)


def test_conditioning_is_that_of_the_official_pipeline(conditioned, torch_pipe):
    import torch

    with torch.no_grad():
        expected, _ = torch_pipe.encode_prompt(
            list(PROMPTS), do_classifier_free_guidance=False, max_sequence_length=LENGTH
        )
    context, mask = (np.asarray(conditioned[1][name]) for name in ('context', 'mask'))
    assert [len(e) for e in expected] == mask.sum(1).tolist() and len(set(mask.sum(1))) == 3
    for row, kept, want in zip(context, mask, expected):
        assert np.abs(row[kept] - want.numpy()).max() <= 1e-5 * want.abs().max()


NORMED, CUT = {'cfg_normalization': 0.9}, {'cfg_truncation': 0.3}


@pytest.mark.parametrize(
    'height, width, steps, guidance, options',
    [
        (48, 80, 3, 5.0, {}),
        (32, 112, 8, 1.0, {}),
        (16, 16, 1, 2.5, {}),
        (16, 48, 4, 5.0, NORMED),
        (16, 48, 4, 5.0, NORMED | CUT),
    ],
)
def test_random_folder_makes_the_official_picture(
    folder, conditioned, torch_pipe, height, width, steps, guidance, options
):
    shape = 3, height // 8, width // 8, 16
    noise = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    call = height, width, steps, guidance, noise
    expected, expected_images = torch_pictures(torch_pipe, *call, **options)
    params, conditioning, negative = conditioned
    for scan in (False, True) if height == 48 else (False,):
        pipeline = open_pipeline(folder, text_length=LENGTH, scan=scan, **options)
        base = params['transformer']
        if scan:
            base = load_pipeline(folder, text_length=LENGTH, scan=True)[1]['transformer']
        velocity = pipeline.velocity_fn(
            base,
            None,
            conditioning,
            guidance,
            height,
            width,
            negative=negative if pipeline.takes_negative(guidance) else None,
        )
        grid = pipeline.sigmas(steps, height, width)
        latents = ode_rollout(velocity, jnp.asarray(noise), grid)
        images, finite = compiled.decode(pipeline, params, latents, height, width)
        assert finite.all()
        official.check_latents(latents, expected)
        official.check_images(images, expected_images)
    if options:  # which change it
        plain, _ = torch_pictures(torch_pipe, *call)
        assert np.abs(plain - expected).max() > 1e-2 * np.abs(expected).max()


def test_the_side_of_the_padding_does_not_matter(folder, conditioned):
    """The prompt's tokens come first in the conditioning."""
    pipeline = open_pipeline(folder, text_length=LENGTH)
    ids, mask = pipeline.tokenize(PROMPTS[:1])
    left = random_tokenizer(padding_side='left')
    other = pipeline.TEXT_ENCODERS[0].tokenize(left, PROMPTS[:1], LENGTH)
    assert other[1][0, -1] and not other[1][0, 0] and mask[0, 0]
    found = jax.jit(pipeline.encode)(conditioned[0], *other)
    assert (np.asarray(found['mask']) == mask).all()


def test_saves_what_it_loads_and_reads_the_whole_language_model(folder, tmp_path):
    pipeline, params = load_pipeline(folder, text_length=LENGTH, scan=True)
    save_pipeline(tmp_path / 'copy', pipeline, params)
    for name in ('transformer', 'vae', 'text_encoder'):
        (original,) = (folder / name).glob('*.safetensors')
        assert (tmp_path / 'copy' / name / original.name).read_bytes() == original.read_bytes()
    index = (tmp_path / 'copy' / 'model_index.json').read_text()
    assert index == (folder / 'model_index.json').read_text()
    import safetensors.numpy

    file = tmp_path / 'copy' / 'text_encoder' / 'model.safetensors'
    tensors = safetensors.numpy.load_file(file)
    head = {'lm_head.weight': np.zeros((2, 2), np.float32)}
    safetensors.numpy.save_file({f'model.{k}': v for k, v in tensors.items()} | head, file)
    _, again = load_pipeline(tmp_path / 'copy', text_length=LENGTH, scan=True)
    jax.tree.map(np.testing.assert_array_equal, again['text_encoder'], params['text_encoder'])


@pytest.mark.parametrize(
    'change, said',
    [({'cap_feat_dim': 12}, 'cap_feat_dim=12.*16'), ({'in_channels': 8}, 'in_channels=8.*16')],
)
def test_parts_that_do_not_fit_are_named(folder, tmp_path, change, said):
    import shutil

    copy = tmp_path / 'model'
    shutil.copytree(folder, copy)
    file = copy / 'transformer' / 'config.json'
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=said):
        open_pipeline(copy, text_length=LENGTH)


def test_an_image_beyond_the_positions_is_refused(folder):
    pipeline = open_pipeline(folder, text_length=LENGTH)
    assert pipeline.latent_shape(512, 512) == (64, 64, 16)
    with pytest.raises(ValueError, match='axes_lens'):
        pipeline.latent_shape(528, 512)
