"""Operation counts against hand-computed ones."""

import jax
import jax.numpy as jnp
import pytest

from densegrpo_jax.networks import flux, sd3
from densegrpo_jax.planning.flops import count_flops

ROW = jnp.zeros((3, 4))


def shape(*dims):
    return jax.ShapeDtypeStruct(dims, jnp.float32)


def test_products_and_convolutions():
    assert count_flops(lambda a, b: a @ b, shape(5, 7), shape(7, 11)) == 2 * 5 * 7 * 11
    assert (
        count_flops(
            lambda q, k: jnp.einsum('bqhd,bkhd->bhqk', q, k), shape(2, 5, 3, 8), shape(2, 7, 3, 8)
        )
        == 2 * 2 * 3 * 5 * 7 * 8
    )
    conv = lambda x, k: jax.lax.conv_general_dilated(
        x, k, (2, 2), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )
    assert count_flops(conv, shape(2, 8, 6, 5), shape(3, 3, 5, 9)) == 2 * (2 * 4 * 3 * 9) * (
        3 * 3 * 5
    )
    assert count_flops(lambda x: jnp.tanh(x) + 1, ROW) == 0


def test_loops_branches_and_recomputation():
    body = lambda carry, _: (carry @ jnp.eye(4), None)
    once = 2 * 3 * 4 * 4
    assert count_flops(lambda x: jax.lax.scan(body, x, None, length=7)[0], ROW) == 7 * once
    assert count_flops(jax.jit(lambda x: x @ jnp.eye(4)), ROW) == once
    assert (
        count_flops(
            lambda x, p: jax.lax.cond(p, lambda y: y @ jnp.eye(4), lambda y: y, x), ROW, True
        )
        == once
    )
    f = lambda x: (jnp.sin(x @ jnp.ones((4, 4))) @ jnp.ones((4, 4))).sum()
    assert count_flops(jax.grad(f), ROW) == 4 * once  # two forward, two back to x
    assert count_flops(jax.grad(jax.checkpoint(f)), ROW) > 4 * once
    with pytest.raises(NotImplementedError, match='while loop'):
        count_flops(
            lambda x: jax.lax.while_loop(lambda c: c.sum() < 1, lambda c: c @ jnp.eye(4), x), ROW
        )


@pytest.mark.parametrize('scan', [False, True])
def test_flux_dev_against_its_formula(scan):
    """FLUX.1-dev at 512 px, 128 text tokens: the sum over its layers, written out."""
    net = flux.FluxTransformer(flux.FluxConfig(guidance_embeds=True), scan=scan, dtype=jnp.bfloat16)
    d, image, text, batch = 3072, 1024, 128, 2
    n = image + text
    args = (
        shape(batch, image, 64),
        shape(batch, text, 4096),
        shape(batch, 768),
        shape(batch),
        shape(batch),
        shape(image, 3),
        shape(text, 3),
    )
    params = jax.eval_shape(net.init, jax.random.key(0), *args)
    attention = 2 * (2 * n * n * d)
    double = 2 * n * (4 * d * d + 8 * d * d) + attention + 2 * (2 * 6 * d * d)
    single = 2 * n * (3 * d * d + 4 * d * d + 5 * d * d) + attention + 2 * 3 * d * d
    ends = (
        2 * image * (64 * d + d * 64)
        + 2 * text * 4096 * d
        + 2 * (2 * (256 * d + d * d) + 768 * d + d * d)
        + 2 * d * 2 * d
    )
    assert count_flops(lambda p, *a: net.apply(p, *a), params, *args) == batch * (
        19 * double + 38 * single + ends
    )


def test_sd35_medium_is_counted_through_its_stacks():
    """Scanned and unscanned count alike."""
    config = sd3.Sd3Config(
        num_layers=4,
        num_attention_heads=2,
        attention_head_dim=16,
        caption_projection_dim=32,
        joint_attention_dim=24,
        pooled_projection_dim=12,
        pos_embed_max_size=12,
        sample_size=8,
        dual_attention_layers=(0, 1),
        qk_norm='rms_norm',
    )
    args = tuple(jnp.zeros(dims) for dims in ((2, 8, 8, 16), (2, 5, 24), (2, 12), (2,)))
    counts = []
    for scan in (False, True):
        net = sd3.Sd3Transformer(config, scan=scan)
        params = jax.eval_shape(net.init, jax.random.key(0), *args)
        counts.append(count_flops(lambda p, net=net: net.apply(p, *args), params))
    assert counts[0] == counts[1] > 0
