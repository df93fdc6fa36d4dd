"""Qwen3 as a text encoder against Transformers' torch module, and its weight table."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densegrpo_jax.networks import qwen3
from densegrpo_jax.pipelines.weights import files as weights
from tests.networks import parity

# text_encoder/config.json of FLUX.2-klein-4B: Qwen3-4B.
KLEIN_JSON = {
    'architectures': ['Qwen3ForCausalLM'],
    'attention_bias': False,
    'attention_dropout': 0.0,
    'bos_token_id': 151643,
    'dtype': 'bfloat16',
    'eos_token_id': 151645,
    'head_dim': 128,
    'hidden_act': 'silu',
    'hidden_size': 2560,
    'initializer_range': 0.02,
    'intermediate_size': 9728,
    'layer_types': ['full_attention'] * 36,
    'max_position_embeddings': 40960,
    'max_window_layers': 36,
    'model_type': 'qwen3',
    'num_attention_heads': 32,
    'num_hidden_layers': 36,
    'num_key_value_heads': 8,
    'rms_norm_eps': 1e-06,
    'rope_scaling': None,
    'rope_theta': 1000000,
    'sliding_window': None,
    'tie_word_embeddings': True,
    'transformers_version': '4.56.1',
    'use_cache': True,
    'use_sliding_window': False,
    'vocab_size': 151936,
}
GROUPED = dict(
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    rope_parameters={'rope_theta': 1000000.0, 'rope_type': 'default'},
    tie_word_embeddings=True,
)
# All heads share one key and value; what predicts tokens is a layer of its own.
SHARED = GROUPED | dict(
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=3,
    num_key_value_heads=1,
    head_dim=10,
    rope_parameters={'rope_theta': 10000.0, 'rope_type': 'default'},
    tie_word_embeddings=False,
)
# config, layers, length, tokens of each prompt, padding side
CASES = {
    'three layers, right': (GROUPED, (1, 2, 3), 9, (9, 4, 1), 'right'),
    'last but one, right': (SHARED, (-2,), 33, (20, 33), 'right'),
    'left': (GROUPED, (3, 1), 7, (7, 3), 'left'),
    'ends': (SHARED, (0, -1), 5, (5, 2), 'right'),
    'one token': (SHARED, (1,), 1, (1,), 'right'),
}


def move(name, parameter):
    parity.move_vectors(name, parameter)
    if parameter.ndim > 1:
        parameter.normal_(std=parameter.shape[1] ** -0.5)


def reference(overrides, folder):
    transformers = pytest.importorskip('transformers')
    build = lambda **config: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**config))
    return parity.reference(build, dict(vocab_size=60, **overrides), folder, move=move)


def load(folder, layers=(-1,)):
    config = qwen3.Qwen3Config.from_json(json.loads((folder / 'config.json').read_text()))
    model = qwen3.Qwen3Encoder(config, layers)
    blank = jnp.zeros((1, 4), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), blank, blank > 0)['params']
    return model, weights.load_weights(folder, model.weight_rules(), shapes, prefix='model.')


def inputs(length, counts, side):
    """Token ids int32 [B, L] and their mask, padded on a side with a token that a prompt holds
    too.
    """
    ids = np.random.default_rng(0).integers(0, 60, (len(counts), length)).astype(np.int32)
    columns = np.arange(length) if side == 'right' else np.arange(length)[::-1]
    mask = columns < np.array(counts)[:, None]
    return np.where(mask, ids, 7).astype(np.int32), mask


@pytest.mark.parametrize('case', CASES)
def test_equals_torch(case, tmp_path):
    overrides, layers, length, counts, side = CASES[case]
    torch = pytest.importorskip('torch')
    module = reference(overrides, tmp_path)
    model, params = load(tmp_path, layers)
    ids, mask = inputs(length, counts, side)
    with torch.no_grad():
        states = module(
            input_ids=torch.from_numpy(ids).long(),
            attention_mask=torch.from_numpy(mask).long(),
            output_hidden_states=True,
            use_cache=False,
        ).hidden_states
    expected = torch.stack([states[k] for k in layers], dim=2).numpy()
    found = jax.jit(model.apply)({'params': params}, ids, mask)
    assert found.shape == expected.shape and found.dtype == jnp.float32
    for k in range(len(layers)):
        scale = np.abs(expected[:, :, k]).max()
        assert np.abs(found[:, :, k] - expected[:, :, k]).max() < 1e-5 * scale


def test_a_token_sees_no_later_token_and_no_padding(tmp_path):
    reference(GROUPED, tmp_path)
    model, params = load(tmp_path)
    ids, mask = inputs(6, (4, 4), 'right')
    apply = jax.jit(model.apply)
    states = lambda ids: np.asarray(apply({'params': params}, ids, mask))
    before, changed = states(ids), ids.copy()
    changed[0, 2] += 1
    changed[1, 5] += 1  # padding
    after = states(changed)
    np.testing.assert_array_equal(after[0, :2], before[0, :2])
    assert (np.abs(after[0, 2:] - before[0, 2:]).max((1, 2)) > 1e-3).all()
    np.testing.assert_array_equal(after[1, :5], before[1, :5])


def test_saved_layout_is_that_of_torch(tmp_path):
    reference(GROUPED, tmp_path / 'theirs')
    model, params = load(tmp_path / 'theirs')
    weights.save_weights(
        tmp_path / 'ours',
        model.weight_rules(),
        params,
        filename='model.safetensors',
        prefix='model.',
    )
    numpy_io = pytest.importorskip('safetensors.numpy')
    theirs, ours = (
        numpy_io.load_file(tmp_path / side / 'model.safetensors') for side in ('theirs', 'ours')
    )
    assert sorted(ours) == sorted(theirs)
    for key in theirs:
        np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)


def test_layers_after_the_last_chosen_one_are_not_computed():
    config = qwen3.Qwen3Config(
        **{k: v for k, v in GROUPED.items() if k in qwen3.Qwen3Config.__annotations__}
    )
    ids, mask = inputs(5, (5,), 'right')

    def products(layers):
        model = qwen3.Qwen3Encoder(config, layers)
        shapes = jax.eval_shape(model.init, jax.random.key(0), ids, mask)
        text = jax.jit(model.apply).lower(shapes, ids, mask).compile().as_text()
        return text.count(' dot(')

    assert 0 < products((1,)) * 4 == products((4,))


def test_bfloat16_keeps_the_stream_and_the_norms_in_float32(tmp_path):
    reference(GROUPED, tmp_path)
    model, params = load(tmp_path, (2,))
    ids, mask = inputs(8, (8, 5), 'right')
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)
    low = qwen3.Qwen3Encoder(model.config, (2,), dtype=jnp.bfloat16)
    ours = jax.jit(low.apply)({'params': half}, ids, mask)
    expected = np.asarray(jax.jit(model.apply)({'params': params}, ids, mask))
    assert ours.dtype == jnp.bfloat16
    assert (
        1e-4 < np.abs(np.asarray(ours, np.float32) - expected).max() / np.abs(expected).max() < 0.05
    )


def test_released_config_in_both_spellings():
    config = qwen3.Qwen3Config.from_json(KLEIN_JSON)
    assert config == qwen3.Qwen3Config(
        hidden_size=2560,
        intermediate_size=9728,
        num_hidden_layers=36,
        num_key_value_heads=8,
        rope_theta=1000000,
    )
    newer = {k: v for k, v in KLEIN_JSON.items() if k not in ('rope_theta', 'rope_scaling')}
    newer['rope_parameters'] = {'rope_theta': 1000000, 'rope_type': 'default'}
    assert qwen3.Qwen3Config.from_json(newer) == config


@pytest.mark.parametrize(
    'change, named',
    [
        ({'model_type': 'qwen2'}, 'model_type'),
        ({'hidden_act': 'gelu'}, 'hidden_act'),
        ({'attention_bias': True}, 'attention_bias'),
        ({'use_sliding_window': True}, 'use_sliding_window'),
        ({'layer_types': ['sliding_attention'] * 36}, 'layer_types'),
        ({'rope_scaling': {'type': 'yarn'}}, 'rope_scaling'),
        ({'rope_parameters': {'rope_type': 'yarn', 'rope_theta': 1e6}}, 'rope_parameters'),
        ({'num_hidden_layers': 0}, 'num_hidden_layers'),
        ({'num_key_value_heads': 5}, 'num_key_value_heads'),
        ({'head_dim': 127}, 'head_dim'),
        ({'num_experts': 8}, 'num_experts'),
    ],
)
def test_unsupported_config_values_are_named(change, named):
    with pytest.raises(ValueError, match=named):
        qwen3.Qwen3Config.from_json(KLEIN_JSON | change)


def test_a_layer_beyond_the_network_is_named():
    config = qwen3.Qwen3Config(num_hidden_layers=12)
    with pytest.raises(ValueError, match=r'num_hidden_layers=12: there is no 18'):
        qwen3.Qwen3Encoder(config, (9, 18, 27)).chosen()
