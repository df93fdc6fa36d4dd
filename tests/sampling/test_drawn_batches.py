"""Many copies of a prompt are drawn a batch at a time, and the texts of a run are found in time."""

import types

import numpy as np
import pytest
from ml_collections import ConfigDict

from densegrpo_jax.data.prompts import Prompt, PromptSet
from densegrpo_jax.data.sampler import prompts_for_step
from densegrpo_jax.sampling import draw
from densegrpo_jax.training.run import _needed_texts


@pytest.fixture
def drawn(monkeypatch):
    """(copies, batch) -> what `draw` gives for two prompts, and the sizes of its batches; an image
    shows its key."""

    def drawn(copies, batch):
        sizes = []

        def sampler(params, policy, conditioning, negative, keys):
            assert len(keys) == len(conditioning)
            sizes.append(len(keys))
            return np.asarray(keys, np.uint32).view(np.uint8).reshape(len(keys), 2, 4, 1), np.ones(
                len(keys), bool
            )

        session = types.SimpleNamespace(params=None, negative=None, conditioning=list)
        pipeline = types.SimpleNamespace(reads=lambda texts: np.ones(len(texts), bool))
        monkeypatch.setattr(draw, 'make_mesh', lambda sizes: None)
        monkeypatch.setattr(draw, 'check', lambda *_: types.SimpleNamespace(pipeline=pipeline))
        monkeypatch.setattr(draw, 'load', lambda *_: session)
        monkeypatch.setattr(draw, 'make_sampler', lambda *_: sampler)
        config = ConfigDict({'eval': {'batch': batch, 'steps': 2}})
        return *draw.draw(config, ['a', 'b'], copies=copies), sizes

    return drawn


@pytest.mark.parametrize('batch', [1, 3, 4, 6, 7])
def test_batches_of_copies_are_alike_and_change_nothing(drawn, batch):
    whole, captions, _ = drawn(7, 100)
    images, said, sizes = drawn(7, batch)
    np.testing.assert_array_equal(images, whole)
    assert said == captions == ['base: a'] * 7 + ['base: b'] * 7
    assert len({*sizes}) == 1 and sizes[0] <= batch and sum(sizes) < 2 * 7 + 2 * batch


def test_the_texts_of_a_long_run_are_found_once_all_were_seen():
    train, asked = PromptSet(tuple(Prompt(str(i % 8)) for i in range(10))), []

    def chosen(step):
        asked.append(step)
        return prompts_for_step(train, 3, step, 0)

    config = ConfigDict({'iterations': 10**6, 'noise': {'calibrate': False}})
    checked = types.SimpleNamespace(config=config, train=train, test=[Prompt('t')])
    texts = _needed_texts(checked, chosen, [Prompt('g')])
    assert {*texts} == {'t', 'g', *map(str, range(8))} and len(asked) < 100
    config.iterations = 1
    assert {*_needed_texts(checked, chosen, [])} == {'t', *(p.text for p in chosen(0))}
