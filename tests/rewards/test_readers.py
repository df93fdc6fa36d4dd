"""How a line becomes what the recogniser sees, and what it answers a text and a likelihood."""

import itertools

import numpy as np
import pytest

from densegrpo_jax.rewards.local import readers
from densegrpo_jax.rewards.local.readers import Line, ctc_greedy, ctc_likelihood, line_width


def test_ctc_decoding_by_hand():
    table = ['', 'A', 'B', ' ']
    ids, probs = (
        np.array([0, 1, 1, 0, 1, 2, 2, 3, 0]),
        np.array([0.9, 0.8, 0.1, 0.9, 0.6, 0.4, 0.1, 0.2, 0.9]),
    )
    text, confidence, _ = ctc_greedy(ids, probs, table)
    assert text == 'AAB '  # a repeat merges, a blank separates
    assert confidence == pytest.approx((0.8 + 0.6 + 0.4 + 0.2) / 4)
    assert ctc_greedy(np.zeros(3, int), np.ones(3), table) == Line('', 0.0)


def test_ctc_likelihood_sums_over_every_alignment():
    """Against the definition: the sum over all paths of classes whose collapse is the target, by
    enumeration.
    """
    # 3 pictures, 5 frames, blank and 3 classes
    probs = np.random.default_rng(0).dirichlet(np.ones(4), (3, 5))
    # two letters, a double letter, a letter in both cases
    targets = [[[1], [2]], [[1], [1], [3]], [[2, 3]]]

    def collapses_to(path, target):
        # both cases are one letter before repeats are merged
        same = {c: min(classes) for classes in target for c in classes}
        path = [same.get(c, c) for c in path]
        return [c for i, c in enumerate(path) if c and (i == 0 or c != path[i - 1])] == [
            min(classes) for classes in target
        ]

    for picture, target, got in zip(probs, targets, ctc_likelihood(probs, targets)):
        paths = itertools.product(range(4), repeat=5)
        total = sum(
            np.prod(picture[np.arange(5), path])
            for path in map(list, paths)
            if collapses_to(path, target)
        )
        np.testing.assert_allclose(got, total ** (1 / len(target)), rtol=1e-12)


def test_ctc_likelihood_of_what_cannot_be_written_is_zero():
    probs = np.full((2, 2, 3), 1 / 3)
    # three letters in two frames; no class
    np.testing.assert_array_equal(ctc_likelihood(probs, [[[1], [2], [1]], [[], [1]]]), [0, 0])


def test_width_of_a_line():
    assert line_width(32, 96, 1.0) == 144
    assert line_width(32, 96, 5 / 6) == 120
    assert line_width(32, 100, 5 / 6) == 128  # 125, up to a whole frame
    assert line_width(96, 8, 1.0) == 16


def test_the_recogniser_sees_blue_green_red_in_minus_one_to_one():
    reader = readers.LineReader(width_scale=5 / 6)

    class Session:
        def run(self, names, feed):
            self.x = feed['x']
            return (np.zeros((len(self.x), 15, 18710), np.float32),)

    reader._session = Session()
    orange = np.zeros((2, 32, 96, 3), np.uint8) + np.array([255, 102, 0], np.uint8)
    assert reader(orange) == [[Line('', 0.0)]] * 2
    assert reader._session.x.shape == (2, 3, 48, 120)
    np.testing.assert_allclose(reader._session.x[0, :, 24, 60], [-1, -0.2, 1], atol=1e-6)
