"""CLIP against Transformers' torch CLIPModel: image tower, both towers from a folder, OpenCLIP's
layout, and the picture preprocessing.
"""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from densegrpo_jax.networks import clip_vision
from densegrpo_jax.pipelines import clip
from densegrpo_jax.pipelines.clip_images import ImageSpec, preprocess
from densegrpo_jax.pipelines.weights import files as weights
from tests.clip_folder import photo, random_clip
from tests.networks import parity
from tests.networks.parity import relative_error

# vision_config of laion/CLIP-ViT-H-14-laion2B-s32B-b79K, with some of the keys that Transformers 4
# put into every nested config.
VIT_H_JSON = {
    '_name_or_path': '',
    'add_cross_attention': False,
    'architectures': None,
    'attention_dropout': 0.0,
    'bad_words_ids': None,
    'bos_token_id': None,
    'chunk_size_feed_forward': 0,
    'do_sample': False,
    'dropout': 0.0,
    'eos_token_id': None,
    'hidden_act': 'gelu',
    'hidden_size': 1280,
    'image_size': 224,
    'initializer_factor': 1.0,
    'initializer_range': 0.02,
    'intermediate_size': 5120,
    'layer_norm_eps': 1e-05,
    'model_type': 'clip_vision_model',
    'num_attention_heads': 16,
    'num_channels': 3,
    'num_hidden_layers': 32,
    'patch_size': 14,
    'projection_dim': 1024,
    'pruned_heads': {},
    'top_k': 50,
    'torch_dtype': None,
    'use_bfloat16': False,
}


@pytest.mark.parametrize(
    'shape',
    [
        dict(
            hidden_size=24,
            intermediate_size=40,
            num_hidden_layers=3,
            num_attention_heads=3,
            image_size=28,
            patch_size=7,
        ),
        # A last strip of pixels that no patch covers.
        dict(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=1,
            image_size=30,
            patch_size=14,
            hidden_act='gelu',
        ),
    ],
    ids=['quick_gelu', 'gelu'],
)
def test_image_tower_equals_torch(shape, tmp_path):
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    build = lambda **config: transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(**config)
    )
    # the initial scale 0.02 would hide mistakes behind the norms
    reference = parity.reference(build, dict(projection_dim=12, **shape), tmp_path, scale=0.2)
    model = clip_vision.ClipVisionModel(
        clip_vision.ClipVisionConfig.from_json(json.loads((tmp_path / 'config.json').read_text()))
    )
    images = (
        np.random.default_rng(0)
        .standard_normal((3, shape['image_size'], shape['image_size'], 3))
        .astype(np.float32)
    )
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)['params']
    params = weights.load_weights(tmp_path, model.weight_rules(), shapes, prefix='vision_model.')
    with torch.no_grad():
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        expected = reference(pixels), reference.vision_model(pixels)
    states, features = jax.jit(model.apply)({'params': params}, images)
    assert relative_error(features, expected[0].image_embeds) < 1e-5
    assert relative_error(states, expected[1].last_hidden_state) < 1e-5
    with pytest.raises(ValueError, match=r'expected \[B, '):
        model.apply({'params': params}, images[:, :-1])


def test_released_configurations_are_read():
    config = clip_vision.ClipVisionConfig.from_json(VIT_H_JSON)
    assert (config.grid, config.hidden_size, config.projection_dim, config.hidden_act) == (
        16,
        1280,
        1024,
        'gelu',
    )
    with pytest.raises(ValueError, match="unknown key 'window'"):
        clip_vision.ClipVisionConfig.from_json(VIT_H_JSON | {'window': 7})
    with pytest.raises(ValueError, match="hidden_act='relu'"):
        clip_vision.ClipVisionConfig(hidden_act='relu')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return random_clip(tmp_path_factory.mktemp('clip'), shards=True)


def test_both_towers_from_a_folder_equal_torch(folder):
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    model = clip.read_clip(folder)
    assert len(list(folder.glob('model-*.safetensors'))) > 1
    params = clip.load_params(model, folder)
    reference = transformers.CLIPModel.from_pretrained(folder).eval()
    # the last one is longer than the tower
    prompts = ['A neon sign that says "HELLO"', 'x', 'a taxi ' * 30]
    ids = model.tokenize(prompts)
    assert ids.shape == (3, 24)
    pixels = np.random.default_rng(1).integers(0, 256, (2, 28, 28, 3), np.uint8)
    normalised = np.asarray(preprocess(pixels, model.image_spec)).transpose(0, 3, 1, 2)
    with torch.no_grad():
        expected = reference(
            input_ids=torch.from_numpy(ids).long(), pixel_values=torch.from_numpy(normalised.copy())
        )
    assert relative_error(jax.jit(model.text_features)(params, ids), expected.text_embeds) < 1e-5
    assert (
        relative_error(jax.jit(model.image_features)(params, pixels), expected.image_embeds) < 1e-5
    )
    assert float(params['logit_scale']) == reference.logit_scale.item()


