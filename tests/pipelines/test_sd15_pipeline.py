"""The whole chain of Stable Diffusion 1 against the official torch pipeline with its DDIM
scheduler; and one training iteration.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import sd15_pickscore, tiny_ocr
from densegrpo_jax.config.methods import METHODS
from densegrpo_jax.core.diffusion_path import velocity_from_noise
from densegrpo_jax.core.ode_rollout import ode_rollout
from densegrpo_jax.networks import attention, lora, unet
from densegrpo_jax.networks.lora import LoraConfig, init_adapters
from densegrpo_jax.pipelines.folder import load_pipeline, open_pipeline
from densegrpo_jax.pipelines.sd15 import Sd15Pipeline
from densegrpo_jax.pipelines.weights import lora_files
from densegrpo_jax.pipelines.weights.lora_reading import FILENAME, read_layers
from densegrpo_jax.runtime.streams import key_data
from densegrpo_jax.sampling.sampler import make_rollout
from densegrpo_jax.sampling.schedule import make_schedule
from densegrpo_jax.sampling.session import open_base
from tests import compiled, miniature
from tests.meshes import data_mesh, one_device
from tests.pipelines import official
from tests.training.small_run import first_update

PROMPTS = miniature.PROMPTS[:2]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return miniature.random_sd15(tmp_path_factory.mktemp('sd15'))


@pytest.mark.parametrize('guidance', [1.0, 7.5])
def test_random_folder_makes_the_official_picture(folder, guidance):
    diffusers = pytest.importorskip('diffusers')
    options = dict(safety_checker=None, requires_safety_checker=False)
    pipe = official.opened('StableDiffusionPipeline', folder, **options)
    assert isinstance(pipe.scheduler, diffusers.DDIMScheduler)
    noise = np.random.default_rng(0).standard_normal((2, 4, 6, 4)).astype(np.float32)
    expected, expected_images = official.pictures(pipe, PROMPTS, 32, 48, 5, guidance, noise)

    pipeline, params = load_pipeline(folder, text_length=1)
    conditioning = compiled.encode(pipeline, params, PROMPTS)
    negative = compiled.encode(pipeline, params, ['']) if guidance != 1 else None
    velocity = pipeline.velocity_fn(
        params['transformer'], None, conditioning, guidance, 32, 48, negative=negative
    )
    sigmas = pipeline.sigmas(5, 32, 48)
    latents = ode_rollout(velocity, pipeline.initial_scale(sigmas) * noise, sigmas)
    images, finite = compiled.decode(pipeline, params, latents, 32, 48)
    ours = np.asarray(pipeline.spatial(latents, 32, 48))
    assert finite.all()
    official.check_latents(ours, expected)
    assert np.abs(np.asarray(images, np.int32) - expected_images).max() <= 1 and images.std() > 5


@pytest.mark.parametrize('layout', ['peft', pytest.param('kohya', marks=pytest.mark.slow)])
def test_adapters_of_a_file_draw_the_same_in_torch(layout, folder, tmp_path):
    """Diffusers looks for them under the name of the U-Net, and ComfyUI for those of kohya, as the
    card says.
    """
    torch = pytest.importorskip('torch')
    pytest.importorskip('peft')
    from diffusers import StableDiffusionPipeline

    config = LoraConfig(2, 4.0, unet.LORA_TARGETS)
    pipeline, params = load_pipeline(folder, text_length=1, lora=config)
    names, rng = pipeline.adapter_names(), np.random.default_rng(2)
    adapters = jax.tree.map(
        lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32),
        init_adapters(config, names, params['transformer'], jax.random.key(0)),
    )
    layers = lora_files.to_layers(adapters, names, config.scale)
    tensors = (
        lora_files.peft_tensors(layers, pipeline.DENOISER)
        if layout == 'peft'
        else lora_files.kohya_tensors(
            layers, lora_files.output_widths(names, params['transformer']), pipeline.ORIGINAL
        )
    )
    lora_files.write(tmp_path / FILENAME, tensors)
    again = read_layers(tmp_path, names, pipeline.ORIGINAL)
    jax.tree.map(np.testing.assert_array_equal, again, layers)
    options = dict(torch_dtype=torch.float32, safety_checker=None, requires_safety_checker=False)
    pipe = StableDiffusionPipeline.from_pretrained(str(folder), **options)
    pipe.load_lora_weights(str(tmp_path), weight_name=FILENAME)
    x, text = rng.normal(size=(1, 4, 6, 4)), rng.normal(size=(1, 7, 16))
    x, text = x.astype(np.float32), text.astype(np.float32)
    with torch.no_grad():
        given = torch.tensor(x).permute(0, 3, 1, 2)
        theirs = pipe.unet(given, torch.tensor([1]), torch.tensor(text)).sample
    theirs = theirs.permute(0, 2, 3, 1).numpy()
    merged, time = lora.merge(params['transformer'], adapters, config.scale), np.array([1.0])
    network = jax.jit(
        lambda weights: pipeline.modules['transformer'].apply({'params': weights}, x, text, time)
    )
    ours, base = np.asarray(network(merged)), np.asarray(network(params['transformer']))
    assert np.abs(base - ours).max() > 1e-2 * np.abs(ours).max()  # the adapters matter
    assert np.abs(theirs - ours).max() <= 1e-4 * np.abs(ours).max()


class Constant:
    """The parts of the pipeline that rollouts use, with a network that predicts the same noise E
    everywhere and a decoder that shows its latents.
    """

    scheduler = miniature.SD15_SCHEDULER
    sigmas, initial_scale = Sd15Pipeline.sigmas, Sd15Pipeline.initial_scale
    spatial, end_scale = Sd15Pipeline.spatial, Sd15Pipeline.end_scale
    E = np.random.default_rng(1).normal(size=(2, 3, 4)).astype(np.float32)

    def latent_shape(self, height, width):
        return self.E.shape

    def velocity_fn(self, *_, **__):
        return velocity_from_noise(lambda x, _: jnp.broadcast_to(self.E, x.shape), self.scheduler)

    def decode(self, params, latents, height, width):
        return self.spatial(latents, height, width), jnp.isfinite(latents).all((1, 2, 3))


def test_predictions_are_decoded_on_their_own_scale():
    """A prediction is (x_k - sigma_k E) / alpha_k in the model's coordinates, where the grid ends
    at s_T > 0; the last latents are x_T itself.
    """
    config, pipeline = tiny_ocr.get_config(), Constant()
    config.update_from_flattened_dict(
        {
            **METHODS['sdpo'].overrides,
            **{'rollout.steps': 4, 'rollout.group': 2, 'rollout.kernel': 'cps'},
            **{'rollout.noise': 'ddim', 'rollout.level': 1.0},
        }
    )
    mesh = one_device()
    schedule = make_schedule(pipeline, config)
    text, key = {'context': np.zeros((1, 1, 1), np.float32)}, key_data(jax.random.key(0))
    rollout, shown, _ = make_rollout(pipeline, config, schedule, mesh)(
        {'transformer': {}}, None, text, None, key, np.arange(1), schedule.noise_levels
    )
    s = schedule.sigmas.astype(np.float64)
    assert s[-1] > 0.02 and pipeline.end_scale < 0.98
    wide = lambda a: a.reshape(-1, 1, 1, 1, 1)
    x = np.asarray(rollout.latents, np.float64) / wide(np.sqrt(s**2 + (1 - s) ** 2))
    alpha, sigma = ((1 - s) / np.hypot(s, 1 - s), s / np.hypot(s, 1 - s))
    predicted = (x - wide(sigma) * pipeline.E) / wide(alpha)
    plan, close = rollout.plan, dict(rtol=2e-5, atol=2e-5)
    of = lambda kind, k: shown[plan.sources_of(kind)[k]]
    for k in (0, 3):  # the first and the last
        np.testing.assert_allclose(of('x0hat', k), predicted[k], **close)
    anchor = np.asarray(rollout.predictions.anchor[0])
    np.testing.assert_allclose(of('anchor', 0), predicted[anchor, [0, 1]], **close)
    np.testing.assert_allclose(of('state', 4), x[4], **close)


def test_opens_for_any_mesh_with_plain_attention_alone(folder):
    config = tiny_ocr.get_config()
    config.model.path, config.lora.targets = str(folder), ('attn1.to_q',)
    for devices in (1, 2):
        mesh = data_mesh(devices)
        assert open_base(config, mesh)[1].GUIDANCE == 'cfg'
        with pytest.raises(ValueError, match="set model.attention='xla'"):
            open_pipeline(folder, text_length=1, attend=attention.InPlace(attention.cudnn, mesh))


@pytest.mark.slow
def test_the_recipe_trains_with_ddim_noise(folder, tmp_path):
    mesh = data_mesh(2)
    small = {'model.width': 32, 'rollout.steps': 4}
    first = first_update(sd15_pickscore, folder, tmp_path, mesh, **small)
    assert first['train/ratio_deviation_first'] <= 1e-6 and first['train/grad_norm'] > 0
    # Guided; of four transitions the last is deterministic, so two states are completed.
    assert first['train/nfe'] == 2 * 4 * (4 + 3 + 2)
