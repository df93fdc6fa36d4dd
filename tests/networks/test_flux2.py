"""Flux2Transformer against Diffusers' torch module, scanned against unscanned, its adapters and its
config.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densegrpo_jax.networks import attention, flux2, layers, lora
from densegrpo_jax.pipelines.weights import files as weights
from tests.networks import parity
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
    timestep_guidance_channels=32,
    axes_dims_rope=[4, 4, 4, 4],
    guidance_embeds=False,
)
WIDE = BASE | dict(
    num_layers=1,
    num_single_layers=2,
    attention_head_dim=24,
    num_attention_heads=3,
    axes_dims_rope=[2, 6, 10, 6],
    rope_theta=500,
    mlp_ratio=2.5,
    guidance_embeds=True,
    out_channels=4,
)
#          config, batch, (rows, columns), text tokens
CASES = {
    'klein': (BASE, 2, (4, 4), 6),
    'odd': (BASE, 3, (3, 7), 5),
    'guidance': (WIDE, 3, (5, 3), 1),
    'large': (BASE, 1, (11, 23), 160),
}
TARGETS = ('attn.to_q', 'attn.add_k_proj', 'ff.linear_in', 'attn.to_qkv_mlp_proj', 'attn.to_out')

reference = functools.partial(parity.reference, diffusers.Flux2Transformer2DModel)


def positions(grid, length):
    """(text [L, 4], image [N, 4]) positions, as Flux2KleinPipeline numbers them."""
    tokens = grid[0] * grid[1]
    text, image = np.zeros((length, 4)), np.zeros((tokens, 4))
    text[:, 3] = np.arange(length)
    image[:, 1:3] = np.indices(grid).reshape(2, tokens).T
    return text, image


def inputs(config, batch, grid, length, seed=0):
    """(latents, text, timestep, guidance, rope) in numpy."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    return (
        normal(batch, grid[0] * grid[1], config['in_channels']),
        normal(batch, length, config['joint_attention_dim']),
        rng.uniform(0, 1, batch).astype(np.float32),
        rng.uniform(1, 5, batch).astype(np.float32) if config['guidance_embeds'] else None,
        flux2.rope_tables(
            np.concatenate(positions(grid, length)), flux2.Flux2Config.from_json(config)
        ),
    )


def torch_output(module, args, grid, length):
    latents, text, timestep, guidance = (None if a is None else torch.from_numpy(a) for a in args)
    text_ids, image_ids = map(torch.from_numpy, positions(grid, length))
    with torch.no_grad():
        return module(
            hidden_states=latents,
            encoder_hidden_states=text,
            timestep=timestep,
            guidance=guidance,
            img_ids=image_ids,
            txt_ids=text_ids,
        ).sample.numpy()


def build(config, **kwargs):
    """The network, and the shapes of its variables."""
    net = flux2.Flux2Transformer(flux2.Flux2Config.from_json(config), **kwargs)
    return net, jax.eval_shape(net.init, jax.random.key(0), *inputs(config, 1, (1, 2), 1))


def load(folder, config, scan, **kwargs):
    """(network, parameters) read from a Diffusers folder."""
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
    assert relative_error(out, torch_output(module, args[:4], *shape[1:])) <= 1e-5


def test_input_gradient_equals_torch(tmp_path):
    config = BASE | dict(num_layers=1, num_single_layers=1)
    module, args = reference(config, tmp_path), inputs(config, 2, (2, 3), 4)
    latents = torch.from_numpy(args[0]).requires_grad_()
    text_ids, image_ids = map(torch.from_numpy, positions((2, 3), 4))
    text, timestep = map(torch.from_numpy, args[1:3])
    module(latents, text, timestep, image_ids, text_ids).sample.square().sum().backward()
    net, params = load(tmp_path, config, False)
    grad = jax.jit(jax.grad(lambda x: jnp.sum(net.apply({'params': params}, x, *args[1:]) ** 2)))(
        args[0]
    )
    assert relative_error(grad, latents.grad.numpy()) <= 1e-5


# test_flux.py does so for FLUX; this network, scanned or not, is compared with torch above.
@pytest.mark.slow
@pytest.mark.parametrize('remat', ['full', 'attention'])
def test_gradients_of_adapters_are_the_same_scanned_rematerialised_or_not(remat):
    config = BASE | dict(num_single_layers=2)
    args, wanted = inputs(config, 2, (2, 3), 4), lora.LoraConfig(2, 4.0, TARGETS)
    net, shapes = build(config, lora=wanted)
    parity.check_scanned_gradients(net, shapes, args, flux2.STACKS, remat)