def test_the_image_tower_alone_and_its_dtype(folder):
    both, alone = clip.read_clip(folder), clip.read_clip(folder, text=False, dtype=jnp.bfloat16)
    params, half = clip.load_params(both, folder), clip.load_params(alone, folder)
    assert (
        set(half) == {'vision_model'}
        and half['vision_model']['patch_embedding'].dtype == jnp.bfloat16
    )
    pixels = np.random.default_rng(2).integers(0, 256, (2, 28, 28, 3), np.uint8)
    exact, rounded = (
        jax.jit(both.image_features)(params, pixels),
        jax.jit(alone.image_features)(half, pixels),
    )
    assert rounded.dtype == jnp.float32
    assert 1e-5 < np.abs(exact - rounded).max() < 0.03
    in_bfloat16 = clip.load_params(clip.read_clip(folder, dtype=jnp.bfloat16), folder)
    # its exponential multiplies the score: rounded it would be off by 1 %
    assert in_bfloat16['logit_scale'] == params['logit_scale']


OPEN_CLIP_NAMES = (  # in OpenCLIP's module, from Transformers'
    (r'encoder\.layers', 'transformer.resblocks'),
    ('self_attn', 'attn'),
    ('fc1', 'c_fc'),
    ('fc2', 'c_proj'),
    ('final_layer_norm', 'ln_final'),
    ('layer_norm(.)', r'ln_\1'),
    ('pre_layrnorm', 'ln_pre'),
    ('post_layernorm', 'ln_post'),
    (r'embeddings\.', ''),
    (r'position_embedding\.weight', 'positional_embedding'),
    (r'patch_embedding', 'conv1'),
    (r'^text_model\.', ''),
    (r'^vision_model\.', 'visual.'),
    (r'^text_projection\.weight', 'text_projection'),
    (r'^visual_projection\.weight', 'visual.proj'),
)


def in_open_clip_s_layout(tensors):
    theirs = {}
    for key, value in tensors.items():
        if joint := re.fullmatch(r'(.*\.)q_proj\.(weight|bias)', key):
            stem, kind = joint.groups()
            key, value = (
                f'{stem}in_proj_{kind}',
                np.concatenate([tensors[f'{stem}{n}_proj.{kind}'] for n in 'qkv']),
            )
        elif re.search(r'\.[kv]_proj\.', key):
            continue
        elif '_projection' in key:
            value = np.ascontiguousarray(value.T)
        for pattern, name in OPEN_CLIP_NAMES:
            key = re.sub(pattern, name, key)
        theirs[key] = value
    return theirs


@pytest.mark.parametrize('prefix', ['', 'model.'])
def test_open_clip_s_layout_holds_the_same_weights(prefix, tmp_path):
    from safetensors.numpy import load_file, save_file

    folder = random_clip(tmp_path)
    tensors = load_file(folder / 'model.safetensors')
    theirs = {prefix + key: value for key, value in in_open_clip_s_layout(tensors).items()}
    buffers = {
        f'{tower}.embeddings.position_ids': np.arange(17)[None]
        for tower in ('text_model', 'vision_model')
    }
    save_file(tensors | buffers, folder / 'model.safetensors')  # old files hold them
    save_file(theirs, tmp_path / 'open_clip.safetensors')
    model = clip.read_clip(folder)
    expected, params = (
        clip.load_params(model, folder),
        clip.load_params(model, tmp_path / 'open_clip.safetensors'),
    )
    jax.tree.map(np.testing.assert_array_equal, params, expected)

    del theirs[f'{prefix}visual.proj']
    save_file(
        theirs | {f'{prefix}score_head': np.zeros(3, np.float32)},
        tmp_path / 'open_clip.safetensors',
    )
    for read in (clip.check_params, clip.load_params):
        with pytest.raises(ValueError, match=r'(?s)missing.*visual\.proj.*unexpected.*score_head'):
            read(model, tmp_path / 'open_clip.safetensors')


def test_a_wrong_folder_is_named(folder, tmp_path):
    def broken(name, **changes):
        copy = random_clip(tmp_path / name)
        for file, change in changes.items():
            path = copy / f'{file}.json'
            path.write_text(json.dumps(change(json.loads(path.read_text()))))
        return copy

    with pytest.raises(FileNotFoundError, match=r'config\.json does not exist; expected a folder'):
        clip.read_clip(tmp_path / 'absent')
    copy = broken('size', preprocessor_config=lambda c: c | {'size': 56, 'crop_size': 56})
    with pytest.raises(ValueError, match=r'56 pixels .*takes 28'):
        clip.read_clip(copy)
    copy = broken('resample', preprocessor_config=lambda c: c | {'resample': 2})
    with pytest.raises(ValueError, match='resample=2 is not supported, expected 3'):
        clip.read_clip(copy)
    copy = broken(
        'words', config=lambda c: c | {'text_config': c['text_config'] | {'eos_token_id': 7}}
    )
    with pytest.raises(ValueError, match='ends texts with 585.*ends them with 7'):
        clip.read_clip(copy)
    for file in ('tokenizer.json', 'vocab.json', 'merges.txt'):
        (copy / file).unlink(missing_ok=True)
    # Transformers would make an empty one
    with pytest.raises(FileNotFoundError, match='there is no tokenizer'):
        clip.read_clip(copy)
    wide = broken('wide', config=lambda c: c | {'projection_dim': 13})
    with pytest.raises(
        ValueError, match=r'visual_projection\.weight is \[12, 24\], expected \[13, 24\]'
    ):
        clip.check_params(clip.read_clip(wide), wide)


