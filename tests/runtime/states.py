"""States to save, and checkpoints of them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from densegrpo_jax.runtime.checkpoints import Checkpoints


def make_state(seed=0, width=8):
    """Everything a trainer keeps: nested adapters, optimiser state in named tuples, odd dtypes and
    bit patterns.
    """
    rng = np.random.default_rng(seed)
    adapters = {
        'attn': {
            'to_q': {
                'a': jnp.asarray(rng.normal(size=(width, 4)), jnp.float32),
                'b': jnp.zeros((4, width)),
            }
        }
    }
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    return {
        'adapters': adapters,
        'opt': optimiser.init(adapters),
        'ema': jax.tree.map(lambda x: x.astype(jnp.bfloat16), adapters),
        'odd': jnp.asarray([np.nan, -0.0, np.inf, 1e-42], jnp.float32),
        'flags': jnp.asarray([True, False]),
        'psi': np.linspace(0, 1, 5, dtype=np.float32),
        'step': jnp.int32(seed),
    }


def abstract_of(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)


def assert_bits_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def save_steps(folder, steps, **kwargs):
    with Checkpoints(folder, **kwargs) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step), {'step': step})


def data_file(folder, step):
    """The file that holds the arrays' bytes."""
    return max(
        (path for path in (folder / str(step)).rglob('*') if path.is_file()),
        key=lambda path: path.stat().st_size,
    )
