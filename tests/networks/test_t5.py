"""T5 encoder against Transformers' torch module, and its weight table."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densegrpo_jax.networks import t5
from densegrpo_jax.pipelines.weights import files as weights
from tests.networks import parity
from tests.networks.parity import relative_error

# text_encoder_2/config.json of FLUX.1.
FLUX_JSON = {
    '_name_or_path': 'google/t5-v1_1-xxl',
    'architectures': ['T5EncoderModel'],
    'classifier_dropout': 0.0,
    'd_ff': 10240,
    'd_kv': 64,
    'd_model': 4096,
    'decoder_start_token_id': 0,
    'dense_act_fn': 'gelu_new',
    'dropout_rate': 0.1,
    'eos_token_id': 1,
    'feed_forward_proj': 'gated-gelu',
    'initializer_factor': 1.0,
    'is_encoder_decoder': True,
    'is_gated_act': True,
    'layer_norm_epsilon': 1e-06,
    'model_type': 't5',
    'num_decoder_layers': 24,
    'num_heads': 64,
    'num_layers': 24,
    'output_past': True,
    'pad_token_id': 0,
    'relative_attention_max_distance': 128,
    'relative_attention_num_buckets': 32,
    'tie_word_embeddings': False,
    'torch_dtype': 'bfloat16',
    'transformers_version': '4.43.3',
    'use_cache': True,
    'vocab_size': 32128,
}
CASES = {
    'gated': (
        dict(
            d_model=24, d_kv=8, d_ff=40, num_layers=3, num_heads=2, feed_forward_proj='gated-gelu'
        ),
        (2, 40),
    ),
    'relu': (
        dict(
            d_model=16,
            d_kv=4,
            d_ff=32,
            num_layers=2,
            num_heads=4,
            feed_forward_proj='relu',
            relative_attention_num_buckets=8,
            relative_attention_max_distance=20,
        ),
        (3, 33),
    ),
    'one_token': (
        dict(
            d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=1, feed_forward_proj='gated-gelu'
        ),
        (1, 1),
    ),
}


def move(name, parameter):
    parity.move_vectors(name, parameter)
    if 'relative_attention_bias' in name:
        parameter.normal_()


def reference(overrides, folder):
    transformers = pytest.importorskip('transformers')
    build = lambda **config: transformers.T5EncoderModel(transformers.T5Config(**config))
    return parity.reference(build, dict(vocab_size=60, **overrides), folder, move=move)


def load(folder):
    config = t5.T5Config.from_json(json.loads((folder / 'config.json').read_text()))
    model = t5.T5Encoder(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))['params']
    return model, weights.load_weights(folder, model.weight_rules(), shapes)


@pytest.mark.parametrize('case', CASES)
def test_equals_torch(case, tmp_path):
    overrides, shape = CASES[case]
    torch = pytest.importorskip('torch')
    module = reference(overrides, tmp_path)
    model, params = load(tmp_path)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 60, shape).astype(np.int32)
    with torch.no_grad():
        expected = module(torch.from_numpy(ids).long()).last_hidden_state
    assert relative_error(jax.jit(model.apply)({'params': params}, ids), expected) < 1e-5


@pytest.mark.parametrize('num_buckets, max_distance', [(32, 128), (8, 20), (16, 64), (64, 256)])
def test_buckets_equal_torch(num_buckets, max_distance):
    torch = pytest.importorskip('torch')
    modeling = pytest.importorskip('transformers.models.t5.modeling_t5')
    positions = torch.arange(512)
    expected = modeling.T5Attention._relative_position_bucket(
        positions[None, :] - positions[:, None], True, num_buckets, max_distance
    )
    np.testing.assert_array_equal(
        t5.relative_position_buckets(512, num_buckets, max_distance), expected.numpy()
    )


def test_saved_layout_is_that_of_torch(tmp_path):
    reference(CASES['gated'][0], tmp_path / 'theirs')
    model, params = load(tmp_path / 'theirs')
    weights.save_weights(
        tmp_path / 'ours', model.weight_rules(), params, filename='model.safetensors'
    )
    numpy_io = pytest.importorskip('safetensors.numpy')
    theirs, ours = (
        numpy_io.load_file(tmp_path / side / 'model.safetensors') for side in ('theirs', 'ours')
    )
    assert sorted(ours) == sorted(theirs) and 'shared.weight' in ours
    for key in theirs:
        np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)


def test_a_tied_copy_of_the_embedding_is_ignored(tmp_path):
    reference(CASES['relu'][0], tmp_path)
    numpy_io = pytest.importorskip('safetensors.numpy')
    tensors = numpy_io.load_file(tmp_path / 'model.safetensors')
    numpy_io.save_file(
        tensors | {'encoder.embed_tokens.weight': tensors['shared.weight'].copy()},
        tmp_path / 'model.safetensors',
    )
    _, params = load(tmp_path)
    np.testing.assert_array_equal(params['shared']['embedding'], tensors['shared.weight'])


def test_the_embedding_may_be_the_encoders_alone(tmp_path):
    reference(CASES['relu'][0], tmp_path)
    numpy_io = pytest.importorskip('safetensors.numpy')
    tensors = numpy_io.load_file(tmp_path / 'model.safetensors')
    expected = tensors.pop('shared.weight')
    numpy_io.save_file(
        tensors | {'encoder.embed_tokens.weight': expected}, tmp_path / 'model.safetensors'
    )
    config = t5.T5Config.from_json(json.loads((tmp_path / 'config.json').read_text()))
    model = t5.T5Encoder(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))['params']
    params = weights.load_weights(tmp_path, model.weight_rules(), shapes, layout=model.layout)
    np.testing.assert_array_equal(params['shared']['embedding'], expected)


@pytest.mark.slow  # fresh networks are made for the miniatures alone
def test_fresh_model_trains():
    config = t5.T5Config(
        vocab_size=60,
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        feed_forward_proj='gated-gelu',
    )
    ids = jax.random.randint(jax.random.key(0), (4, 16), 0, 60)
    # rbg compiles faster
    params = jax.jit(t5.T5Encoder(config).init)(jax.random.key(1, impl='rbg'), ids)['params']
    loss = lambda p: jnp.sin(3 * t5.T5Encoder(config).apply({'params': p}, ids)).mean()
    grads = jax.jit(jax.grad(loss))(params)
    for path, g in jax.tree.leaves_with_path(grads):
        assert np.isfinite(g).all() and np.any(g), jax.tree_util.keystr(path)
    # Products preserve variance and attention starts soft: the block outputs are comparable with
    # the embeddings.
    hidden = jax.jit(t5.T5Encoder(config).apply)({'params': params}, ids)
    assert 0.5 < float(hidden.std()) < 2


def test_bfloat16_keeps_float32_bias_and_stream(tmp_path):
    overrides, shape = CASES['gated']
    torch = pytest.importorskip('torch')
    module = reference(overrides, tmp_path)
    model, params = load(tmp_path)
    ids = np.random.default_rng(2).integers(0, 60, shape).astype(np.int32)
    with torch.no_grad():
        expected = module(torch.from_numpy(ids).long()).last_hidden_state.numpy()
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)
    ours = t5.T5Encoder(model.config, dtype=jnp.bfloat16).apply({'params': half}, ids)
    assert ours.dtype == jnp.bfloat16
    assert np.abs(np.asarray(ours, np.float32) - expected).max() / np.abs(expected).max() < 0.05


def test_flux_config():
    config = t5.T5Config.from_json(FLUX_JSON)
    assert config == t5.T5Config(
        d_model=4096, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj='gated-gelu'
    )


@pytest.mark.parametrize(
    'change, named',
    [
        ({'feed_forward_proj': 'gated-silu'}, 'feed_forward_proj'),
        ({'model_type': 'umt5'}, 'model_type'),
        ({'is_decoder': True}, 'is_decoder'),
        ({'num_layers': 0}, 'num_layers'),
        ({'relative_attention_num_buckets': 30}, 'relative_attention_num_buckets'),
        ({'sparse_step': 2}, 'sparse_step'),
    ],
)
def test_unsupported_config_values_are_named(change, named):
    with pytest.raises(ValueError, match=named):
        t5.T5Config.from_json(FLUX_JSON | change)
