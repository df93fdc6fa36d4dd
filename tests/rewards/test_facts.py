"""What records hold of rewards beside their keys."""

import types

from densegrpo_jax.rewards.facts import reward_facts


def test_two_of_one_name_are_both_told():
    """A training reward, and one of a panel with prompts of its own."""

    class Served:
        name, names = 'remote', ('quality',)

        def __init__(self, fingerprint):
            self._fingerprint = fingerprint

        fingerprint = property(lambda self: self._fingerprint)

    trained, seen = Served('f00'), Served('f01')
    tells = lambda *rewards: reward_facts(rewards)['servers of rewards']
    sum_of = types.SimpleNamespace(name='composite', names=('total',), parts=[(trained, 1.0)])
    assert tells(sum_of) == {'quality': 'f00'}
    # the later one has the name, as in records of 0.1
    assert tells(sum_of, seen) == {'quality': 'f01', 'quality (trained on)': 'f00'}
