"""ZImageTransformer against Diffusers' torch module: texts of different lengths, scanned against
unscanned, its adapters and its config.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densegrpo_jax.networks import attention, lora, zimage
from densegrpo_jax.pipelines.weights import files as weights
from tests.networks import parity
from tests.networks.parity import random_tree, relative_error

torch = pytest.importorskip('torch')
diffusers = pytest.importorskip('diffusers')

BASE = dict(
    in_channels=4,
    dim=24,
    n_layers=2,
    n_refiner_layers=1,
    n_heads=2,
    n_kv_heads=2,
    cap_feat_dim=10,
    axes_dims=[4, 4, 4],
    axes_lens=[128, 16, 16],
)
DEEP = BASE | dict(
    dim=36, n_heads=3, n_kv_heads=3, n_layers=1, n_refiner_layers=2, rope_theta=500.0
)
#        config, (rows, columns) of latents, padded length, tokens of each text
CASES = {
    'short texts': (BASE, (4, 6), 8, (3, 8)),
    'one unit and two': (BASE, (8, 8), 40, (32, 33, 1)),
    'more image than a unit': (DEEP, (10, 14), 64, (64, 5)),
}
TARGETS = ('attention.to_q', 'attention.to_out.0', 'feed_forward.w[123]')

reference = functools.partial(parity.reference, diffusers.ZImageTransformer2DModel, scale=0.1)


def inputs(config, grid, length, counts, seed=0):
    """(latents, text, mask, time) in numpy."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    batch = len(counts)
    return (
        normal(batch, *grid, config['in_channels']),
        normal(batch, length, config['cap_feat_dim']),
        np.arange(length) < np.array(counts)[:, None],
        rng.uniform(0, 1, batch).astype(np.float32),
    )


def torch_output(module, args):
    latents, text, mask, time = map(torch.from_numpy, args)
    with torch.no_grad():
        out = module(
            list(latents.permute(0, 3, 1, 2)[:, :, None]),
            time,
            [row[kept] for row, kept in zip(text, mask)],
        ).sample
    return torch.stack(list(out))[:, :, 0].permute(0, 2, 3, 1).numpy()


def build(config, **kwargs):
    """The network, and the shapes of its variables."""
    net = zimage.ZImageTransformer(zimage.ZImageConfig.from_json(config), **kwargs)
    return net, jax.eval_shape(net.init, jax.random.key(0), *inputs(config, (2, 2), 2, (1,)))


def load(folder, config, scan, **kwargs):
    net, shapes = build(config, scan=scan, **kwargs)
    return net, weights.load_weights(folder, net.weight_rules(), shapes['params'])


@pytest.mark.parametrize('scan', [False, True], ids=['unscanned', 'scanned'])
@pytest.mark.parametrize('case', CASES)
def test_equals_torch(case, scan, tmp_path):
    config, *shape = CASES[case]
    module = reference(config, tmp_path)
    args = inputs(config, *shape)
    net, params = load(tmp_path, config, scan)
    out = jax.jit(net.apply)({'params': params}, *args)
    assert out.dtype == jnp.float32
    assert relative_error(out, torch_output(module, args)) <= 1e-5


def test_padding_of_a_text_has_no_influence():
    net, shapes = build(BASE)
    params = random_tree(shapes['params'])
    latents, text, mask, time = inputs(BASE, (4, 4), 40, (7, 33))
    apply = jax.jit(net.apply)
    before = apply({'params': params}, latents, text, mask, time)
    other = np.where(mask[..., None], text, 100).astype(np.float32)
    np.testing.assert_array_equal(apply({'params': params}, latents, other, mask, time), before)
    longer = [np.pad(a, ((0, 0), (0, 40)) + ((0, 0),) * (a.ndim - 2)) for a in (text, mask)]
    after = apply({'params': params}, latents, *longer, time)
    assert relative_error(after, np.asarray(before)) < 1e-6


# test_flux.py does so for FLUX; this network, scanned or not, is compared with torch above.
@pytest.mark.slow
def test_gradients_of_adapters_are_the_same_scanned_and_rematerialised():
    args, wanted = inputs(BASE, (4, 4), 8, (3, 8)), lora.LoraConfig(2, 4.0, TARGETS)
    net, shapes = build(BASE, lora=wanted)
    parity.check_scanned_gradients(net, shapes, args, zimage.STACKS, 'full')


def test_every_layer_may_carry_an_adapter():
    net, shapes = build(DEEP, lora=lora.LoraConfig(1, 1.0, ('.*',)))
    names = net.module_paths()
    assert len(names) == 6 + 7 * 5 + 3
    kernels = {
        jax.tree_util.keystr(path[:-1], simple=True, separator='/')
        for path, _ in jax.tree_util.tree_leaves_with_path(shapes['params'])
        if getattr(path[-1], 'key', '') == 'kernel'
    }
    assert set(names.values()) == kernels


@pytest.mark.parametrize('scan', [False, True], ids=['unscanned', 'scanned'])
def test_saved_layout_is_that_of_torch(scan, tmp_path):
    reference(DEEP, tmp_path / 'theirs')
    net, params = load(tmp_path / 'theirs', DEEP, scan)
    weights.save_weights(tmp_path / 'ours', net.weight_rules(), params)
    numpy_io = pytest.importorskip('safetensors.numpy')
    name = 'diffusion_pytorch_model.safetensors'
    theirs, ours = (numpy_io.load_file(tmp_path / side / name) for side in ('theirs', 'ours'))
    assert sorted(ours) == sorted(theirs)
    for key in theirs:
        np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)


def test_attention_over_a_prefix_is_attention_to_those_keys():
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, 6, 2, 4)).astype(np.float32) for _ in range(3))
    found = attention.xla(q, k, v, np.array([6, 4], np.int32))
    np.testing.assert_allclose(found[:1], attention.xla(q[:1], k[:1], v[:1]), atol=1e-6)
    np.testing.assert_allclose(
        found[1:, :4], attention.xla(q[1:, :4], k[1:, :4], v[1:, :4]), atol=1e-6
    )
    with pytest.raises(ValueError, match="model.attention='splash'"):
        attention.check_prefix(attention.splash)


@pytest.mark.parametrize(
    'change, words',
    [
        ({'siglip_feat_dim': 12}, 'siglip_feat_dim'),
        ({'_class_name': 'FluxTransformer2DModel'}, 'FluxTransformer2DModel'),
        ({'all_patch_size': [4]}, 'all_patch_size'),
        ({'qk_norm': False}, 'qk_norm'),
        ({'n_layers': 0}, 'n_layers'),
        ({'n_kv_heads': 1}, 'n_kv_heads'),
        ({'dim': 25}, 'n_heads'),
        ({'axes_dims': [6, 6]}, 'axes_dims'),
        ({'axes_dims': [2, 4, 4]}, 'axes_dims'),
        ({'axes_lens': [128, 16]}, 'axes_lens'),
        ({'refiner': 1}, 'refiner'),
    ],
)
def test_unsupported_configs_name_the_key(change, words):
    with pytest.raises(ValueError, match=words):
        zimage.ZImageConfig.from_json(BASE | change)


def test_positions_beyond_the_networks_are_refused():
    net, _ = build(BASE)
    for args in (inputs(BASE, (34, 4), 8, (3,)), inputs(BASE, (4, 4), 130, (3,))):
        with pytest.raises(ValueError, match='axes_lens'):
            jax.eval_shape(net.init, jax.random.key(0), *args)
