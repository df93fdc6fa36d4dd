"""Which transitions an iteration trains: MixGRPO's schedule as a table, DanceGRPO's subsets."""

import collections

import jax
import numpy as np
import pytest

from densegrpo_jax.core.moving_steps import (
    random_subset,
    random_window,
    stays,
    subset_size,
    window_at,
)

ALLOWED = (1, 2, 3, 4, 5)


@pytest.mark.parametrize(
    'arguments, expected',
    [
        ((3, 25), (25, 25, 25)),
        ((5, 25, 'linear', 5), (25, 20, 15, 10, 5)),
        ((1, 25, 'linear', 5), (25,)),
        # 25 exp(-0.1), exp(-0.2) and exp(-0.9): 22.6, 20.5, 10.2
        ((23, 25, 'exponential'), (*(25,) * 14, 23, 21, 19, 17, 16, 14, 13, 12, 11)),
    ],
)
def test_how_long_a_window_stays(arguments, expected):
    assert stays(*arguments) == expected


def test_the_schedule_of_a_window():
    """w = 3 of five transitions, twice at the first place, twice at the second, once at the last,
    and again.
    """
    table = [[1, 2, 3], [1, 2, 3], [2, 3, 4], [2, 3, 4], [3, 4, 5]]
    for iteration, expected in enumerate(table * 3):
        found = window_at(iteration, ALLOWED, 3, (2, 2, 1))
        assert found.tolist() == expected and found.dtype == np.int32
    # MixGRPO's own: T = 25, w = 4, 25 iterations a place
    staying = stays(22, 25)
    assert window_at(24, range(25), 4, staying).tolist() == [0, 1, 2, 3]
    assert window_at(25, range(25), 4, staying).tolist() == [1, 2, 3, 4]
    assert window_at(25 * 22 - 1, range(25), 4, staying).tolist() == [21, 22, 23, 24]
    assert window_at(25 * 22, range(25), 4, staying).tolist() == [0, 1, 2, 3]


def test_the_whole_window_never_moves():
    for iteration in range(4):
        assert window_at(iteration, ALLOWED, 5, (1,)).tolist() == list(ALLOWED)


def test_random_choices_come_from_the_key_and_reach_everything():
    keys = jax.random.split(jax.random.key(0), 200)
    places = {tuple(random_window(key, ALLOWED, 3).tolist()) for key in keys[:50]}
    assert places == {(1, 2, 3), (2, 3, 4), (3, 4, 5)}
    drawn = [tuple(random_subset(key, ALLOWED, 3).tolist()) for key in keys]
    assert all(sorted(set(chosen)) == list(chosen) and len(chosen) == 3 for chosen in drawn)
    counts = collections.Counter(k for chosen in drawn for k in chosen)
    assert set(counts) == set(ALLOWED) and min(counts.values()) > 90  # 120 expected
    assert drawn[3] == tuple(random_subset(keys[3], ALLOWED, 3).tolist())
    assert random_subset(keys[0], ALLOWED, 5).tolist() == list(ALLOWED)


@pytest.mark.parametrize(
    'fraction, allowed, expected',
    [(0.6, 15, 9), (0.6, 5, 3), (0.1, 5, 1), (1.0, 5, 5), (0.7, 10, 7)],
)
def test_the_size_of_a_subset(fraction, allowed, expected):
    assert subset_size(fraction, allowed) == expected


def test_what_cannot_be():
    for call, message in (
        (lambda: stays(3, 25, 'square'), "the rule is 'square'"),
        (lambda: stays(3, 0), 'expected 1 or more'),
        (lambda: window_at(0, ALLOWED, 6, (1,)), 'width is 6; expected 1 to 5'),
        (lambda: window_at(0, ALLOWED, 4, (1,)), 'staying has 1 entries; the window has 2 places'),
        (lambda: random_subset(jax.random.key(0), ALLOWED, 6), 'count is 6'),
    ):
        with pytest.raises(ValueError, match=message):
            call()
