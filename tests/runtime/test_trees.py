"""Trees of JSON values, compared key by key."""

from densegrpo_jax.runtime.trees import ABSENT, differing, dotted


def test_every_key_that_differs_is_named_in_order():
    old = {'b': {'x': 1, 'y': {}}, 'a': 2, 'same': {'z': [1]}}
    new = {'b': {'x': 1.5}, 'c': None, 'same': {'z': [1]}}
    assert differing(old, new) == [
        ('a', 2, ABSENT),
        ('b.x', 1, 1.5),
        ('b.y', {}, ABSENT),
        ('c', ABSENT, None),
    ]
    assert repr(ABSENT) == 'absent' and dotted({}) == {} and differing({}, {}) == []
