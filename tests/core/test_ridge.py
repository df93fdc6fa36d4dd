"""Ridge regression against least squares and the normal equations; how much a prediction explains,
by hand.
"""

import math

import numpy as np
import pytest

from densegrpo_jax.core import ridge as module
from densegrpo_jax.core.ridge import explained, ridge

RNG = np.random.default_rng(0)


def data(count=200, size=5):
    x = RNG.standard_normal((count, size)) * [1, 10, 0.1, 3, 1] + [0, 5, -1, 0, 2]
    y = x @ [0.5, -0.1, 2.0, 0.0, 1.0] + 0.3 + 0.1 * RNG.standard_normal(count)
    return x.astype(np.float32), y.astype(np.float32)


def test_without_a_penalty_it_is_least_squares(monkeypatch):
    monkeypatch.setattr(module, 'ROWS', 64)  # the sums are added up in parts
    x, y = data()
    (w,), (b,) = ridge(x, y, (0.0,))
    design = np.concatenate([x, np.ones((len(x), 1))], 1).astype(np.float64)
    expected = np.linalg.lstsq(design, y.astype(np.float64), rcond=None)[0]
    np.testing.assert_allclose([*w, b], expected, rtol=1e-5)


def test_a_penalty_is_of_standardised_weights():
    x, y = data()
    weights, intercepts = ridge(x, y, (0.1, 3.0))
    z = (x - x.mean(0, dtype=np.float64)) / x.std(0, dtype=np.float64)
    for penalty, w, b in zip((0.1, 3.0), weights, intercepts):
        gram = z.T @ z / len(z) + penalty * np.eye(5)
        expected = np.linalg.solve(gram, z.T @ (y - y.mean(dtype=np.float64)) / len(z))
        np.testing.assert_allclose(w * x.std(0, dtype=np.float64), expected, rtol=1e-4)
        np.testing.assert_allclose((x @ w + b).mean(), y.mean(), rtol=1e-5)
    rescaled, _ = ridge(x * np.float32(100), y, (0.1,))
    np.testing.assert_allclose(rescaled[0] * 100, weights[0], rtol=1e-4)


def test_what_does_not_vary_has_no_weight():
    x, y = data()
    seven = np.full((len(x), 1), 7, np.float32)
    x = np.concatenate([x, seven, x[:, :1]], 1)  # and one feature twice
    (w,), _ = ridge(x, y, (1e-9,))
    assert w[5] == 0 and np.isfinite(w).all()
    assert w[0] == pytest.approx(w[6], rel=1e-3) and w[0] + w[6] == pytest.approx(0.5, abs=0.02)


def test_what_a_prediction_explains():
    y = np.array([0.0, 1.0, 4.0, 5.0])
    assert explained(y, y) == 1 and explained(y, np.full(4, 2.5)) == 0
    # errors 1, -1, -1, 1: 4 of 17
    assert explained(y, np.array([1.0, 0.0, 3.0, 6.0])) == pytest.approx(1 - 4 / 17)
    groups = np.array([0, 0, 1, 1])
    # the means of the groups alone explain nothing within them, though most over all
    assert explained(y, np.array([0.5, 0.5, 4.5, 4.5]), groups) == 0
    assert explained(y, np.array([0.5, 0.5, 4.5, 4.5])) == pytest.approx(1 - 1 / 17)
    assert explained(y, y + np.array([2, 2, -3, -3]), groups) == pytest.approx(1)
    assert math.isnan(explained(np.ones(3), np.zeros(3)))
