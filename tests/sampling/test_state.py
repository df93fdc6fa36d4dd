"""The learning rate of every update against hand-computed numbers."""

import jax.numpy as jnp
import numpy as np
import pytest

from densegrpo_jax.config.schema import default_config
from densegrpo_jax.sampling.state import learning_rate


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
