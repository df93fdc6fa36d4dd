"""What `densegrpo sample` says of images that are not finite."""

import logging
import pathlib
import types

import numpy as np
import pytest

from densegrpo_jax.sampling import draw


@pytest.fixture
def drawn(monkeypatch):
    """Draws two images of each of two prompts, of which these are finite."""

    def drawn(finite, weight=0.0):
        rows = iter(np.array(finite).reshape(2, 2))
        sampler = lambda *_: (np.zeros((2, 4, 4, 3), np.uint8), next(rows))
        monkeypatch.setattr(draw, 'make_sampler', lambda *_: sampler)
        monkeypatch.setattr(draw, 'check', lambda *_: types.SimpleNamespace(pipeline=None))
        session = types.SimpleNamespace(
            params={'vae': np.float32(weight)},
            conditioning=lambda texts: {'text': np.zeros(2)},
            negative=None,
            folder=pathlib.Path('m'),
        )
        monkeypatch.setattr(draw, 'load', lambda *_: session)
        config = types.SimpleNamespace(eval=types.SimpleNamespace(steps=1, batch=2))
        return draw.draw(config, ['a', 'b'], copies=2)

    return drawn


def test_images_that_are_not_finite_are_counted(drawn, caplog):
    with caplog.at_level(logging.WARNING, 'absl'):
        assert drawn([True, True, True, True])[0].shape == (4, 4, 4, 3)
        assert not caplog.messages
        drawn([True, False, True, False])
        drawn([False] * 4)  # of weights that are finite
    assert [message.split(' are')[0] for message in caplog.messages] == [
        '2 of 4 images',
        '4 of 4 images',
    ]


def test_the_cause_is_named_if_none_is_finite(drawn):
    with pytest.raises(ValueError, match='base model in m holds values that are not finite.*vae'):
        drawn([False] * 4, weight=np.nan)
    drawn([True, False, True, True], weight=np.nan)
