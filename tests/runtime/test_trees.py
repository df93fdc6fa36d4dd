"""Trees of JSON values: compared key by key, and made of arrays and numbers."""

import json
import math

import jax.numpy as jnp
import numpy as np

from densegrpo_jax.runtime.trees import ABSENT, differing, dotted, json_value


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


def test_json_values_have_no_number_that_is_not_finite():
    found = json_value(
        {
            'mean': np.float32(0.25),
            'rows': np.array([[1.0, np.nan], [-np.inf, 2.0]]),
            'pair': (jnp.zeros(()), math.inf),
            3: [True, np.int64(7), 'text', None],
        }
    )
    assert json.dumps(found) == (
        '{"mean": 0.25, "rows": [[1.0, null], [null, 2.0]], "pair": [0.0, null], '
        '"3": [true, 7, "text", null]}'
    )
    assert json_value(np.array([1 / 3, np.nan]), 3) == [0.333, None]
