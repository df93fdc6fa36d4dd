"""The guided text embedding of D2-Align: its table by hand, its symmetries and its closed form."""

import jax.numpy as jnp
import numpy as np
import pytest

from densegrpo_jax.core.direction import guided_text, variance_shares
from tests.closed_forms import orthogonal_optimum

RNG = np.random.default_rng(0)


def units(*shape):
    x = RNG.standard_normal(shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def test_by_hand():
    e, i, b = np.float32([1, 0, 0]), np.float32([0.6, 0.8, 0]), np.float32([0, 0.5, 0])
    np.testing.assert_allclose(
        guided_text(e, b, 1.0), np.array([1, 0.5, 0]) / np.sqrt(1.25), rtol=1e-6
    )
    guided = guided_text(e, b, 1.5)
    np.testing.assert_allclose(guided, [0.894427, 0.894427, 0], atol=1e-6)
    assert float(i @ np.asarray(guided)) == pytest.approx(1.252198, abs=1e-6)
    np.testing.assert_allclose(
        guided_text(e, b, 1.5, renormalise=True), np.array([1, 1, 0]) / np.sqrt(2), rtol=1e-6
    )


def test_no_direction_is_the_plain_text_to_the_bit():
    e = units(50, 7)
    for omega in (-0.5, 0.0, 1.0, 1.5, 3.0):
        for renormalise in (False, True):
            guided = guided_text(e, np.zeros(7, np.float32), omega, renormalise=renormalise)
            np.testing.assert_array_equal(guided, e)


def test_symmetries():
    e, b = units(20, 5), RNG.standard_normal(5).astype(np.float32)
    sides = [e + b, e - b]
    plus, minus = (s / np.linalg.norm(s, axis=1, keepdims=True) for s in sides)
    np.testing.assert_allclose(guided_text(e, b, 1.0), plus, atol=1e-6)
    np.testing.assert_allclose(guided_text(e, b, 0.0), minus, atol=1e-6)
    np.testing.assert_allclose(guided_text(e, -b, -0.5), guided_text(e, b, 1.5), atol=1e-6)
    assert np.abs(np.asarray(guided_text(e, -b, 1.5)) - guided_text(e, b, 1.5)).max() > 0.1


def test_a_direction_across_the_text_has_the_closed_form():
    e, i, b = units(6), units(40, 6), RNG.standard_normal(6).astype(np.float32)
    b -= (b @ e) * e
    omega = 1.5
    expected = (i @ e + (2 * omega - 1) * (i @ b)) / np.sqrt(1 + b @ b)
    np.testing.assert_allclose(i @ np.asarray(guided_text(e, b, omega)), expected, atol=1e-6)


def test_the_optimum_is_one():
    e = units(6)
    mean = 0.3 * e + 0.2 * units(6)
    best, value = orthogonal_optimum(mean, e, 1.5)
    reached = lambda b: float(jnp.asarray(mean) @ guided_text(e, b, 1.5))
    assert abs(float(jnp.asarray(e) @ best)) < 1e-6
    assert reached(best) == pytest.approx(value, abs=1e-6)
    for _ in range(20):
        off = 0.1 * RNG.standard_normal(6)
        off -= (off @ e) * e
        assert reached(np.asarray(best) + off) < value


def test_variance_shares():
    e = np.tile(np.float32([1, 0, 0]), (4, 1))
    i = np.float32([[0.5, 0.1, 0], [0.5, -0.1, 0], [0.7, 0.1, 0], [0.7, -0.1, 0]])
    # i.e and 2 i.b vary independently, by 0.1 and 0.2 |b|
    shares = variance_shares(i, e, np.float32([0, 1, 0]), 1.5)
    np.testing.assert_allclose(shares, [0.2, 0.8], atol=1e-6)
    np.testing.assert_allclose(variance_shares(i, e, np.zeros(3), 1.5), [1, 0], atol=1e-6)
    texts, b = units(9, 3), np.float32([0.2, 0.5, -0.3])
    pictures = units(9, 3)
    guided = np.asarray(guided_text(texts, b, 1.5, renormalise=True))
    total = (pictures * guided).sum(1)
    scale = 1 / np.linalg.norm(np.asarray(guided_text(texts, b, 1.5)), axis=1)
    plus, minus = (np.linalg.norm(texts + sign * b, axis=1) for sign in (1, -1))
    part = scale * (1.5 / plus + 0.5 / minus) * (pictures @ b)
    expected = np.cov(part, total, ddof=0)[0, 1] / total.var()
    found = variance_shares(pictures, texts, b, 1.5, renormalise=True)
    np.testing.assert_allclose(found, [1 - expected, expected], atol=1e-5)
    np.testing.assert_array_equal(variance_shares(i[:1], e[:1], np.ones(3), 1.5), [1, 0])
