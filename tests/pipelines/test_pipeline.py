"""The whole chain against the official torch FluxPipeline: same folder, prompt and latents, same
picture; and the folder's errors.
"""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densegrpo_jax.core.ode_rollout import ode_rollout
from densegrpo_jax.pipelines.folder import BUILTIN, load_pipeline, resolve_folder
from densegrpo_jax.pipelines.packing import (
    latent_image_ids,
    pack_latents,
    token_grid,
    unpack_latents,
)
from densegrpo_jax.pipelines.saving import save_pipeline
from tests import miniature
from tests.miniature import PROMPTS
from tests.pipelines import official

SHAPES = [
    'a photo of three red circles left of a blue square',
    'a photo of a star',
    'two orange crosses',
]


def ours(folder, height, width, steps, guidance, noise, *, batch=PROMPTS, t5_length=16):
    pipeline, params = load_pipeline(folder, text_length=t5_length)

    @jax.jit
    def drawn(params, ids, noise):
        conditioning = pipeline.encode(params, *ids)
        velocity = pipeline.velocity_fn(
            params['transformer'], None, conditioning, guidance, height, width
        )
        latents = ode_rollout(velocity, noise, pipeline.sigmas(steps, height, width))
        return latents, *pipeline.decode(params, latents, height, width)

    latents, images, finite = drawn(params, pipeline.tokenize(batch), noise)
    assert finite.all()
    return np.asarray(latents), np.asarray(images)


def torch_pictures(folder, *call, batch=PROMPTS, t5_length=16):
    pipe = official.opened('FluxPipeline', folder)
    return official.pictures(pipe, batch, *call, max_sequence_length=t5_length)


@pytest.mark.parametrize('height, width', [(32, 96), (48, 80)])
def test_random_folder_makes_the_official_picture(folder, height, width):
    noise = (
        np.random.default_rng(0).standard_normal((3, height * width // 256, 64)).astype(np.float32)
    )
    expected, expected_images = torch_pictures(folder, height, width, 4, 2.5, noise)
    latents, images = ours(folder, height, width, 4, 2.5, noise)
    official.check_latents(latents, expected)
    official.check_images(images, expected_images)


def test_schnell_makes_the_official_picture(tmp_path):
    """No guidance embedding, no dynamic shift, another number of heads."""
    folder = miniature.random_flux(
        tmp_path / 'schnell',
        heads=3,
        head_dim=12,
        guidance_embeds=False,
        scheduler=miniature.SCHNELL_SCHEDULER,
    )
    noise = np.random.default_rng(0).standard_normal((3, 3 * 7, 64)).astype(np.float32)
    expected, expected_images = torch_pictures(folder, 48, 112, 4, 0.0, noise)
    latents, images = ours(folder, 48, 112, 4, 0.0, noise)
    official.check_latents(latents, expected)
    official.check_images(images, expected_images)


@pytest.mark.parametrize(
    'name, height, width, t5_length, batch',
    [('tiny', 32, 96, 16, PROMPTS), ('tiny_shapes', 48, 48, 12, SHAPES)],
)
def test_shipped_miniature_makes_the_official_picture(name, height, width, t5_length, batch):
    noise = (
        np.random.default_rng(1).standard_normal((3, height * width // 256, 64)).astype(np.float32)
    )
    options = dict(batch=batch, t5_length=t5_length)
    _, expected = torch_pictures(BUILTIN / name, height, width, 6, 1.5, noise, **options)
    _, images = ours(BUILTIN / name, height, width, 6, 1.5, noise, **options)
    official.check_images(images, expected)


def test_saves_what_it_loads(folder, tmp_path):
    pipeline, params = load_pipeline(folder, text_length=16)
    save_pipeline(tmp_path / 'copy', pipeline, params)
    again, params_again = load_pipeline(tmp_path / 'copy', text_length=16)
    jax.tree.map(np.testing.assert_array_equal, params, params_again)
    assert (
        again.scheduler == pipeline.scheduler
        and again.tokenize(PROMPTS)[1].tolist() == pipeline.tokenize(PROMPTS)[1].tolist()
    )


def test_packing_round_trip_and_geometry():
    latents = jnp.arange(2 * 4 * 6 * 3, dtype=jnp.float32).reshape(2, 4, 6, 3)
    tokens = pack_latents(latents)
    assert tokens.shape == (2, 6, 12)
    np.testing.assert_array_equal(unpack_latents(tokens, 32, 48), latents)
    # Token (row 1, column 2), channel c, offset (dy, dx) sits at 4 c + 2 dy + dx.
    assert tokens[1, 5, 4 * 2 + 2 * 1 + 0] == latents[1, 2 * 1 + 1, 2 * 2 + 0, 2]
    np.testing.assert_array_equal(latent_image_ids(32, 48)[5], [0, 1, 2])
    with pytest.raises(ValueError, match='width=100'):
        token_grid(32, 100)


def test_bad_folders_name_what_is_wrong(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match='not a folder'):
        resolve_folder(str(tmp_path / 'absent'))
    with pytest.raises(FileNotFoundError, match='ships'):
        resolve_folder('builtin:huge')
    with pytest.raises(FileNotFoundError, match=r'hf download black-forest-labs/FLUX\.1-dev'):
        resolve_folder('black-forest-labs/FLUX.1-dev')  # the tests run offline
    broken = tmp_path / 'broken'
    shutil.copytree(folder, broken)
    (broken / 'vae' / 'config.json').unlink()
    with pytest.raises(FileNotFoundError, match='vae/config.json'):
        load_pipeline(broken, text_length=16)
    index = json.loads((broken / 'model_index.json').read_text())
    (broken / 'model_index.json').write_text(json.dumps({**index, 'text_encoder_2': [None, None]}))
    with pytest.raises(ValueError, match='text_encoder_2 is null: this model was saved without it'):
        load_pipeline(broken, text_length=16)
    (broken / 'model_index.json').write_text(json.dumps({'_class_name': 'WanPipeline'}))
    with pytest.raises(ValueError, match='WanPipeline'):
        load_pipeline(broken, text_length=16)


@pytest.mark.parametrize(
    'error, message',
    [
        ('GatedRepoError', 'accept its licence.*hf auth login'),
        ('RepositoryNotFoundError', 'does not exist.*check the id'),
        ('LocalEntryNotFoundError', 'not on this machine.*hf download some/model --local-dir DIR'),
        ('OfflineModeIsEnabled', 'no network, or offline'),
    ],
)
def test_hub_errors_say_the_way_out(error, message, monkeypatch):
    import huggingface_hub
    from huggingface_hub import errors

    def refuse(*args, **kwargs):
        kind = getattr(errors, error)
        raise kind.__new__(kind)

    monkeypatch.setattr(huggingface_hub, 'snapshot_download', refuse)
    with pytest.raises(FileNotFoundError, match=f"'some/model' .*{message}"):
        resolve_folder('some/model')
