"""CLIP text encoder against Transformers' torch module, and its weight table."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densegrpo_jax.networks import clip_text
from densegrpo_jax.pipelines.weights import files as weights
from tests.networks import parity
from tests.networks.block_stacks import stack_blocks
from tests.networks.parity import relative_error

# text_encoder/config.json of FLUX.1.
FLUX_JSON = {
    '_name_or_path': 'openai/clip-vit-large-patch14',
    'architectures': ['CLIPTextModel'],
    'attention_dropout': 0.0,
    'bos_token_id': 0,
    'dropout': 0.0,
    'eos_token_id': 2,
    'hidden_act': 'quick_gelu',
    'hidden_size': 768,
    'initializer_factor': 1.0,
    'initializer_range': 0.02,
    'intermediate_size': 3072,
    'layer_norm_eps': 1e-05,
    'max_position_embeddings': 77,
    'model_type': 'clip_text_model',
    'num_attention_heads': 12,
    'num_hidden_layers': 12,
    'pad_token_id': 1,
    'projection_dim': 768,
    'torch_dtype': 'bfloat16',
    'transformers_version': '4.43.3',
    'vocab_size': 49408,
}
CASES = {
    'legacy_eos': (
        dict(
            hidden_size=24,
            intermediate_size=40,
            num_hidden_layers=3,
            num_attention_heads=2,
            eos_token_id=2,
        ),
        (3, 12),
    ),
    'eos': (
        dict(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            eos_token_id=57,
            hidden_act='gelu',
        ),
        (4, 20),
    ),
    'short': (
        dict(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=1,
            eos_token_id=3,
        ),
        (1, 2),
    ),
}


def reference(overrides, folder):
    transformers = pytest.importorskip('transformers')
    build = lambda **config: transformers.CLIPTextModel(transformers.CLIPTextConfig(**config))
    config = dict(vocab_size=60, max_position_embeddings=20, bos_token_id=0, **overrides)
    # the initial scale 0.02 would hide mistakes behind the norms
    return parity.reference(build, config, folder, scale=0.3)


def load(folder, scan):
    config = clip_text.ClipTextConfig.from_json(json.loads((folder / 'config.json').read_text()))
    model = clip_text.ClipTextModel(config, scan=scan)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))['params']
    return model, weights.load_weights(folder, model.weight_rules(), shapes, prefix='text_model.')


def some_ids(shape, eos):
    """Ids of which row 0 has eos twice, row 1 (if any) once, and the last row never; ties of the
    largest id occur too.
    """
    ids = np.random.default_rng(0).integers(4, 50, shape).astype(np.int32)
    ids[0, [-1, shape[1] // 2]] = eos
    if shape[0] > 2:
        ids[1, -2] = eos
        ids[-1, [3, 5]] = 59
    return ids


@pytest.mark.parametrize('scan', [False, True], ids=['unscanned', 'scanned'])
@pytest.mark.parametrize('case', CASES)
def test_equals_torch(case, scan, tmp_path):
    overrides, shape = CASES[case]
    torch = pytest.importorskip('torch')
    module = reference(overrides, tmp_path)
    model, params = load(tmp_path, scan)
    ids = some_ids(shape, overrides['eos_token_id'])
    with torch.no_grad():
        expected = module(torch.from_numpy(ids).long())
    hidden, pooled = jax.jit(model.apply)({'params': params}, ids)
    assert relative_error(hidden, expected.last_hidden_state) < 1e-5
    assert relative_error(pooled, expected.pooler_output) < 1e-5


def test_attention_is_causal(tmp_path):
    reference(CASES['eos'][0], tmp_path)
    model, params = load(tmp_path, scan=False)
    ids = some_ids((2, 10), 57)
    changed = ids.copy()
    changed[:, 6:] += 1
    apply = jax.jit(model.apply)
    hidden, other = (np.asarray(apply({'params': params}, i)[0]) for i in (ids, changed))
    np.testing.assert_allclose(other[:, :6], hidden[:, :6], atol=1e-6)
    assert np.abs(other[:, 6:] - hidden[:, 6:]).max() > 0.1


@pytest.mark.parametrize('prefix', ['', 'text_model.'], ids=['bare', 'prefixed'])
@pytest.mark.parametrize('scan', [False, True], ids=['unscanned', 'scanned'])
def test_layouts_with_and_without_prefix(prefix, scan, tmp_path):
    """Both layouts load, and what we save holds torch's keys (after the prefix) and opens in torch
    with the same output.
    """
    torch = pytest.importorskip('torch')
    module = reference(CASES['legacy_eos'][0], tmp_path / 'theirs')
    model, params = load(tmp_path / 'theirs', scan)
    weights.save_weights(
        tmp_path / 'ours', model.weight_rules(), params, filename='model.safetensors', prefix=prefix
    )
    (tmp_path / 'ours' / 'config.json').write_text(
        (tmp_path / 'theirs' / 'config.json').read_text()
    )
    numpy_io = pytest.importorskip('safetensors.numpy')
    theirs, ours = (
        numpy_io.load_file(tmp_path / side / 'model.safetensors') for side in ('theirs', 'ours')
    )
    assert sorted(ours) == sorted(prefix + key for key in theirs)
    for key in theirs:
        np.testing.assert_array_equal(ours[prefix + key], theirs[key], err_msg=key)

    _, again = load(tmp_path / 'ours', scan)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    reopened = type(module).from_pretrained(tmp_path / 'ours').eval()
    ids = torch.from_numpy(some_ids((3, 12), 2)).long()
    with torch.no_grad():
        assert torch.equal(reopened(ids).pooler_output, module(ids).pooler_output)


@pytest.mark.slow  # fresh networks are made for the miniatures alone
def test_fresh_model_trains_the_same_with_and_without_scan_and_remat():
    config = clip_text.ClipTextConfig(
        vocab_size=60,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=16,
        eos_token_id=2,
    )
    ids = jax.random.randint(jax.random.key(0), (4, 16), 0, 60)
    key = jax.random.key(1, impl='rbg')  # compiles faster
    params = jax.jit(clip_text.ClipTextModel(config).init)(key, ids)['params']

    def value_and_grad(params, **options):
        loss = lambda p: sum(
            jnp.sin(3 * out).mean()
            for out in clip_text.ClipTextModel(config, **options).apply({'params': p}, ids)
        )
        return jax.jit(jax.value_and_grad(loss))(params)

    value, grads = value_and_grad(params)
    for path, g in jax.tree.leaves_with_path(grads):
        assert np.isfinite(g).all() and np.any(g), jax.tree_util.keystr(path)
    stacked = stack_blocks(params, 'layers')
    for options in (dict(scan=True), dict(scan=True, remat=True)):
        other, other_grads = value_and_grad(stacked, **options)
        np.testing.assert_allclose(other, value, rtol=1e-5)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
            other_grads,
            stack_blocks(grads, 'layers'),
        )


def test_too_many_tokens():
    config = clip_text.ClipTextConfig(
        vocab_size=60,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=4,
    )
    with pytest.raises(ValueError, match='max_position_embeddings=4'):
        jax.eval_shape(
            clip_text.ClipTextModel(config).init, jax.random.key(0), jnp.zeros((1, 5), jnp.int32)
        )


def test_flux_config():
    config = clip_text.ClipTextConfig.from_json(FLUX_JSON)
    want = dict(
        hidden_size=768,
        intermediate_size=3072,
        num_attention_heads=12,
        eos_token_id=2,
        projection_dim=768,
    )
    assert config == clip_text.ClipTextConfig(**want)


@pytest.mark.parametrize(
    'change, named',
    [
        ({'hidden_act': 'relu'}, 'hidden_act'),
        ({'model_type': 'clip'}, 'model_type'),
        ({'eos_token_id': [1, 2]}, 'eos_token_id'),
        ({'num_attention_heads': 7}, 'num_attention_heads'),
        ({'vocab_size': 0}, 'vocab_size'),
        ({'window': 3}, 'window'),
    ],
)
def test_unsupported_config_values_are_named(change, named):
    with pytest.raises(ValueError, match=named):
        clip_text.ClipTextConfig.from_json(FLUX_JSON | change)