@pytest.mark.parametrize(
    ('height', 'width'), [(512, 512), (96, 160), (101, 67), (40, 50), (56, 56)]
)
def test_preprocessing_equals_the_official_processor(height, width):
    """8-bit pictures: every value. Float pictures, which are not rounded in between: within about
    one of 255 levels, 0.5 on average.
    """
    transformers = pytest.importorskip('transformers')
    rng, spec = np.random.default_rng(0), ImageSpec(size=56, crop_size=48)
    pictures = np.stack([photo(rng, height, width) for _ in range(2)])
    official = transformers.CLIPImageProcessorPil(
        size={'shortest_edge': 56}, crop_size={'height': 48, 'width': 48}
    )
    expected = official(images=[Image.fromarray(p) for p in pictures], return_tensors='np')[
        'pixel_values'
    ].transpose(0, 2, 3, 1)
    ours = np.asarray(preprocess(pictures, spec))
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected, atol=1e-6)
    difference = (
        255
        * (np.asarray(preprocess(np.float32(pictures) / 255, spec)) - expected)
        * np.float32(spec.image_std)
    )
    assert np.abs(difference).max() < 1.3 and np.sqrt(np.square(difference).mean()) < 0.5


@pytest.mark.parametrize(('height', 'width'), [(100, 67), (30, 41), (48, 20), (200, 200), (7, 9)])
def test_hpsv2_resizes_floats_and_pads(height, width):
    """Its transform: a float tensor, filtered by torch without rounding or clipping, the longer
    side to 48; black bars make it square. Sharp pixels overshoot.
    """
    torch = pytest.importorskip('torch')
    spec = ImageSpec(size=48, crop_size=48, geometry='hpsv2')
    picture = np.random.default_rng(1).choice([0, 255], (height, width, 3)).astype(np.uint8)
    scale = 48 / max(height, width)
    resized = [round(side * scale) for side in (height, width)]
    x = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    x = torch.nn.functional.interpolate(
        x, resized, mode='bicubic', antialias=True, align_corners=False
    )
    above, left = ((48 - side) // 2 for side in resized)
    expected = np.zeros((48, 48, 3), np.float32)
    expected[above : above + resized[0], left : left + resized[1]] = x[0].permute(1, 2, 0)
    if max(height, width) < 48:
        assert expected.max() > 1.01 and expected.min() < -0.01
    for given in (picture, np.float32(picture) / 255):
        ours = np.asarray(preprocess(given[None], spec))[0]
        ours = ours * np.float32(spec.image_std) + np.float32(spec.image_mean)
        np.testing.assert_allclose(ours, expected, atol=5e-6)


@pytest.mark.parametrize(('height', 'width'), [(343, 600), (600, 343), (345, 600), (96, 96)])
def test_torchvision_rounds_half_a_pixel_of_a_crop_to_even(height, width):
    """OpenAI's transform: Pillow's resize of the shorter side, then the middle by Python's round:
    at 600 x 343, of 391 pixels from pixel 84 on, where Transformers begins at 83.
    """
    sides = [int(224 * side / min(height, width)) for side in (height, width)]
    picture = photo(np.random.default_rng(2), height, width)
    small = np.asarray(Image.fromarray(picture).resize(sides[::-1], Image.Resampling.BICUBIC))
    above, left = (int(round((side - 224) / 2.0)) for side in sides)
    expected = small[above : above + 224, left : left + 224] / 255
    spec = ImageSpec(geometry='torchvision')
    ours = np.asarray(preprocess(picture[None], spec))[0]
    ours = ours * np.float32(spec.image_std) + np.float32(spec.image_mean)
    np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_preprocessor_config_of_both_generations():
    old = {
        'crop_size': 224,
        'do_center_crop': True,
        'do_convert_rgb': True,
        'do_normalize': True,
        'do_resize': True,
        'resample': 3,
        'size': 224,
        'feature_extractor_type': 'CLIPFeatureExtractor',
        'image_mean': [0.5, 0.5, 0.5],
        'image_std': [0.25, 0.25, 0.25],
    }
    assert ImageSpec.from_json(old) == ImageSpec(image_mean=(0.5,) * 3, image_std=(0.25,) * 3)
    assert ImageSpec.from_json(old | {'size': {'shortest_edge': 256}}).size == 256
    with pytest.raises(ValueError, match="size=.*expected.*'shortest_edge'"):
        ImageSpec.from_json(old | {'size': {'height': 224, 'width': 224}})
    with pytest.raises(ValueError, match='size=200 is smaller than crop_size=224'):
        ImageSpec.from_json(old | {'size': 200})
