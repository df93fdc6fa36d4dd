"""Classifier-free guidance and its options, with numbers worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from densegrpo_jax.core.classifier_free import guided_velocity

V = jnp.array([[3.0, 4.0], [3.0, 4.0], [0.0, 0.0]])  # norms 5, 5, 0
NEGATIVE = jnp.array([[3.0, 0.0], [6.0, 8.0], [0.0, 0.0]])
S = jnp.array([1.0, 0.25, 0.5])  # times 0, 0.75, 0.5


def test_moves_away_from_the_empty_prompt():
    found = guided_velocity(V, NEGATIVE, S, 2.0)
    np.testing.assert_array_equal(found, [[3, 8], [0, 0], [0, 0]])
    each = guided_velocity(V, NEGATIVE, S, jnp.array([1.0, 3.0, 2.0]))
    np.testing.assert_array_equal(each, [[3, 4], [-3, -4], [0, 0]])


def test_the_norm_is_bounded_by_that_of_the_prompt():
    found = guided_velocity(V, NEGATIVE, S, 2.0, normalization=1.0)
    length = np.sqrt(73)
    np.testing.assert_allclose(found, [[15 / length, 40 / length], [0, 0], [0, 0]], rtol=1e-6)
    wide = guided_velocity(V, NEGATIVE, S, 2.0, normalization=1.8)  # 9 is above sqrt(73)
    np.testing.assert_array_equal(wide, guided_velocity(V, NEGATIVE, S, 2.0))


def test_late_times_are_not_guided():
    found = guided_velocity(V, NEGATIVE, S, 2.0, truncation=0.5)
    np.testing.assert_array_equal(found, [[3, 8], [3, 4], [0, 0]])
    both = guided_velocity(V, NEGATIVE, S, 2.0, normalization=0.5, truncation=0.0)
    np.testing.assert_allclose(np.linalg.norm(both, axis=1), [2.5, 5, 0], rtol=1e-6)


def test_has_a_gradient_where_a_velocity_is_zero():
    total = lambda v, negative: guided_velocity(v, negative, S, 2.0, normalization=1.0).sum()
    for v, negative in ((V, NEGATIVE), (jnp.zeros_like(V), jnp.ones_like(V))):
        for found in jax.grad(total, (0, 1))(v, negative):
            assert np.isfinite(found).all()
    bounded = guided_velocity(jnp.zeros_like(V), jnp.ones_like(V), S, 2.0, normalization=1.0)
    np.testing.assert_array_equal(bounded, jnp.zeros_like(V))  # no longer than v
