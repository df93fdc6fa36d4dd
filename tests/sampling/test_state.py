"""The learning rate and the step of every update against hand-computed numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densegrpo_jax.config.schema import default_config
from densegrpo_jax.networks.network import Network
from densegrpo_jax.networks.sd3 import Sd3Transformer
from densegrpo_jax.sampling.state import learning_rate, optimiser


@pytest.mark.parametrize(
    'warmup, decay, updates, expected',
    [
        (0, 'constant', 1, [8, 8, 8, 8, 8]),
        (3, 'constant', 1, [2, 4, 6, 8, 8]),
        (0, 'linear', 1, [8, 6, 4, 2, 0]),
        (1, 'linear', 1, [4, 8, 16 / 3, 8 / 3, 0]),
        (0, 'linear', 2, [8, 7, 6, 5, 4, 3, 2, 1, 0]),
        (0, 'cosine', 1, [8, 4 + 4 / np.sqrt(2), 4, 4 - 4 / np.sqrt(2), 0]),
    ],
)
def test_learning_rate_of_every_update(warmup, decay, updates, expected):
    config = default_config()
    config.iterations = 4
    config.optim.update(learning_rate=8.0, warmup=warmup, decay=decay, updates=updates)
    rate = learning_rate(config)
    np.testing.assert_allclose(
        [rate(jnp.asarray(k)) for k in range(len(expected))], expected, rtol=1e-6, atol=1e-6
    )


def test_the_optimiser_is_adamw_with_a_clipped_gradient():
    """Two updates by hand, in float64, with every option away from its default."""
    config = default_config()
    options = dict(learning_rate=0.25, b1=0.5, b2=0.75, eps=0.5, weight_decay=0.125, grad_clip=2.5)
    config.optim.update(options)
    tx, x = optimiser(config, Network), {'w': jnp.array([1.0, -2.0])}
    state, want, mean, square = tx.init(x), np.array([1.0, -2.0]), 0, 0
    for i, gradient in enumerate(([3.0, 4.0], [0.5, -1.0]), start=1):
        updates, state = tx.update({'w': jnp.array(gradient)}, state, x)
        x = {'w': x['w'] + updates['w']}
        g = np.array(gradient) * min(1, 2.5 / np.linalg.norm(gradient))
        mean, square = 0.5 * mean + 0.5 * g, 0.75 * square + 0.25 * g**2
        step = mean / (1 - 0.5**i) / (np.sqrt(square / (1 - 0.75**i)) + 0.5)
        want = want - 0.25 * (step + 0.125 * want)
        np.testing.assert_allclose(x['w'], want, rtol=1e-6)


def test_buffers_do_not_decay():
    tx = optimiser(default_config(), Sd3Transformer)
    x = {'pos_embed': {'kernel': jnp.ones(2), 'pos_embed': jnp.ones(2)}}
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, x), tx.init(x), x)
    assert (updates['pos_embed']['pos_embed'] == 0).all()
    assert (updates['pos_embed']['kernel'] < 0).all()