def test_adapters_equal_torch_with_merged_weights(tmp_path):
    wanted = lora.LoraConfig(3, 6.0, TARGETS)
    net, shapes = build(BASE, lora=wanted)
    tree, args = random_tree(shapes), inputs(BASE, 2, (2, 3), 4)
    weights.save_weights(tmp_path, net.weight_rules(), tree['params'])
    module = diffusers.Flux2Transformer2DModel(**BASE).eval()
    from safetensors.torch import load_file

    module.load_state_dict(load_file(tmp_path / 'diffusion_pytorch_model.safetensors'))
    names = wanted.select(net.module_paths())
    assert len(names) == 2 * 3 + 3 * 2
    with torch.no_grad():
        for name in names:
            node = tree[lora.COLLECTION]
            for part in net.module_paths()[name].split('/'):
                node = node[part]
            delta = 2.0 * node['b'].T @ node['a'].T
            module.get_submodule(name).weight += torch.from_numpy(delta)
    want = torch_output(module, args[:4], (2, 3), 4)
    assert relative_error(jax.jit(net.apply)(tree, *args), want) <= 1e-5
    plain = jax.jit(net.apply)({'params': tree['params']}, *args)
    assert relative_error(plain, want) > 0.05  # the adapters did something


def test_every_layer_may_carry_an_adapter():
    net, shapes = build(WIDE, lora=lora.LoraConfig(1, 1.0, ('.*',)))
    names = net.module_paths()
    assert len(names) == 7 + 4 + 12 + 2 * 2
    kernels = {
        jax.tree_util.keystr(path[:-1], simple=True, separator='/')
        for path, _ in jax.tree_util.tree_leaves_with_path(shapes['params'])
        if path[-1].key == 'kernel'
    }
    assert set(names.values()) == kernels


def test_probes_and_hidden_states():
    args = inputs(BASE, 2, (2, 3), 4)
    net, shapes = build(BASE | dict(num_layers=1, num_single_layers=1))
    params = random_tree(shapes['params'])
    for collection, shape in ((attention.PROBE, (2, 10)), (layers.HIDDEN, (2, 6, 32))):
        apply = jax.jit(lambda p, c=collection: net.apply({'params': p}, *args, mutable=[c])[1])
        found = apply(params)
        leaves = jax.tree.leaves(found[collection])
        assert {leaf.shape[-len(shape) :] for leaf in leaves} == {shape}
        assert all(np.isfinite(leaf).all() and leaf.std() > 0 for leaf in leaves)


@pytest.mark.slow  # fresh networks are made for the miniatures alone
def test_fresh_network_predicts_zero():
    small = BASE | dict(num_layers=1, num_single_layers=1)
    args, config = inputs(small, 1, (2, 2), 3), flux2.Flux2Config.from_json(small)
    init = jax.jit(flux2.Flux2Transformer(config).init_with_output)
    out, _ = init(jax.random.key(0, impl='rbg'), *args)  # compiles faster
    assert not out.any()


def test_bfloat16_stays_close_and_returns_float32(tmp_path):
    module, args = reference(BASE, tmp_path), inputs(BASE, 2, (3, 4), 5)
    net, params = load(tmp_path, BASE, True, dtype=jnp.bfloat16)
    half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    out = jax.jit(net.apply)({'params': half}, *args)
    assert out.dtype == jnp.float32
    # bf16 was used, and no more than rounding happened
    assert 1e-4 < relative_error(out, torch_output(module, args[:4], (3, 4), 5)) < 0.1


def test_config_round_trip_and_defaults():
    full = dict(diffusers.Flux2Transformer2DModel(**BASE).config)
    stored = {k: v for k, v in full.items() if not k.startswith('_')}
    config = flux2.Flux2Config.from_json(stored)
    assert config == flux2.Flux2Config.from_json(BASE)
    assert dataclasses.asdict(config) | {'patch_size': 1, 'eps': 1e-6} == {
        k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()
    }


@pytest.mark.parametrize(
    'change, words',
    [
        ({'qk_norm': 'x'}, 'qk_norm'),
        ({'_class_name': 'FluxTransformer2DModel'}, 'FluxTransformer2DModel'),
        ({'num_layers': -1}, 'num_layers'),
        ({'attention_head_dim': 18}, 'axes_dims_rope'),
        ({'axes_dims_rope': [8, 4, 4]}, 'axes_dims_rope'),
        ({'axes_dims_rope': [5, 3, 4, 4]}, 'axes_dims_rope'),
        ({'patch_size': 2}, 'patch_size'),
        ({'eps': 1e-5}, 'eps'),
        ({'in_channels': '64'}, 'in_channels'),
        ({'timestep_guidance_channels': 33}, 'timestep_guidance_channels'),
        ({'guidance_embeds': 1}, 'guidance_embeds'),
        ({'out_channels': 0}, 'out_channels'),
    ],
)
def test_unsupported_configs_name_the_key(change, words):
    with pytest.raises(ValueError, match=words):
        flux2.Flux2Config.from_json(BASE | change)


def test_guidance_must_fit_the_network():
    args = list(inputs(WIDE, 1, (1, 2), 1))
    net, _ = build(WIDE)
    args[3] = None
    with pytest.raises(ValueError, match='guidance_embeds=True'):
        jax.eval_shape(net.init, jax.random.key(0), *args)
