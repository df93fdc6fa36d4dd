"""The cause of images that are not finite is named."""

import pathlib
import types

import jax.numpy as jnp
import numpy as np
import pytest

from densegrpo_jax.sampling.diagnosis import explain, not_finite


def session(**changed):
    conditioning = lambda texts: {'text': np.full((1, 2), np.nan if texts == ['bad'] else 0.0)}
    params = {'vae': {'conv': {'bias': jnp.zeros(3)}}, 'transformer': {'ids': jnp.arange(3)}}
    config = types.SimpleNamespace(text_cache='cache')
    facts = dict(params=params, conditioning=conditioning, folder=pathlib.Path('m'), config=config)
    return types.SimpleNamespace(**(facts | changed))


def test_arrays_are_named_by_their_paths():
    tree = {'a': {'x': jnp.ones(2), 'y': jnp.array([1, jnp.inf])}, 'c': jnp.array(jnp.nan)}
    assert not_finite(tree) == ['a/y', 'c']
    assert not_finite(session().params) == []


def test_nothing_is_said_if_all_is_finite():
    explain(session(), {'x': jnp.ones(2)}, ['a', 'b'])
    explain(session(), None, ['a'])


@pytest.mark.parametrize(
    ('session', 'policy', 'texts', 'said'),
    [
        (
            session(params={'vae': {'bias': jnp.array([jnp.nan])}}),
            None,
            ['a'],
            'base model in m holds values that are not finite.*vae/bias',
        ),
        (session(), {'blocks': {'a': jnp.array(jnp.inf)}}, ['a'], 'the policy holds .*blocks/a'),
        (session(), None, ['a', 'bad'], "conditioning of 1 of 2 prompts .* 'bad'.*cache cache"),
    ],
)
def test_a_cause_is_named(session, policy, texts, said):
    with pytest.raises(ValueError, match=said):
        explain(session, policy, texts)
