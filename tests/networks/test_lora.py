"""Adapters: against merged torch weights, by name, in their own collection, scanned and
unscanned.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densegrpo_jax.networks import flux, lora
from densegrpo_jax.pipelines.weights import files as weights
from tests.networks.block_stacks import stack_blocks, unstack_blocks

CONFIG = flux.FluxConfig(
    in_channels=8,
    num_layers=2,
    num_single_layers=1,
    attention_head_dim=16,
    num_attention_heads=2,
    joint_attention_dim=24,
    pooled_projection_dim=20,
    guidance_embeds=True,
    axes_dims_rope=(4, 6, 6),
)
TARGETS = (
    'attn.to_q',
    'attn.to_k',
    'attn.to_v',
    r'attn.to_out.0',
    'attn.add_[qkv]_proj',
    'attn.to_add_out',
    'ff.net.0.proj',
    'ff.net.2',
    'ff_context.net.0.proj',
    'ff_context.net.2',
    'proj_mlp',
    r'single_transformer_blocks\.\d+\.proj_out',
)
LORA = lora.LoraConfig(rank=3, alpha=6.0, targets=TARGETS)


def inputs(batch=2, tokens=6, length=4):
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    ids = np.stack([np.zeros(tokens), np.arange(tokens) // 3, np.arange(tokens) % 3], 1).astype(
        np.float32
    )
    return (
        normal(batch, tokens, 8),
        normal(batch, length, 24),
        normal(batch, 20),
        np.linspace(0.2, 0.9, batch, dtype=np.float32),
        np.full(batch, 3.5, np.float32),
        ids,
        np.zeros((length, 3), np.float32),
    )


def paths(scan=False):
    """Checkpoint name -> path of every linear layer."""
    return flux.FluxTransformer(CONFIG, scan=scan).module_paths()


def build(scan, **kwargs):
    """(network, parameters, adapters with a non-zero B), the same whether scanned or not."""
    net = flux.FluxTransformer(CONFIG, scan=scan, lora=LORA, **kwargs)
    shapes = jax.eval_shape(
        flux.FluxTransformer(CONFIG, lora=LORA).init, jax.random.key(0), *inputs()
    )
    rng = np.random.default_rng(1)
    tree = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) / 4, shapes)
    if scan:
        tree = {name: stack_blocks(collection, *flux.STACKS) for name, collection in tree.items()}
    return net, tree['params'], tree['lora']


def apply(net, **variables):
    return jax.jit(net.apply)(variables, *inputs())


@pytest.mark.parametrize('scan', [False, True], ids=['unscanned', 'scanned'])
def test_equals_torch_with_merged_weights(scan, tmp_path):
    torch = pytest.importorskip('torch')
    diffusers = pytest.importorskip('diffusers')
    torch.set_num_threads(1)
    net, params, adapters = build(scan)
    weights.save_weights(tmp_path, net.weight_rules(), params)
    module = diffusers.FluxTransformer2DModel(**dataclasses.asdict(CONFIG)).eval()
    from safetensors.torch import load_file

    module.load_state_dict(load_file(tmp_path / 'diffusion_pytorch_model.safetensors'))
    flat = unstack_blocks(adapters, *flux.STACKS) if scan else adapters
    names = LORA.select(paths())
    assert len(names) == 2 * 12 + 5
    with torch.no_grad():
        for name in names:
            node = flat
            for part in paths()[name].split('/'):
                node = node[part]
            delta = 6.0 / 3 * np.asarray(node['b']).T @ np.asarray(node['a']).T
            module.get_submodule(name).weight += torch.from_numpy(delta)
        latents, text, pooled, timestep, guidance, img_ids, txt_ids = map(
            torch.from_numpy, inputs()
        )
        want = module(latents, text, pooled, timestep, img_ids, txt_ids, guidance).sample.numpy()
    got = apply(net, params=params, lora=adapters)
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()
    reference = apply(net, params=params)
    assert np.abs(reference - want).max() > 0.05 * np.abs(want).max()  # the adapters did something


@pytest.mark.parametrize('scan', [False, True], ids=['unscanned', 'scanned'])
def test_no_collection_is_the_reference(scan):
    net, params, _ = build(scan)
    plain = flux.FluxTransformer(CONFIG, scan=scan)
    reference = apply(plain, params=params)
    np.testing.assert_array_equal(apply(net, params=params), reference)
    fresh = lora.init_adapters(LORA, paths(scan), params, jax.random.key(3))
    # zero B
    np.testing.assert_allclose(
        apply(net, params=params, lora=fresh), reference, rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize('remat', [pytest.param('none', marks=pytest.mark.slow), 'full'])
def test_gradient_over_the_collection_alone(remat):
    """jax.grad sees adapters only, agrees with a directional finite difference, and is the same
    scanned and unscanned.
    """
    grads = {}
    for scan in (False, True):
        net, params, adapters = build(scan, remat=remat)
        loss = lambda tree, net=net, params=params: jnp.mean(
            jnp.square(net.apply({'params': params, 'lora': tree}, *inputs()))
        )
        evaluate = jax.jit(jax.value_and_grad(loss))
        _, grads[scan] = evaluate(adapters)
    assert jax.tree.structure(grads[True]) == jax.tree.structure(adapters)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max()),
        unstack_blocks(grads[True], *flux.STACKS),
        grads[False],
    )
    rng = np.random.default_rng(5)
    direction = jax.tree.map(lambda x: np.float32(rng.standard_normal(x.shape)), adapters)
    step = lambda h: float(evaluate(jax.tree.map(lambda x, d: x + h * d, adapters, direction))[0])
    slope = sum(
        float(jnp.vdot(g, d))
        for g, d in zip(jax.tree.leaves(grads[True]), jax.tree.leaves(direction))
    )
    assert (step(1e-3) - step(-1e-3)) / 2e-3 == pytest.approx(slope, rel=2e-2)


def test_fresh_adapters():
    config = lora.LoraConfig(8, 16.0, ('ff.net.2', 'proj_mlp'))
    shapes = lambda scan: jax.eval_shape(
        flux.FluxTransformer(CONFIG, scan=scan, lora=config).init, jax.random.key(0), *inputs()
    )
    adapters = {
        scan: lora.init_adapters(config, paths(scan), shapes(scan)['params'], jax.random.key(4))
        for scan in (False, True)
    }
    for scan in (False, True):  # the same tree as the network's own
        assert jax.tree.map(jnp.shape, adapters[scan]) == jax.tree.map(
            lambda s: s.shape, shapes(scan)['lora']
        )
    jax.tree.map(
        np.testing.assert_array_equal, stack_blocks(adapters[False], *flux.STACKS), adapters[True]
    )
    leaves = adapters[True]['transformer_blocks']['ff']['net_2']
    assert leaves['a'].dtype == leaves['b'].dtype == jnp.float32 and not leaves['b'].any()
    assert float(leaves['a'].std()) == pytest.approx(1 / 8, rel=0.1)
    assert float(jnp.abs(leaves['a'][0] - leaves['a'][1]).mean()) > 0.05  # blocks differ
    other = lora.init_adapters(config, paths(True), shapes(True)['params'], jax.random.key(5))
    assert (other['transformer_blocks']['ff']['net_2']['a'] != leaves['a']).all()


def test_targets_match_whole_names_or_their_ends():
    names = paths()
    select = lambda *targets: lora.LoraConfig(1, 1.0, targets).select(names)
    # not ff_context.net.2
    assert select('ff.net.2') == ('transformer_blocks.0.ff.net.2', 'transformer_blocks.1.ff.net.2')
    # not single_transformer_blocks
    assert select(r'transformer_blocks\.1\.attn\.to_q') == ('transformer_blocks.1.attn.to_q',)
    assert set(select('proj_out')) == {'proj_out', 'single_transformer_blocks.0.proj_out'}
    assert len(select('.*')) == len(names) == 4 + 6 + 2 * 14 + 6


def test_bad_targets_are_named():
    names = paths()
    with pytest.raises(ValueError, match=r"match no layer: \['attn.to_x', 'ff.net.1'\]"):
        lora.LoraConfig(1, 1.0, ('attn.to_q', 'attn.to_x', 'ff.net.1')).select(names)
    net = flux.FluxTransformer(CONFIG, lora=lora.LoraConfig(1, 1.0, ('attn.to_x',)))
    with pytest.raises(ValueError, match='attn.to_x'):
        jax.eval_shape(net.init, jax.random.key(0), *inputs())
    some = lora.LoraConfig(1, 1.0, (r'transformer_blocks\.0\.attn\.to_q',))
    with pytest.raises(
        ValueError, match=r'only some of the scanned blocks.*transformer_blocks\.1\.attn\.to_q'
    ):
        lora.resolve(some, paths(True))
    assert lora.resolve(some, names).paths == {'transformer_blocks_0/attn/to_q'}
    for arguments in ((0, 1.0, ('a',)), (1, 1.0, ()), (1, 1.0, 'attn'), (1, 1.0, ('(',))):
        with pytest.raises(ValueError, match='lora'):
            lora.LoraConfig(*arguments)
