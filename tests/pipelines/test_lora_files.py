"""Adapter files: what is written opens in torch Diffusers and draws the same picture, in every
layout; and what is read back is equal.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densegrpo_jax.core.ode_rollout import ode_rollout
from densegrpo_jax.networks import flux2, lora, sd3, zimage
from densegrpo_jax.networks.lora import LoraConfig, init_adapters
from densegrpo_jax.networks.names import FLUX_TARGETS
from densegrpo_jax.pipelines.folder import load_pipeline
from densegrpo_jax.pipelines.saving import save_pipeline
from densegrpo_jax.pipelines.weights import lora_files, lora_reading
from tests import compiled, miniature

PROMPT = 'A neon sign that says "HELLO"'
SIZE = (32, 64)
TARGETS = {
    'flux': FLUX_TARGETS,
    'klein': flux2.LORA_TARGETS,
    'zimage': zimage.LORA_TARGETS,
    'sd3': sd3.LORA_TARGETS,
}
LENGTH = 24  # tokens of a prompt


def opened(kind, folder, scan=False, targets=None):
    """(pipeline, params, adapters that change the picture, LoRA config)."""
    config = LoraConfig(3, 6.0, targets or TARGETS[kind])
    pipeline, params = load_pipeline(folder, text_length=LENGTH, lora=config, scan=scan)
    fresh = lambda base: init_adapters(config, pipeline.adapter_names(), base, jax.random.key(0))
    draw = lambda path, leaf: jnp.asarray(
        0.5 * np.random.default_rng(len(str(path))).standard_normal(leaf.shape), leaf.dtype
    )
    adapters = jax.eval_shape(fresh, params['transformer'])
    return pipeline, params, jax.tree_util.tree_map_with_path(draw, adapters), config


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp('pipelines')
    return {kind: getattr(miniature, f'random_{kind}')(root / kind) for kind in TARGETS}


def in_layout(layout, layers, pipeline, params):
    """The tensors of an adapter file."""
    if layout == 'peft':
        return lora_files.peft_tensors(layers)
    widths = lora_files.output_widths(pipeline.adapter_names(), params['transformer'])
    return lora_files.kohya_tensors(layers, widths, pipeline.ORIGINAL)


DRAWN = {}  # programs by their pipelines, whose weights are arguments


def our_latents(pipeline, params, adapters, noise):
    def draw(base, adapters, conditioning, x):
        velocity = pipeline.velocity_fn(base, adapters, conditioning, 1.0, *SIZE)
        return ode_rollout(velocity, x, pipeline.sigmas(3, *SIZE))

    program = DRAWN.setdefault(compiled.key_of(pipeline), jax.jit(draw))
    conditioning = compiled.encode(pipeline, params, [PROMPT])
    return np.asarray(program(params['transformer'], adapters, conditioning, noise))


def torch_latents(kind, folder, noise, lora=None):
    torch = pytest.importorskip('torch')
    pytest.importorskip('peft')
    import diffusers

    torch.set_num_threads(1)
    pipe = diffusers.DiffusionPipeline.from_pretrained(str(folder), torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    if lora is not None:
        pipe.load_lora_weights(str(lora.parent), weight_name=lora.name)
    given = torch.tensor(np.asarray(noise))
    if kind == 'klein':
        given = given.reshape(1, SIZE[0] // 16, SIZE[1] // 16, -1)
    if kind != 'flux':
        given = given.permute(0, 3, 1, 2)
    out = pipe(
        prompt=PROMPT,
        height=SIZE[0],
        width=SIZE[1],
        num_inference_steps=3,
        guidance_scale=0.0 if kind == 'zimage' else 1.0,  # none
        max_sequence_length=LENGTH,
        latents=given,
        output_type='latent',
    ).images
    return out.numpy() if kind == 'flux' else out.permute(0, 2, 3, 1).numpy()


def as_torch_returns(kind, pipeline, params, latents):
    """Flux2KleinPipeline returns latents in the autoencoder's layout and scale."""
    return pipeline.to_vae(params, latents, *SIZE) if kind == 'klein' else latents


def close(got, want):
    return np.abs(got - want).max() <= 1e-4 * np.abs(want).max()


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    'kind, layout',
    [
        ('flux', 'peft'),
        slow('flux', 'kohya'),
        ('sd3', 'peft'),
        slow('klein', 'peft'),
        ('klein', 'kohya'),
        ('zimage', 'peft'),
        slow('zimage', 'kohya'),
    ],
)
def test_torch_draws_the_same_picture_from_the_file(kind, layout, folders, tmp_path):
    # Diffusers converts kohya's single blocks for the released width only; test_kohya_joins_layers
    # looks at those.
    targets = (
        tuple(rf'transformer_blocks\.\d+\.{t}' for t in FLUX_TARGETS)
        if (kind, layout) == ('flux', 'kohya')
        else None
    )
    pipeline, params, adapters, config = opened(kind, folders[kind], targets=targets)
    noise = jax.random.normal(jax.random.key(1), (1, *pipeline.latent_shape(*SIZE)))
    layers = lora_files.to_layers(adapters, pipeline.adapter_names(), config.scale)
    tensors = in_layout(layout, layers, pipeline, params)
    lora_files.write(tmp_path / lora_reading.FILENAME, tensors)
    ours = our_latents(pipeline, params, adapters, noise)
    assert not close(our_latents(pipeline, params, None, noise), ours)  # the adapters matter
    theirs = torch_latents(kind, folders[kind], noise, tmp_path / lora_reading.FILENAME)
    assert close(theirs, as_torch_returns(kind, pipeline, params, ours))


