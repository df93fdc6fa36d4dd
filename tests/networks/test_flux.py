"""FluxTransformer against Diffusers' torch module, scanned against unscanned, every
rematerialisation policy, and its config.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densegrpo_jax.networks import flux, mmdit
from densegrpo_jax.pipelines.weights import files as weights
from tests.networks import parity
from tests.networks.block_stacks import stack_blocks, unstack_blocks
from tests.networks.parity import random_tree, relative_error

torch = pytest.importorskip('torch')
diffusers = pytest.importorskip('diffusers')

BASE = dict(
    in_channels=8,
    num_layers=2,
    num_single_layers=3,
    attention_head_dim=16,
    num_attention_heads=2,
    joint_attention_dim=24,
    pooled_projection_dim=20,
    guidance_embeds=True,
    axes_dims_rope=[4, 6, 6],
)
WIDE = BASE | dict(
    num_layers=1,
    num_single_layers=2,
    attention_head_dim=24,
    num_attention_heads=3,
    axes_dims_rope=[8, 6, 10],
    guidance_embeds=False,
    out_channels=4,
)
#          config, batch, (rows, columns), text tokens
CASES = {
    'guidance': (BASE, 2, (4, 4), 6),
    'odd': (BASE, 3, (3, 7), 5),
    'no guidance': (WIDE, 3, (5, 3), 1),
    'large': (BASE, 1, (11, 23), 33),
}

reference = functools.partial(parity.reference, diffusers.FluxTransformer2DModel)


def inputs(config, batch, grid, length, seed=0):
    """(latents, text, pooled, timestep, guidance, img_ids, txt_ids) in numpy."""
    rng = np.random.default_rng(seed)
    tokens = grid[0] * grid[1]
    rows, columns = np.indices(grid).reshape(2, tokens)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    return (
        normal(batch, tokens, config['in_channels']),
        normal(batch, length, config['joint_attention_dim']),
        normal(batch, config['pooled_projection_dim']),
        rng.uniform(0, 1, batch).astype(np.float32),
        rng.uniform(1, 5, batch).astype(np.float32) if config['guidance_embeds'] else None,
        np.stack([np.zeros(tokens), rows, columns], axis=1).astype(np.float32),
        np.zeros((length, 3), np.float32),
    )


def torch_output(module, args):
    latents, text, pooled, timestep, guidance, img_ids, txt_ids = (
        None if a is None else torch.from_numpy(a) for a in args
    )
    with torch.no_grad():
        return module(
            hidden_states=latents,
            encoder_hidden_states=text,
            pooled_projections=pooled,
            timestep=timestep,
            guidance=guidance,
            img_ids=img_ids,
            txt_ids=txt_ids,
        ).sample.numpy()


def build(config, **kwargs):
    """The network, and the shapes of its parameters."""
    net = flux.FluxTransformer(flux.FluxConfig.from_json(config), **kwargs)
    args = inputs(config, 1, (1, 2), 1)
    return net, jax.eval_shape(net.init, jax.random.key(0), *args)['params']


def load(folder, config, scan, **kwargs):
    """(network, parameters) read from a Diffusers folder."""
    net, shapes = build(config, scan=scan, **kwargs)
    return net, weights.load_weights(folder, net.weight_rules(), shapes)


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


def test_input_gradient_equals_torch(tmp_path):
    config = BASE | dict(num_layers=1, num_single_layers=1)
    module, args = reference(config, tmp_path), inputs(config, 2, (2, 3), 4)
    latents = torch.from_numpy(args[0]).requires_grad_()
    text, pooled, timestep, guidance, img_ids, txt_ids = map(torch.from_numpy, args[1:])
    module(
        latents, text, pooled, timestep, img_ids, txt_ids, guidance
    ).sample.square().sum().backward()
    net, params = load(tmp_path, config, False)
    grad = jax.jit(jax.grad(lambda x: jnp.sum(net.apply({'params': params}, x, *args[1:]) ** 2)))(
        args[0]
    )
    assert relative_error(grad, latents.grad.numpy()) <= 1e-5


@pytest.mark.parametrize('scan', [pytest.param(False, marks=pytest.mark.slow), True])
def test_remat_changes_neither_values_nor_gradients(scan):
    config = BASE | dict(num_layers=1, num_single_layers=1 + scan)
    args = inputs(config, 2, (2, 3), 4)

    def value_and_grad(remat):
        net, shapes = build(config, scan=scan, remat=remat)
        return jax.jit(jax.value_and_grad(lambda p: jnp.sum(net.apply({'params': p}, *args) ** 2)))(
            random_tree(shapes)
        )

    value, grad = value_and_grad('none')
    for remat in mmdit.REMAT_POLICIES:
        other_value, other = value_and_grad(remat)
        np.testing.assert_allclose(other_value, value, rtol=1e-5)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * max(1, np.abs(b).max())),
            other,
            grad,
        )


def test_scanned_and_unscanned_trees_convert():
    args = inputs(BASE, 1, (2, 2), 3)
    net, shapes = build(BASE)
    params = random_tree(shapes)
    stacked = stack_blocks(params, *flux.STACKS)
    scanned, shapes = build(BASE, scan=True)
    assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    want = np.asarray(jax.jit(net.apply)({'params': params}, *args))
    assert relative_error(jax.jit(scanned.apply)({'params': stacked}, *args), want) <= 1e-6
    jax.tree.map(np.testing.assert_array_equal, unstack_blocks(stacked, *flux.STACKS), params)


@pytest.mark.slow  # fresh networks are made for the miniatures alone
def test_fresh_network_predicts_zero():
    small = BASE | dict(num_layers=1, num_single_layers=1)
    args, config = inputs(small, 1, (2, 2), 3), flux.FluxConfig.from_json(small)
    init = jax.jit(flux.FluxTransformer(config, scan=True).init_with_output)
    out, _ = init(jax.random.key(0, impl='rbg'), *args)  # compiles faster
    assert not out.any()


def test_bfloat16_stays_close_and_returns_float32(tmp_path):
    module, args = reference(BASE, tmp_path), inputs(BASE, 2, (3, 4), 5)
    net, params = load(tmp_path, BASE, True, dtype=jnp.bfloat16)
    out = jax.jit(net.apply)(
        {'params': jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)}, *args
    )
    assert out.dtype == jnp.float32
    # bf16 was used, and no more than rounding happened
    assert 1e-4 < relative_error(out, torch_output(module, args)) < 0.1


def test_embedding_of_time_and_guidance():
    # cos(3500 f): a table rounded once from float64 is off by up to 2e-4 here, because the
    # reference rounds the exponent to float32 first.
    from diffusers.models.embeddings import get_timestep_embedding

    from densegrpo_jax.networks import layers

    t = np.array([0, 0.5, 999.5, 3500], np.float32)
    want = get_timestep_embedding(
        torch.from_numpy(t), 256, flip_sin_to_cos=True, downscale_freq_shift=0
    ).numpy()
    np.testing.assert_allclose(layers.timestep_embedding(t), want, atol=1e-6)


def test_rope_uses_base_ten_thousand_per_axis():
    from densegrpo_jax.networks import layers

    cos, sin = layers.rope_tables(np.array([[0, 3, 5]], np.float32), (4, 2, 4))
    # second frequency of a 4-channel axis: 10000^(-2/4)
    angles = np.repeat([0, 0, 3, 5, 5 / 100], 2)
    np.testing.assert_allclose(cos[0], np.cos(angles), atol=1e-6)
    np.testing.assert_allclose(sin[0], np.sin(angles), atol=1e-6)


def test_config_round_trip_and_defaults():
    full = diffusers.FluxTransformer2DModel(**BASE).config
    stored = {
        k: tuple(v) if isinstance(v, list) else v
        for k, v in dict(full).items()
        if not k.startswith('_')
    }
    assert dataclasses.asdict(flux.FluxConfig.from_json(BASE)) == stored
    assert flux.FluxConfig.from_json(
        {'_class_name': 'FluxTransformer2DModel', **stored}
    ) == flux.FluxConfig.from_json(BASE)
    # FLUX.1-dev's file leaves out what Diffusers defaults
    dev = flux.FluxConfig.from_json(
        {'_class_name': 'FluxTransformer2DModel', 'guidance_embeds': True}
    )
    assert (dev.hidden_dim, dev.axes_dims_rope, dev.num_layers, dev.num_single_layers) == (
        3072,
        (16, 56, 56),
        19,
        38,
    )


@pytest.mark.parametrize(
    'change, words',
    [
        ({'qk_norm': 'x'}, 'qk_norm'),
        ({'_class_name': 'SD3Transformer2DModel'}, 'SD3Transformer2DModel'),
        ({'num_layers': -1}, 'num_layers'),
        ({'attention_head_dim': 18}, 'axes_dims_rope'),
        ({'axes_dims_rope': [5, 5, 6]}, 'axes_dims_rope'),
        ({'patch_size': 2}, 'patch_size'),
        ({'in_channels': '64'}, 'in_channels'),
        ({'guidance_embeds': 1}, 'guidance_embeds'),
        ({'out_channels': 0}, 'out_channels'),
    ],
)
def test_unsupported_configs_name_the_key(change, words):
    with pytest.raises(ValueError, match=words):
        flux.FluxConfig.from_json(BASE | change)


def test_guidance_must_fit_the_network():
    args = list(inputs(BASE, 1, (1, 2), 1))
    net = flux.FluxTransformer(flux.FluxConfig.from_json(BASE))
    args[4] = None
    with pytest.raises(ValueError, match='guidance_embeds=True'):
        jax.eval_shape(net.init, jax.random.key(0), *args)
    with pytest.raises(ValueError, match="remat is 'some'"):
        jax.eval_shape(
            flux.FluxTransformer(net.config, remat='some').init,
            jax.random.key(0),
            *inputs(BASE, 1, (1, 2), 1),
        )
