"""The implementations of attention against the plain formula, and the kernel for TPUs against XLA
on a mesh, interpreted.
"""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densegrpo_jax.networks import attention, flux
from densegrpo_jax.runtime.mesh import make_mesh
from tests.networks.parity import random_tree


def inputs(batch, tokens, heads, depth, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 4)
    return [jax.random.normal(key, (batch, tokens, heads, depth), dtype) for key in keys]


def test_plain_attention_is_the_formula():
    q, k, v, _ = (np.asarray(x, np.float64) for x in inputs(2, 5, 3, 4))
    logits = np.einsum('bqhd,bkhd->bhqk', q, k) / np.sqrt(4)
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    want = np.einsum('bhqk,bkhd->bqhd', weights, v).reshape(2, 5, 12)
    np.testing.assert_allclose(
        attention.xla(*map(jnp.float32, (q, k, v))), want, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ('tokens', 'length', 'block'),
    [(1536, 1536, 512), (4608, 4608, 512), (1357, 1536, 512), (28, 128, 128), (300, 384, 384)],
)
def test_padding_of_the_kernel(tokens, length, block):
    assert attention.padded_length(tokens) == (length, block)
    assert length % block == 0 and length - tokens < block


# A batch that is split over data and fsdp, of one block as it is; a batch too odd to split, padded
# to two blocks.
@pytest.mark.parametrize(('batch', 'tokens'), [(4, 128), (3, 150)])
def test_splash_equals_plain_attention_on_a_mesh(batch, tokens, monkeypatch):
    monkeypatch.setattr(attention, 'SPLASH_BLOCK', 128)
    mesh = make_mesh({'data': 2, 'fsdp': 2, 'tensor': 2})
    q, k, v, weight = inputs(batch, tokens, 2, 16)

    def loss(attend, q, k, v):
        out = attend(q, k, v)
        return (out * weight.reshape(out.shape)).sum(), out

    results = []
    for attend in (attention.xla, functools.partial(attention.splash, mesh=mesh, interpret=True)):
        (_, out), gradients = jax.jit(
            jax.value_and_grad(functools.partial(loss, attend), argnums=(0, 1, 2), has_aux=True)
        )(q, k, v)
        results.append((out, *gradients))
    for got, want in zip(*results):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=2e-5)


def prefix_of(lengths):
    """The cuDNN kernel over the first `lengths` of the keys."""
    return lambda q, k, v: attention.cudnn(q, k, v, np.array(lengths))


# an odd number has no backward pass in JAX, so both make it even
@pytest.mark.parametrize('attend', [attention.cudnn, prefix_of([128, 5])], ids=['all', 'prefix'])
@pytest.mark.parametrize('tokens', [128, 127])
def test_cudnn_is_lowered_to_its_kernel(monkeypatch, tokens, attend):
    library = pytest.importorskip('jax._src.cudnn.fused_attention_stablehlo')
    if not hasattr(library, 'check_cudnn_version'):
        pytest.skip('this JAX looks for cuDNN elsewhere')
    # there is none here: the program is only written down
    monkeypatch.setattr(library, 'check_cudnn_version', lambda: 91200)
    q, k, v, _ = inputs(2, tokens, 3, 64, jnp.bfloat16)
    gradient = jax.jit(jax.grad(lambda q, k, v: attend(q, k, v).astype(jnp.float32).sum()))
    text = gradient.trace(q, k, v).lower(lowering_platforms=('cuda',)).as_text()
    # no weights [.., N, N] outside the kernel
    assert '__cudnn$fmha' in text and '128x128' not in text


@pytest.mark.parametrize('tokens', [8, 7])
@pytest.mark.parametrize('lengths', [None, (3, 6)], ids=['all', 'prefix'])
def test_cudnn_sees_the_keys_it_should(monkeypatch, tokens, lengths):
    """Neither the token that makes a number even nor the padding after a prefix: with JAX's plain
    implementation in the kernel's place, which takes the same lengths.
    """
    plain = jax.nn.dot_product_attention
    monkeypatch.setattr(
        jax.nn, 'dot_product_attention', lambda *args, implementation, **rest: plain(*args, **rest)
    )

    def each(q, k, v):
        """Every sample by itself, over its own keys."""
        rows = [
            attention.xla(q[i : i + 1], k[i : i + 1, :length], v[i : i + 1, :length])
            for i, length in enumerate(lengths or (tokens, tokens))
        ]
        return jnp.concatenate(rows)

    found = attention.cudnn if lengths is None else prefix_of(lengths)
    q, k, v, weight = inputs(2, tokens, 3, 16)
    loss = lambda attend: lambda *a: (attend(*a) * weight.reshape(2, tokens, 48)).sum()
    np.testing.assert_allclose(found(q, k, v), each(q, k, v), rtol=1e-4, atol=1e-5)
    for got, want in zip(*(jax.grad(loss(a), (0, 1, 2))(q, k, v) for a in (found, each))):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_heads_must_divide():
    mesh = make_mesh({'data': 2, 'fsdp': 2, 'tensor': 2})
    with pytest.raises(ValueError, match='3 heads do not divide over config.mesh.tensor=2'):
        attention.splash(*inputs(4, 128, 3, 16)[:3], mesh=mesh, interpret=True)


def test_a_network_takes_the_kernel_it_is_given():
    config = flux.FluxConfig(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        guidance_embeds=False,
        axes_dims_rope=(4, 6, 6),
    )
    key = jax.random.key(0)
    x, text, pooled = (
        jax.random.normal(key, (2, 6, 4)),
        jax.random.normal(key, (2, 5, 8)),
        jax.random.normal(key, (2, 8)),
    )
    args = (x, text, pooled, jnp.full(2, 0.5), None, jnp.zeros((6, 3)), jnp.zeros((5, 3)))
    kernel = functools.partial(
        attention.splash, mesh=make_mesh({'data': 2, 'fsdp': 2, 'tensor': 2}), interpret=True
    )
    network = lambda attend: flux.FluxTransformer(config, scan=True, attend=attend)
    params = random_tree(jax.eval_shape(network(attention.xla).init, key, *args))
    outputs = {
        name: jax.jit(network(attend).apply)(params, *args)
        for name, attend in (('xla', attention.xla), ('splash', kernel))
    }
    np.testing.assert_allclose(outputs['splash'], outputs['xla'], rtol=1e-4, atol=1e-5)


def absent(platform):
    return types.SimpleNamespace(devices=np.array([types.SimpleNamespace(platform=platform)]))


def test_choice_is_checked_against_the_devices():
    assert attention.choose('xla', absent('cpu'), 'float32') is attention.xla
    assert attention.choose('cudnn', absent('gpu'), 'bfloat16') is attention.cudnn
    assert attention.choose('splash', absent('tpu'), 'float32').func is attention.splash
    with pytest.raises(
        ValueError, match="'splash' runs on tpu devices, and these are cpu: use 'xla'"
    ):
        attention.choose('splash', absent('cpu'), 'bfloat16')
    with pytest.raises(ValueError, match="'cudnn' runs on gpu"):
        attention.choose('cudnn', absent('tpu'), 'bfloat16')
    with pytest.raises(ValueError, match="needs model.dtype='bfloat16', found 'float32'"):
        attention.choose('cudnn', absent('gpu'), 'float32')
    with pytest.raises(ValueError, match="model.attention='flash' is not known"):
        attention.choose('flash', absent('gpu'), 'bfloat16')
