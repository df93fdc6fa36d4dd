"""The quantised base: what is stored, that the network is the plain one on the dequantised
matrices, and a training run on it.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix

from densegrpo_jax.networks import flux, lora, quantize
from densegrpo_jax.pipelines.folder import load_params, open_pipeline
from densegrpo_jax.runtime.mesh import make_mesh
from densegrpo_jax.runtime.sharding import bytes_per_device, shardings
from densegrpo_jax.runtime.stop import StopRequest
from densegrpo_jax.training.run import run
from tests import miniature
from tests.training.small_run import make_config, one_device

CONFIG = flux.FluxConfig(
    in_channels=8,
    num_layers=2,
    num_single_layers=2,
    attention_head_dim=32,
    num_attention_heads=2,
    joint_attention_dim=24,
    pooled_projection_dim=20,
    guidance_embeds=False,
    axes_dims_rope=(8, 12, 12),
)
LORA = lora.LoraConfig(rank=2, alpha=4.0, targets=('attn.to_q', 'ff.net.2'))
# The sixteen levels of 4-bit NormalFloat, QLoRA's appendix E.
NF4 = np.array(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ]
)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_int8_rounds_to_the_columns_own_grid():
    kernel = normal(3, 20, 7)
    stored = quantize.quantize_kernel(jnp.asarray(kernel), 'int8')
    scale = np.abs(kernel).max(1, keepdims=True) / 127.5
    assert stored.qvalue.dtype == jnp.int8 and stored.qvalue.shape == kernel.shape
    np.testing.assert_allclose(stored.scale, scale, rtol=1e-6)
    error = np.abs(quantize.dequantize(stored, jnp.float32) - kernel)
    assert (error <= scale * (0.5 + 1e-4)).all() and error.max() > 0.4 * scale.min()


def test_nf4_takes_the_nearest_level_of_its_block():
    kernel = normal(2, 128, 5, seed=1)
    stored = quantize.quantize_kernel(jnp.asarray(kernel), 'nf4')
    blocks = kernel.reshape(2, 2, 64, 5)
    scale = np.abs(blocks).max(2)
    assert (
        stored.scale.shape == (2, 2, 5)
        and stored.scale.dtype == jnp.bfloat16
        and jax.dtypes.itemsize_bits(stored.qvalue.dtype) == 4
    )
    np.testing.assert_allclose(stored.scale.astype(np.float32), scale, rtol=2**-8)
    levels = np.abs(blocks[..., None] / scale[:, :, None, :, None] - NF4).argmin(-1)
    expected = NF4[levels] * np.asarray(stored.scale, np.float32)[:, :, None]
    np.testing.assert_allclose(
        quantize.dequantize(stored, jnp.float32),
        expected.reshape(kernel.shape),
        rtol=1e-5,
        atol=1e-6,
    )


def test_impossible_requests_are_named():
    with pytest.raises(ValueError, match="quantize='fp3'"):
        quantize.quantize_kernel(jnp.ones((64, 2)), 'fp3')
    with pytest.raises(ValueError, match='blocks of 64 inputs, and a kernel has 20: use int8'):
        quantize.quantize_kernel(jnp.ones((20, 2)), 'nf4')


def network(scan, remat='none'):
    net = flux.FluxTransformer(CONFIG, scan=scan, remat=remat, lora=LORA)
    tokens, length = 6, 4
    ids = np.stack([np.zeros(tokens), np.arange(tokens) // 3, np.arange(tokens) % 3], 1).astype(
        np.float32
    )
    args = (
        normal(2, tokens, 8),
        normal(2, length, 24),
        normal(2, 20),
        np.array([0.2, 0.9], np.float32),
        None,
        ids,
        np.zeros((length, 3), np.float32),
    )
    shapes = jax.eval_shape(net.init, jax.random.key(0), *args)
    rng = np.random.default_rng(2)
    tree = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) / 8, jnp.float32), shapes
    )
    return net, args, tree['params'], tree['lora']


def is_stored(leaf):
    return isinstance(leaf, qwix.QArray)


@jax.jit  # one program for all matrices, where each would have several
def dequantized(tree):
    """The plain parameters that stored ones stand for."""
    return jax.tree.map(
        lambda leaf: quantize.dequantize(leaf, jnp.float32) if is_stored(leaf) else leaf,
        tree,
        is_leaf=is_stored,
    )


@pytest.mark.parametrize(
    'form, scan, remat',
    [
        ('int8', False, 'none'),
        ('nf4', True, 'full'),
        pytest.param('int8', True, 'dots', marks=pytest.mark.slow),
    ],
)
def test_equals_the_network_on_dequantised_matrices(form, scan, remat):
    net, args, params, adapters = network(scan, remat)
    convert = quantize.converter(params, form, net.BLOCKS)
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator='/')
    stored = jax.tree_util.tree_map_with_path(
        lambda path, leaf: convert(name(path), jnp.copy(leaf)), params
    )
    shapes = quantize.quantized_shapes(params, form, net.BLOCKS)
    assert jax.tree.structure(stored) == jax.tree.structure(shapes)
    plain = dequantized(stored)
    kinds = {
        name(path): is_stored(leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(stored, is_leaf=is_stored)[0]
    }
    assert all(
        kind == ('transformer_blocks' in path and path.endswith('kernel'))
        for path, kind in kinds.items()
    ) and any(kinds.values())

    def loss(adapters, params):
        return jnp.sum(jnp.square(net.apply({'params': params, 'lora': adapters}, *args)))

    value_and_grad = jax.jit(jax.value_and_grad(loss))
    value, grad = value_and_grad(adapters, stored)
    expected, expected_grad = value_and_grad(adapters, plain)
    original, _ = value_and_grad(adapters, params)
    assert float(value) == pytest.approx(float(expected), rel=1e-5) != float(original)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max()),
        grad,
        expected_grad,
    )


def test_is_stored_in_pieces_where_the_kernels_would_be(folder):
    mesh = make_mesh(dict(data=2, fsdp=2, tensor=2))
    pipeline = open_pipeline(folder, text_length=8, scan=True)
    place = lambda tree: shardings(tree, mesh, pipeline.sharding_rules, min_bytes=0)
    plain = load_params(folder, pipeline, shardings=place)
    stored = load_params(folder, pipeline, ('transformer',), shardings=place, quantize='int8')[
        'transformer'
    ]
    kernels = lambda tree: [
        leaf for leaf in jax.tree.leaves(tree, is_leaf=is_stored) if is_stored(leaf)
    ]
    assert kernels(stored) and not kernels(plain)

    def check(path, leaf, before):
        if is_stored(leaf):
            assert leaf.qvalue.sharding.is_equivalent_to(before.sharding, before.ndim), path
            assert leaf.scale.sharding.is_fully_replicated
            np.testing.assert_allclose(
                quantize.dequantize(leaf, jnp.float32), before, atol=np.abs(before).max() / 250
            )
        else:
            np.testing.assert_array_equal(leaf, before)

    jax.tree_util.tree_map_with_path(check, stored, plain['transformer'], is_leaf=is_stored)
    shapes = quantize.quantized_shapes(plain['transformer'], 'int8', pipeline.transformer.BLOCKS)
    held = sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(stored)
        for shard in leaf.addressable_shards
        if shard.device.id == 0
    )
    assert bytes_per_device(shapes, place(shapes)) == held


@pytest.mark.slow
def test_a_run_trains_on_it(folder, tmp_path):
    config = make_config(folder, **{'model.quantize': 'int8', 'iterations': 2})
    config.checkpoint.every = 1
    summary = run(config, tmp_path / 'run', one_device(), StopRequest())
    assert summary['updates'] == 2 and all(
        np.isfinite(score) for _, score, *_ in map(tuple, summary['evaluations'])
    )


# Names of the layers in a checkpoint's blocks.
BLOCKS = {
    'klein': r'(single_)?transformer_blocks\..*',
    'zimage': r'(layers|noise_refiner|context_refiner)\..*',
}
# How far a matrix moves at most, |W' - W| / |W|. The velocity of these untrained networks moves by
# a tenth to five times as much; that of the trained miniature by 0.0081 and 0.064
# (docs/results/quantised_base.md).
ERROR = {'int8': 0.01, 'nf4': 0.12}


@pytest.fixture(scope='module')
def opened(tmp_path_factory):
    """family -> its `Family`, made once."""
    return functools.cache(lambda name: Family(name, tmp_path_factory.mktemp(name)))


class Family:
    """A small base of a family, whose blocks' layers are all adapted."""

    def __init__(self, name, path):
        write, size = {
            'klein': (miniature.random_klein, {'head_dim': 32}),
            'zimage': (miniature.random_zimage, {'dim': 192}),  # its feed-forward has 512 then
        }[name]
        folder, meant = write(path, **size), BLOCKS[name]
        self.pipeline = open_pipeline(
            folder, text_length=24, scan=True, remat='full', lora=lora.LoraConfig(2, 4.0, (meant,))
        )
        names = self.pipeline.adapter_names()
        # paths of the matrices that are meant
        self.kernels = {f'{path}/kernel' for n, path in names.items() if re.fullmatch(meant, n)}
        assert 0 < len(self.kernels) < len(set(names.values()))
        load = lambda form: load_params(folder, self.pipeline, ('transformer',), quantize=form)
        self.plain = load('none')['transformer']
        self.stored = functools.cache(lambda form: load(form)['transformer'])
        fresh = lora.init_adapters(
            self.pipeline.transformer.lora, names, self.plain, jax.random.key(0)
        )
        self.adapters = jax.tree.map(lambda a: a + 0.01, fresh)

    @functools.cached_property
    def evaluate(self):
        """`(adapters, base) -> ((weighted sum of a velocity, velocity), gradient of the
        adapters)`.
        """
        rng = np.random.default_rng(0)
        draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
        text = {
            name: np.ones(leaf.shape, bool) if leaf.dtype == bool else draw(*leaf.shape)
            for name, leaf in self.pipeline.conditioning_shapes(2).items()
        }
        x, weight = draw(2, 2, *self.pipeline.latent_shape(32, 32))

        @jax.jit
        @functools.partial(jax.value_and_grad, has_aux=True)
        def evaluate(adapters, base):
            network = self.pipeline.velocity_fn(base, adapters, text, 1.0, 32, 32)
            v = network(x, np.float32([0.3, 0.8]))
            return (v * weight).sum(), v

        return evaluate


