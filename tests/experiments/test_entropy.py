"""What entropy is worth: correlations of constructed measurements."""

import numpy as np
import pytest

from experiments.entropy import relations

T, P, G = 4, 6, 5
TRAINED = np.array([True, True, True, False])


def constructed(gains):
    """Rewards [T+1, P, G] whose step k gains +-gains[k, p]."""
    signs = np.sign(np.random.default_rng(0).standard_normal((T, P, G)))
    return np.concatenate([np.zeros((1, P, G)), np.cumsum(signs * gains[..., None], 0)])


def test_entropy_in_the_order_of_the_gains():
    gains = np.array([[0.3], [0.1], [0.2], [9]]) * np.linspace(1, 2, P)
    entropy = np.array([[0.6], [0.2], [0.4], [0.0]]) * np.ones(P)
    value, error = relations(constructed(gains), entropy, entropy, TRAINED)['step']
    assert value == pytest.approx(1) and error == pytest.approx(0)
    assert relations(constructed(gains), -entropy, entropy, TRAINED)['step'][0] == pytest.approx(-1)
    assert np.isnan(relations(constructed(gains), 0 * entropy, entropy, TRAINED)['step'][0])


def test_change_in_the_order_of_the_spread():
    rewards = np.zeros((T + 1, P, G))
    rewards[-1] = np.outer([3, 1, 2, 6, 5, 4], np.arange(G))
    entropy, base = np.full((T, P), 0.5), np.full((T, P), 0.5)
    entropy += 0.01 * np.array([3, -1, 2, -6, 5, 4])
    value, error = relations(rewards, entropy, base, TRAINED)['prompt']
    assert value == pytest.approx(1) and error == pytest.approx(1 / np.sqrt(P - 1))
    assert np.isnan(relations(rewards, base, base, TRAINED)['prompt'][0])
