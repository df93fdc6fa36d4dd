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

    def drawn(finite, weight=0.0, **options):
        rows = iter(np.array(finite).reshape(2, 2))
        sampler = lambda *_: (np.zeros((2, 4, 4, 3), np.uint8), next(rows))
        monkeypatch.setattr(draw, 'make_sampler', lambda *_: sampler)
        pipeline = types.SimpleNamespace(reads=lambda texts: [True] * len(texts))
        monkeypatch.setattr(draw, 'check', lambda *_: types.SimpleNamespace(pipeline=pipeline))
        session = types.SimpleNamespace(
            params={'vae': np.float32(weight)},
            conditioning=lambda texts: {'text': np.zeros(2)},
            negative=None,
            folder=pathlib.Path('m'),
        )
        monkeypatch.setattr(draw, 'load', lambda *_: session)
        config = types.SimpleNamespace(eval=types.SimpleNamespace(steps=1, batch=2))
        return draw.draw(config, ['a', 'b'], copies=2, **options)

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


def test_single_images_are_kept_as_they_are_drawn(drawn, tmp_path):
    """What a stop or a sheet too large for the memory ends, is on the disk."""
    out, many = tmp_path / 'sheet.png', []

    def keep(i, image):
        draw.write_single(out, i, image)
        many.append(i)
        if len(many) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        drawn([True] * 4, keep=keep)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f'sheet_{i:04d}.png' for i in many]
    assert many == [0, 1, 2] and draw.is_drawn(draw.single_file(out, 2))