def apart(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def name_of(path):
    return jax.tree_util.keystr(path, simple=True, separator='/')


@pytest.mark.parametrize('form', quantize.FORMATS)
@pytest.mark.parametrize('family', BLOCKS)
def test_the_matrices_of_other_families_are_stored(opened, family, form):
    base = opened(family)
    stored = base.stored(form)
    found = jax.tree_util.tree_leaves_with_path(stored, is_leaf=is_stored)
    assert {name_of(path) for path, leaf in found if is_stored(leaf)} == base.kernels
    both = jax.device_get((dequantized(stored), base.plain))
    pairs = zip(*map(jax.tree.leaves, both))
    moved = [apart(a, b) for a, b in pairs if (a != b).any()]
    assert len(moved) == len(base.kernels) and max(moved) < ERROR[form]


slow = lambda *case: pytest.param(*case, marks=pytest.mark.slow)


# Both forms are compared in FLUX above, so each family has one of them here.
@pytest.mark.parametrize(
    ('family', 'form'),
    [('klein', 'int8'), ('zimage', 'nf4'), slow('klein', 'nf4'), slow('zimage', 'int8')],
)
def test_adapters_of_other_families_train_on_it(opened, family, form):
    base = opened(family)
    stored, evaluate, adapters = base.stored(form), base.evaluate, base.adapters
    (_, velocity), gradient = evaluate(adapters, stored)
    (_, same), expected = evaluate(adapters, dequantized(stored))
    (_, original), _ = evaluate(adapters, base.plain)
    assert ERROR[form] / 10 < apart(velocity, original) < 5 * ERROR[form]
    assert apart(velocity, same) <= 1e-5
    for path, want in jax.tree_util.tree_leaves_with_path(expected):
        have = functools.reduce(lambda tree, key: tree[key.key], path, gradient)
        assert np.any(want) and apart(have, want) <= 1e-4, name_of(path)
