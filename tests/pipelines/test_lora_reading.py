"""Adapter files of other tools: read at their strength, or refused with a word."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from densegrpo_jax.pipelines.weights.lora_reading import (
    FILENAME,
    KOHYA_FILENAME,
    METADATA,
    PEFT_CONFIG,
    PEFT_FILENAME,
    layer_shapes,
    read_layers,
)
from densegrpo_jax.pipelines.weights.originals import Z_IMAGE

A, B = np.ones((2, 3), np.float32), np.arange(8, dtype=np.float32).reshape(4, 2)
KOHYA = ('lora_down', 'lora_up')
OWN = {'transformer.x.to_q.alpha': np.array(8, np.float32)}  # a strength of its own


def pair(prefix='transformer.', layer='x.to_q', names=('lora_A', 'lora_B'), suffix=''):
    keys = (f'{prefix}{layer}.{name}{suffix}.weight' for name in names)
    return dict(zip(keys, (A, B)))


def test_peft_is_the_oracle(tmp_path):
    """What PEFT saves is read at the strength that PEFT adds to the layer."""
    torch, peft = pytest.importorskip('torch'), pytest.importorskip('peft')
    torch.manual_seed(0)
    for i, options in enumerate(
        (
            {'lora_alpha': 2},
            {'lora_alpha': 16},
            {'lora_alpha': 16, 'use_rslora': True},
            {'lora_alpha': 16, 'alpha_pattern': {'0': 3}, 'rank_pattern': {'1': 2}},
            {'lora_alpha': 5, 'alpha_pattern': {r'.*\.0': 7}, 'use_rslora': True},
        )
    ):
        net = torch.nn.Sequential(
            torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 4)),
            torch.nn.Sequential(torch.nn.Linear(4, 3)),
        )
        targets = ['0.0', '0.1', '1.0']
        model = peft.get_peft_model(
            net, peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=False, **options)
        )
        folder = tmp_path / str(i)
        model.save_pretrained(folder)
        layers = read_layers(folder)
        assert sorted(layers) == targets
        for name, (down, up) in layers.items():
            layer = model.base_model.model.get_submodule(name)
            expected = layer.get_delta_weight('default').detach().numpy()
            np.testing.assert_allclose(up @ down, expected, rtol=1e-5, atol=1e-6)
        assert {n: (d.shape, u.shape) for n, (d, u) in layers.items()} == layer_shapes(folder)
        assert read_layers(folder / PEFT_FILENAME).keys() == layers.keys()


@pytest.mark.parametrize(
    ('tensors', 'settings', 'scale'),
    [
        (pair(), None, 1.0),
        (pair('diffusion_model.'), None, 1.0),
        (pair(''), None, 1.0),
        (pair(names=('lora.down', 'lora.up')), None, 1.0),
        (pair('diffusion_model.', names=KOHYA), None, 1.0),
        (pair() | OWN, None, 4.0),
        (pair() | {key: value[None] for key, value in OWN.items()}, None, 4.0),
        (pair(), {'transformer.lora_alpha': 6, 'transformer.r': 2}, 3.0),
        (pair(), {'transformer.lora_alpha': 6, 'transformer.use_rslora': True}, 6 / np.sqrt(2)),
        (pair(), {'transformer.lora_alpha': 6, 'transformer.alpha_pattern': {'to_q': 10}}, 5.0),
        (pair() | OWN, {'transformer.lora_alpha': 6}, 4.0),
    ],
)
def test_layouts_of_diffusers(tmp_path, tensors, settings, scale):
    notes = {} if settings is None else {METADATA: json.dumps(settings)}
    save_file(tensors, tmp_path / FILENAME, notes)
    [(name, (down, up))] = read_layers(tmp_path).items()
    assert name == 'x.to_q'
    np.testing.assert_array_equal(down, A)
    np.testing.assert_allclose(up, scale * B, rtol=1e-6)


def test_a_folder_with_our_own_file_for_comfyui(tmp_path):
    save_file(pair('diffusion_model.', names=KOHYA), tmp_path / KOHYA_FILENAME)
    np.testing.assert_array_equal(read_layers(tmp_path)['x.to_q'][1], B)


@pytest.mark.parametrize('value', [None, True, False, 'gaussian', 'eva', 'orthogonal'])
def test_initialisations_that_leave_the_base_as_it_is(tmp_path, value):
    save_file(pair('base_model.model.'), tmp_path / PEFT_FILENAME)
    plain = dict(bias='none', use_dora=False, layer_replication=[], modules_to_save=None)
    settings = {'lora_alpha': 4, 'init_lora_weights': value, **plain}
    (tmp_path / PEFT_CONFIG).write_text(json.dumps(settings))
    np.testing.assert_allclose(read_layers(tmp_path)['x.to_q'][1], 2 * B)


def test_a_strength_that_metadata_leave_out_is_not_guessed(tmp_path):
    save_file(pair(), tmp_path / FILENAME, {METADATA: json.dumps({'transformer.r': 2})})
    with pytest.raises(ValueError, match='lora_alpha is None; expected the number'):
        read_layers(tmp_path)


def test_layouts_of_peft_with_tensors_of_their_own_strength(tmp_path):
    tensors = pair('base_model.model.', suffix='.default')
    tensors['base_model.model.x.to_q.alpha'] = np.array(8, np.float32)
    save_file(tensors, tmp_path / PEFT_FILENAME)
    (tmp_path / PEFT_CONFIG).write_text(json.dumps({'peft_type': 'LORA', 'lora_alpha': 99}))
    np.testing.assert_allclose(read_layers(tmp_path)['x.to_q'][1], 4 * B)


@pytest.mark.parametrize('kind', ['bfloat16', 'float16', 'float64'])
def test_other_floats_are_widened(tmp_path, kind):
    save_file({k: v.astype(jnp.dtype(kind)) for k, v in pair().items()}, tmp_path / FILENAME)
    np.testing.assert_array_equal(read_layers(tmp_path)['x.to_q'][1], B)


@pytest.mark.parametrize(
    ('tensors', 'config', 'message'),
    [
        (pair('base_model.model.'), None, 'whose strength is in adapter_config.json'),
        (pair('base_model.model.'), {'use_dora': True}, 'adapter_config.json: use_dora is True'),
        (pair('base_model.model.'), {'peft_type': 'LOHA'}, "peft_type is 'LOHA'; only 'LORA'"),
        (pair('base_model.model.'), {'lora_alpha': 'x'}, "lora_alpha is 'x'; expected the numb"),
        (pair('base_model.model.'), {'lora_alpha': 1e999}, 'lora_alpha is inf'),
        (
            pair('base_model.model.'),
            {'lora_alpha': True},
            'lora_alpha is True; expected the number',
        ),
        (pair('base_model.model.'), {'lora_alpha': 10**400}, 'lora_alpha is 1000'),
        (pair('base_model.model.'), {}, 'lora_alpha is None; expected the number'),
        *(
            (pair('base_model.model.'), {'lora_alpha': 8, key: value}, f'{key} is ')
            for key, value in [
                *(('init_lora_weights', way) for way in ('pissa', 'pissa_niter_16', 'olora')),
                *(('init_lora_weights', way) for way in ('loftq', 'corda', 'lora_ga', 'other')),
                ('layer_replication', [[0, 4], [2, 5]]),
                ('alora_invocation_tokens', [1, 2]),
                *((key, True) for key in ('lora_bias', 'use_qalora', 'use_bdlora')),
                ('bias', 'all'),
            ]
        ),
        (pair('base_model.model.'), {'alpha_pattern': [1]}, r'alpha_pattern is \[1\]'),
        (pair('base_model.model.'), {'alpha_pattern': {'(': 1}}, r"alpha_pattern '\('"),
        (pair('base_model.model.'), {'use_rslora': 'no'}, "use_rslora is 'no'"),
        (pair('base_model.model.'), [], r'adapter_config.json holds \[\]; expected an object'),
        ({**pair(), 'transformer.x.to_q.lora_magnitude_vector': A}, None, 'DoRA'),
        ({**pair(), **pair('text_encoder.')}, None, 'layers of a text encoder'),
        (pair('lora_unet_', 'x_to_q', KOHYA), None, 'x_to_q, in the layout of kohya, is none of'),
        ({'lora_te_x.lora_down.weight': A}, None, 'layers of a text encoder'),
        (pair() | {'transformer.x.to_q.alpha': A}, None, r'to_q.alpha is .*; expected one number'),
        (
            pair() | {'transformer.x.to_q.alpha': np.float32([np.nan])},
            None,
            r'to_q.alpha is .*nan.*; expected one number',
        ),
        ({**pair(), 'transformer.proj.bias': A}, None, 'beside the two matrices'),
        ({'other.weight': A}, None, r"another layout: \['other.weight'\]"),
        ({}, None, 'holds no tensor'),
        ({'transformer.x.to_q.lora_A.weight': A}, None, r"x.to_q has only \['down'\]"),
        ({k: v * np.nan for k, v in pair().items()}, None, 'x.to_q holds values that are not fin'),
        ({k: v.astype(np.int64) for k, v in pair().items()}, None, 'stored as I64; expected one'),
        (
            {k: v.astype(jnp.float8_e4m3fn) for k, v in pair().items()},
            None,
            'stored as F8_E4M3; expected one',
        ),
        (
            {'transformer.x.lora_A.weight': A[:0], 'transformer.x.lora_B.weight': B[:, :0]},
            None,
            'a rank of at least 1',
        ),
        (
            {'transformer.x.lora_A.weight': A, 'transformer.x.lora_B.weight': B.T},
            None,
            r'lora_A \(2, 3\) and lora_B \(2, 4\)',
        ),
    ],
)
def test_what_cannot_be_read_is_refused_with_a_word(tmp_path, tensors, config, message):
    save_file(tensors, tmp_path / FILENAME)
    if config is not None:
        (tmp_path / PEFT_CONFIG).write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        read_layers(tmp_path)


@pytest.mark.parametrize('notes', ['null', '[]', '{', '"text"'])
def test_metadata_of_another_form_is_refused(tmp_path, notes):
    save_file(pair(), tmp_path / FILENAME, {METADATA: notes})
    with pytest.raises(ValueError, match='the metadata .*lora_adapter_metadata'):
        read_layers(tmp_path)


def test_folders_that_do_not_say_which(tmp_path):
    with pytest.raises(FileNotFoundError, match='PEFT'):
        read_layers(tmp_path)
    save_file(pair(), tmp_path / FILENAME)
    save_file(pair(), tmp_path / PEFT_FILENAME)
    with pytest.raises(ValueError, match='name one of them'):
        read_layers(tmp_path)
    (tmp_path / PEFT_FILENAME).write_bytes(b'{')
    with pytest.raises(ValueError, match='not a complete safetensors file'):
        read_layers(tmp_path / PEFT_FILENAME)


Z_NAMES = [
    f'layers.{i}.{layer}'
    for i in range(2)
    for layer in (*(f'attention.to_{part}' for part in ('q', 'k', 'v', 'out.0')), 'feed_forward.w1')
]


def z_image_file(prefix, names, dots=True):
    """An adapter of Z-Image with the names of its original release and a strength of its own."""
    rng, tensors = np.random.default_rng(0), {}
    for layer, out in (('attention.qkv', 12), ('attention.out', 4), ('feed_forward.w1', 5)):
        for i in range(2):
            key = f'layers.{i}.{layer}' if dots else f'layers_{i}_{layer}'.replace('.', '_')
            tensors |= {
                f'{prefix}{key}.{names[0]}.weight': rng.standard_normal((2, 4), np.float32),
                f'{prefix}{key}.{names[1]}.weight': rng.standard_normal((out, 2), np.float32),
                f'{prefix}{key}.alpha': np.array(3, np.float32),
            }
    return tensors


def test_the_joined_layers_of_z_image_are_those_of_diffusers(tmp_path):
    torch = pytest.importorskip('torch')
    from diffusers.loaders import lora_conversion_utils as oracle

    given = z_image_file('lora_unet_', KOHYA, dots=False)
    want = oracle._convert_non_diffusers_z_image_lora_to_diffusers(
        {key: torch.tensor(value) for key, value in given.items()}
    )
    save_file(given, tmp_path / 'kohya.safetensors')
    read = read_layers(tmp_path / 'kohya.safetensors', Z_NAMES, Z_IMAGE)
    assert sorted(read) == sorted(Z_NAMES)
    for name, (down, up) in read.items():
        pair = (want.pop(f'transformer.{name}.lora_{part}.weight').numpy() for part in 'BA')
        np.testing.assert_allclose(up @ down, np.matmul(*pair), rtol=1e-5, atol=1e-6)
    assert not want

    # ComfyUI's own names, which Diffusers refuses
    for i, names in enumerate((KOHYA, ('lora_A', 'lora_B'))):
        file = tmp_path / f'{i}.safetensors'
        save_file(z_image_file('diffusion_model.', names), file)
        again = read_layers(file, Z_NAMES, Z_IMAGE)
        assert again.keys() == read.keys()
        for name, (down, up) in again.items():
            np.testing.assert_array_equal(up @ down, np.matmul(*read[name][::-1]))


def test_a_layer_that_is_there_twice_is_refused(tmp_path):
    tensors = z_image_file('diffusion_model.', KOHYA) | pair(layer='layers.1.attention.to_k')
    save_file(tensors, tmp_path / FILENAME)
    for read in (read_layers, layer_shapes):
        with pytest.raises(ValueError, match=r'layers\.1\.attention\.to_k twice, in .*qkv'):
            read(tmp_path, Z_NAMES, Z_IMAGE)


def test_a_fresh_adapter_of_a_joined_layer_is_whole(tmp_path):
    """Its up is zero, which does not mean that its layers have none."""
    down = {'lora_unet_layers_0_attention_qkv.lora_down.weight': A}
    up = {'lora_unet_layers_0_attention_qkv.lora_up.weight': np.zeros((12, 2), np.float32)}
    save_file(down | up, tmp_path / FILENAME)
    shapes = layer_shapes(tmp_path, Z_NAMES, Z_IMAGE)
    assert shapes == {f'layers.0.attention.to_{part}': ((2, 3), (4, 2)) for part in 'qkv'}