def test_kohya_joins_layers(folders):
    """linear1 of a single block is q, k, v and the first layer of the feed-forward; the last is not
    adapted and gets zeros.
    """
    pipeline, params, adapters, config = opened('flux', folders['flux'])
    layers = lora_files.to_layers(adapters, pipeline.adapter_names(), config.scale)
    widths = lora_files.output_widths(pipeline.adapter_names(), params['transformer'])
    tensors = in_layout('kohya', layers, pipeline, params)
    key, block = 'lora_unet_single_blocks_0_linear1', 'single_transformer_blocks.0'
    joined = tensors[f'{key}.lora_up.weight'] @ tensors[f'{key}.lora_down.weight']
    parts = [up @ down for down, up in (layers[f'{block}.attn.to_{p}'] for p in 'qkv')]
    want = np.concatenate([*parts, np.zeros((widths[f'{block}.proj_mlp'], parts[0].shape[1]))])
    np.testing.assert_allclose(joined, want, atol=1e-6)
    # the scale is in the weights
    assert tensors[f'{key}.alpha'] == tensors[f'{key}.lora_down.weight'].shape[0]


@pytest.mark.parametrize('scan', [False, True])
def test_merged_weights_are_the_adapted_network(scan, folders, tmp_path):
    pipeline, params, adapters, config = opened('flux', folders['flux'], scan)
    noise = jax.random.normal(jax.random.key(1), (1, *pipeline.latent_shape(*SIZE)))
    want = our_latents(pipeline, params, adapters, noise)
    merged = {**params, 'transformer': lora.merge(params['transformer'], adapters, config.scale)}
    assert close(our_latents(pipeline, merged, None, noise), want)
    save_pipeline(tmp_path / 'merged', pipeline, merged)
    again, read = load_pipeline(tmp_path / 'merged', text_length=LENGTH)
    assert close(our_latents(again, read, None, noise), want)


@pytest.mark.parametrize(
    'kind, scan, layout',
    [
        ('flux', False, 'peft'),
        ('flux', True, 'peft'),
        ('flux', True, 'kohya'),
        ('sd3', True, 'peft'),
        ('klein', True, 'peft'),
        ('klein', False, 'kohya'),
        ('zimage', True, 'peft'),
        ('zimage', True, 'kohya'),
    ],
)
def test_reads_what_it_writes(kind, scan, layout, folders, tmp_path):
    pipeline, params, adapters, config = opened(kind, folders[kind], scan)
    names = pipeline.adapter_names()
    layers = lora_files.to_layers(adapters, names, config.scale)
    assert set(layers) == set(config.select(names))
    file = tmp_path / 'adapter.safetensors'
    lora_files.write(file, in_layout(layout, layers, pipeline, params))
    read = lora_reading.read_layers(file, names, pipeline.ORIGINAL)
    shapes = lora_reading.layer_shapes(file, names, pipeline.ORIGINAL)
    assert shapes == {name: (down.shape, up.shape) for name, (down, up) in read.items()}
    again = lora_files.from_layers(read, names, config, adapters)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), again, adapters)


@pytest.mark.parametrize('scan', [False, True])
def test_a_lower_rank_is_filled_up_with_what_changes_nothing(scan, folders):
    pipeline, params, adapters, config = opened('flux', folders['flux'], scan)
    names = pipeline.adapter_names()
    layers = lora_files.to_layers(adapters, names, config.scale)
    short = {name: (down[:2], up[:, :2]) for name, (down, up) in layers.items()}
    read = lora_files.from_layers(short, names, config, adapters)
    again = lora_files.to_layers(read, names, config.scale)
    for name, (down, up) in short.items():
        np.testing.assert_allclose(again[name][1] @ again[name][0], up @ down, atol=1e-5)
        np.testing.assert_array_equal(again[name][0][2], layers[name][0][2])  # the fresh row
        assert not again[name][1][:, 2].any()


def test_what_does_not_fit_is_named(folders, tmp_path):
    pipeline, params, adapters, config = opened('flux', folders['flux'])
    names = pipeline.adapter_names()
    layers = lora_files.to_layers(adapters, names, config.scale)
    first = sorted(layers)[0]
    with pytest.raises(ValueError, match=first):
        lora_files.from_layers(
            {k: v for k, v in layers.items() if k != first}, names, config, adapters
        )
    with pytest.raises(ValueError, match='lora.rank=2'):
        lora_files.from_layers(layers, names, LoraConfig(2, 4.0, config.targets), adapters)
    with pytest.raises(ValueError, match=r'has shape .*, the network needs'):
        odd = {**layers, first: (layers[first][0][:, 1:], layers[first][1])}
        lora_files.from_layers(odd, names, config, adapters)
    with pytest.raises(ValueError, match='peft layout'):
        lora_files.kohya_tensors({'x_embedder': layers[first]}, {}, pipeline.ORIGINAL)
    with pytest.raises(ValueError, match='peft layout'):
        lora_files.kohya_tensors(layers, {}, None)
