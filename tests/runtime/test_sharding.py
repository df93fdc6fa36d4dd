"""Sharding rules on 8 fake CPU devices: specs, divisibility, and equality with one device."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from densegrpo_jax.networks.clip_text import ClipTextModel
from densegrpo_jax.networks.flux import FluxTransformer
from densegrpo_jax.networks.network import sharding_rules
from densegrpo_jax.networks.t5 import T5Encoder
from densegrpo_jax.networks.vae import AutoencoderKL
from densegrpo_jax.runtime import mesh as mesh_lib
from densegrpo_jax.runtime import sharding as sharding_lib
from densegrpo_jax.runtime.sharding import ShardingRule

MESH = dict(data=2, fsdp=2, tensor=2)
RULES = sharding_rules([FluxTransformer, ClipTextModel, T5Encoder, AutoencoderKL])


def abstract(**shapes):
    """{'a/b': shape} to a nested dict of ShapeDtypeStructs."""
    tree = {}
    for name, shape in shapes.items():
        *parents, last = name.split('/')
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = jax.ShapeDtypeStruct(shape, jnp.float32)
    return tree


def specs(tree, mesh, rules=RULES, min_bytes=0):
    found = sharding_lib.shardings(tree, mesh, rules, min_bytes=min_bytes)
    leaves, _ = jax.tree_util.tree_flatten_with_path(found)
    return {sharding_lib.path_name(path): s.spec for path, s in leaves}


@pytest.mark.parametrize(
    'name, shape, spec',
    [
        ('transformer_blocks/attn/to_q/kernel', (19, 3072, 3072), P(None, 'fsdp', 'tensor')),
        ('transformer_blocks_0/attn/add_k_proj/kernel', (3072, 3072), P('fsdp', 'tensor')),
        ('transformer_blocks/attn/to_out_0/kernel', (19, 3072, 3072), P(None, ('tensor', 'fsdp'))),
        ('transformer_blocks/ff/net_0/proj/kernel', (19, 3072, 12288), P(None, 'fsdp', 'tensor')),
        (
            'transformer_blocks/ff_context/net_2/kernel',
            (19, 12288, 3072),
            P(None, ('tensor', 'fsdp')),
        ),
        (
            'transformer_blocks/norm1_context/linear/kernel',
            (19, 3072, 18432),
            P(None, 'fsdp', 'tensor'),
        ),
        ('single_transformer_blocks/proj_mlp/kernel', (38, 3072, 12288), P(None, 'fsdp', 'tensor')),
        (
            'single_transformer_blocks/proj_out/kernel',
            (38, 15360, 3072),
            P(None, ('tensor', 'fsdp')),
        ),
        ('single_transformer_blocks/proj_mlp/bias', (38, 12288), P()),
        ('x_embedder/kernel', (64, 3072), P('fsdp', 'tensor')),
        ('block/layer_0/SelfAttention/o/kernel', (24, 4096, 4096), P(None, ('tensor', 'fsdp'))),
        ('block/layer_1/DenseReluDense/wi_0/kernel', (24, 4096, 10240), P(None, 'fsdp', 'tensor')),
        ('block/layer_1/DenseReluDense/wo/kernel', (24, 10240, 4096), P(None, ('tensor', 'fsdp'))),
        ('shared/embedding', (32128, 4096), P('fsdp', 'tensor')),
        ('token_embedding/embedding', (49407, 768), P(None, 'tensor')),
        ('decoder/mid_block/resnets_0/conv1/kernel', (3, 3, 512, 512), P(None, None, 'fsdp')),
        ('decoder/conv_in/kernel', (3, 3, 3, 512), P()),
        ('transformer_blocks/attn/to_q/a', (19, 3072, 64), P(None, 'fsdp')),
        ('transformer_blocks/attn/to_q/b', (19, 64, 3072), P(None, 'fsdp', 'tensor')),
        ('transformer_blocks/attn/to_out_0/a', (19, 3072, 64), P(None, ('tensor', 'fsdp'))),
        ('transformer_blocks/attn/to_out_0/b', (19, 64, 3072), P(None, 'fsdp')),
        ('transformer_blocks/attn/to_out_0/b', (19, 3, 3072), P()),
    ],
)
def test_the_table_on_real_names_and_shapes(name, shape, spec):
    assert specs(abstract(**{name: shape}), mesh_lib.make_mesh(MESH)) == {name: spec}


def test_first_match_wins():
    tree = abstract(**{'block/special/kernel': (8, 8), 'block/plain/kernel': (8, 8)})
    rules = (
        ShardingRule('special/kernel', ('tensor', None)),
        ShardingRule('kernel', ('fsdp', 'tensor')),
    )
    mesh = mesh_lib.make_mesh(MESH)
    assert specs(tree, mesh, rules) == {
        'block/special/kernel': P('tensor'),
        'block/plain/kernel': P('fsdp', 'tensor'),
    }
    assert specs(tree, mesh, rules[::-1])['block/special/kernel'] == P('fsdp', 'tensor')


def test_small_arrays_and_scalars_stay_whole():
    tree = abstract(**{'to_q/kernel': (64, 64), 'to_k/kernel': (63, 64), 'unknown': (7,)})
    tree['count'] = jax.ShapeDtypeStruct((), jnp.int32)
    found = specs(tree, mesh_lib.make_mesh(MESH), min_bytes=64 * 64 * 4)
    assert found == {
        'to_q/kernel': P('fsdp', 'tensor'),
        'to_k/kernel': P(),
        'unknown': P(),
        'count': P(),
    }
    assert specs({'count': tree['count']}, mesh_lib.make_mesh(MESH), min_bytes=0) == {'count': P()}


def test_uneven_dimension_is_an_error_unless_the_rule_says_replicate():
    mesh = mesh_lib.make_mesh(MESH)
    tree = abstract(**{'layer/kernel': (6, 9)})
    with pytest.raises(
        ValueError,
        match=r"'layer/kernel': dimension 1 of shape \(6, 9\) does not divide over 'tensor' = 2",
    ):
        specs(tree, mesh, (ShardingRule('kernel', ('fsdp', 'tensor')),))
    assert specs(tree, mesh, (ShardingRule('kernel', ('fsdp', 'tensor'), uneven='replicate'),)) == {
        'layer/kernel': P('fsdp')
    }


@pytest.mark.parametrize(
    'rule, message',
    [
        (ShardingRule('other', ()), "No sharding rule matches 'layer/kernel' of shape"),
        (ShardingRule('kernel', (None, None, 'fsdp')), 'has 3 entries'),
        (ShardingRule('kernel', ('model',)), r"names the axes \['model'\]; the mesh has"),
        (
            ShardingRule('kernel', (), uneven='ignore'),
            "uneven must be 'error' or 'replicate', found 'ignore'",
        ),
    ],
)
def test_bad_rules_are_explained(rule, message):
    with pytest.raises(ValueError, match=message):
        specs(abstract(**{'layer/kernel': (8, 8)}), mesh_lib.make_mesh(MESH), (rule,))


def init_chain(key):
    keys = jax.random.split(key, 3)
    return {
        'blocks': {
            'proj_mlp': {
                'kernel': jax.random.normal(keys[0], (4, 16, 32)) / 4,
                'bias': jnp.ones((4, 32)),
            },
            'proj_out': {'kernel': jax.random.normal(keys[1], (4, 32, 16)) / 4},
        },
        'norm_out': {'linear': {'kernel': jax.random.normal(keys[2], (16, 8))}},
    }


def apply_chain(params, x):
    def block(x, p):
        return x + jnp.tanh(x @ p['proj_mlp']['kernel'] + p['proj_mlp']['bias']) @ p['proj_out'][
            'kernel'
        ], None

    x, _ = jax.lax.scan(block, x, params['blocks'])
    return x @ params['norm_out']['linear']['kernel']


OPTIMISER = optax.adamw(1e-2)


def train_step(params, opt_state, x):
    loss, grads = jax.value_and_grad(lambda p: jnp.mean(apply_chain(p, x) ** 2))(params)
    updates, opt_state = OPTIMISER.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss, grads


@pytest.fixture(scope='module')
def one_device():
    """Key, batch, fresh parameters and the outcome of one training step on one device."""
    key = jax.random.key(0)
    x = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)
    params = jax.jit(init_chain)(key)
    return key, x, params, jax.jit(train_step)(params, jax.jit(OPTIMISER.init)(params), x)


@pytest.mark.parametrize('sizes', [(1, 8, 1), (8, 1, 1), (2, 2, 2)])
def test_training_step_on_the_mesh_equals_one_device(one_device, sizes):
    key, x, params, expected = one_device
    mesh = mesh_lib.make_mesh(dict(zip(mesh_lib.AXES, sizes)))
    placed = sharding_lib.init_sharded(init_chain, mesh, key, rules=RULES, min_bytes=0)
    # born sharded, with the same values
    jax.tree.map(np.testing.assert_array_equal, placed, params)
    opt_state = sharding_lib.init_sharded(OPTIMISER.init, mesh, placed, rules=RULES, min_bytes=0)
    kernel = placed['blocks']['proj_mlp']['kernel']
    moment = opt_state[0].mu['blocks']['proj_mlp']['kernel']
    assert kernel.sharding.spec == moment.sharding.spec == P(None, 'fsdp', 'tensor')
    assert kernel.sharding.shard_shape(kernel.shape) == (4, 16 // sizes[1], 32 // sizes[2])

    found = jax.jit(train_step)(placed, opt_state, jax.device_put(x, mesh_lib.batch_sharding(mesh)))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected
    )


def test_memory_per_device():
    mesh = mesh_lib.make_mesh(MESH)
    tree = abstract(**{'a/kernel': (8, 8), 'a/bias': (8,)})
    placed = sharding_lib.shardings(tree, mesh, RULES, min_bytes=0)
    assert sharding_lib.bytes_per_device(tree, placed) == 8 * 8 * 4 // 4 + 8 * 4
    wanted = sharding_lib.with_shardings(tree, placed)
    assert wanted['a']['kernel'].sharding.spec == P('fsdp', 'tensor') and wanted['a'][
        'kernel'
    ].shape == (8, 8)


def real_flux():
    """Parameter and adapter shapes of FLUX.1-dev (fewer layers for the text encoders: their blocks
    are not stacked).
    """
    from densegrpo_jax.networks import clip_text, flux, lora, t5, vae

    def floats(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    def ids(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.int32)

    def shapes(network, *inputs):
        return jax.eval_shape(network.init, jax.random.key(0), *inputs)['params']

    transformer = flux.FluxTransformer(flux.FluxConfig(guidance_embeds=True), scan=True)
    inputs = (
        floats(1, 4, 64),
        floats(1, 2, 4096),
        floats(1, 768),
        floats(1),
        floats(1),
        floats(4, 3),
        floats(2, 3),
    )
    params = shapes(transformer, *inputs)
    adapters = lora.LoraConfig(
        rank=64, alpha=128, targets=('attn.to_q', 'attn.to_out.0', 'ff.net.0.proj', 'ff.net.2')
    )
    names = transformer.module_paths()
    t5_config = t5.T5Config(
        d_model=4096, d_ff=10240, num_layers=2, num_heads=64, feed_forward_proj='gated-gelu'
    )
    clip_config = clip_text.ClipTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=1, num_attention_heads=12
    )
    return {
        'transformer': params,
        'lora': jax.eval_shape(
            lambda key: lora.init_adapters(adapters, names, params, key), jax.random.key(0)
        ),
        'text_encoder_2': shapes(t5.T5Encoder(t5_config), ids(1, 4)),
        'text_encoder': shapes(clip_text.ClipTextModel(clip_config), ids(1, 77)),
        'vae': shapes(vae.AutoencoderKL(vae.VaeConfig()), floats(1, 16, 16, 3)),
    }


def test_flux_dev_is_spread_evenly():
    tree = real_flux()
    whole = sum(leaf.size * 4 for leaf in jax.tree.leaves(tree))
    # FLUX.1-dev, as published
    assert sum(leaf.size for leaf in jax.tree.leaves(tree['transformer'])) == 11_901_408_320
    for sizes, overhead in [((1, 8, 1), 1.02), ((1, 4, 2), 1.02), ((1, 1, 8), 1.08)]:
        mesh = mesh_lib.make_mesh(dict(zip(mesh_lib.AXES, sizes)))
        placed = sharding_lib.shardings(tree, mesh, RULES)
        assert sharding_lib.bytes_per_device(tree, placed) < overhead * whole / 8, sizes
