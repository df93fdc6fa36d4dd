"""Adapter files of other tools: read at their strength, or refused with a word."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from densegrpo_jax.pipelines.weights.lora_reading import (
    FILENAME,
    METADATA,
    PEFT_CONFIG,
    PEFT_FILENAME,
    peft_shapes,
    read_peft,
)

A, B = np.ones((2, 3), np.float32), np.arange(8, dtype=np.float32).reshape(4, 2)
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
        layers = read_peft(folder)
        assert sorted(layers) == targets
        for name, (down, up) in layers.items():
            layer = model.base_model.model.get_submodule(name)
            expected = layer.get_delta_weight('default').detach().numpy()
            np.testing.assert_allclose(up @ down, expected, rtol=1e-5, atol=1e-6)
        assert {n: (d.shape, u.shape) for n, (d, u) in layers.items()} == peft_shapes(folder)
        assert read_peft(folder / PEFT_FILENAME).keys() == layers.keys()


@pytest.mark.parametrize(
    ('tensors', 'settings', 'scale'),
    [
        (pair(), None, 1.0),
        (pair('diffusion_model.'), None, 1.0),
        (pair(''), None, 1.0),
        (pair(names=('lora.down', 'lora.up')), None, 1.0),
        (pair() | OWN, None, 4.0),
        (pair(), {'transformer.lora_alpha': 6, 'transformer.r': 2}, 3.0),
        (pair(), {'transformer.lora_alpha': 6, 'transformer.use_rslora': True}, 6 / np.sqrt(2)),
        (pair(), {'transformer.lora_alpha': 6, 'transformer.alpha_pattern': {'to_q': 10}}, 5.0),
        (pair() | OWN, {'transformer.lora_alpha': 6}, 4.0),
    ],
)
def test_layouts_of_diffusers(tmp_path, tensors, settings, scale):
    notes = {} if settings is None else {METADATA: json.dumps(settings)}
    save_file(tensors, tmp_path / FILENAME, notes)
    [(name, (down, up))] = read_peft(tmp_path).items()
    assert name == 'x.to_q'
    np.testing.assert_array_equal(down, A)
    np.testing.assert_allclose(up, scale * B, rtol=1e-6)


def test_layouts_of_peft_with_tensors_of_their_own_strength(tmp_path):
    tensors = pair('base_model.model.', suffix='.default')
    tensors['base_model.model.x.to_q.alpha'] = np.array(8, np.float32)
    save_file(tensors, tmp_path / PEFT_FILENAME)
    (tmp_path / PEFT_CONFIG).write_text(json.dumps({'peft_type': 'LORA', 'lora_alpha': 99}))
    np.testing.assert_allclose(read_peft(tmp_path)['x.to_q'][1], 4 * B)


@pytest.mark.parametrize('kind', ['bfloat16', 'float16', 'float64'])
def test_other_floats_are_widened(tmp_path, kind):
    save_file({k: v.astype(jnp.dtype(kind)) for k, v in pair().items()}, tmp_path / FILENAME)
    np.testing.assert_array_equal(read_peft(tmp_path)['x.to_q'][1], B)


@pytest.mark.parametrize(
    ('tensors', 'config', 'message'),
    [
        (pair('base_model.model.'), None, 'whose strength is in adapter_config.json'),
        (pair('base_model.model.'), {'use_dora': True}, 'adapter_config.json: use_dora is True'),
        (pair('base_model.model.'), {'peft_type': 'LOHA'}, "peft_type is 'LOHA'; only 'LORA'"),
        (pair('base_model.model.'), {'lora_alpha': 'x'}, "lora_alpha is 'x'; expected a number"),
        (pair('base_model.model.'), {'lora_alpha': 1e999}, 'lora_alpha is inf'),
        (pair('base_model.model.'), {'alpha_pattern': [1]}, r'alpha_pattern is \[1\]'),
        (pair('base_model.model.'), {'alpha_pattern': {'(': 1}}, r"alpha_pattern '\('"),
        (pair('base_model.model.'), {'use_rslora': 'no'}, "use_rslora is 'no'"),
        (pair('base_model.model.'), [], r'adapter_config.json holds \[\]; expected an object'),
        ({**pair(), 'transformer.x.to_q.lora_magnitude_vector': A}, None, 'DoRA'),
        ({**pair(), **pair('text_encoder.')}, None, 'layers of a text encoder'),
        ({'lora_unet_blocks_0.lora_down.weight': A}, None, "kohya's layout"),
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
        read_peft(tmp_path)


@pytest.mark.parametrize('notes', ['null', '[]', '{', '"text"'])
def test_metadata_of_another_form_is_refused(tmp_path, notes):
    save_file(pair(), tmp_path / FILENAME, {METADATA: notes})
    with pytest.raises(ValueError, match='the metadata .*lora_adapter_metadata'):
        read_peft(tmp_path)


def test_folders_that_do_not_say_which(tmp_path):
    with pytest.raises(FileNotFoundError, match='PEFT'):
        read_peft(tmp_path)
    save_file(pair(), tmp_path / FILENAME)
    save_file(pair(), tmp_path / PEFT_FILENAME)
    with pytest.raises(ValueError, match='name one of them'):
        read_peft(tmp_path)
    (tmp_path / PEFT_FILENAME).write_bytes(b'{')
    with pytest.raises(ValueError, match='not a complete safetensors file'):
        read_peft(tmp_path / PEFT_FILENAME)
