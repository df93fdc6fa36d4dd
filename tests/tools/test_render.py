import hashlib

import numpy as np
import pytest

from densegrpo_jax.data.prompts import SCENES, quoted_target
from densegrpo_jax.data.words import held_out_words
from tools.make_miniature import render as R


def luminance(colour):
    linear = (np.asarray(colour) / 255.0) ** 2.2
    return linear @ (0.2126, 0.7152, 0.0722)


def contrast(a, b):
    """WCAG 2 contrast ratio, 1 to 21."""
    high, low = max(luminance(a), luminance(b)), min(luminance(a), luminance(b))
    return (high + 0.05) / (low + 0.05)


def test_every_scene_has_a_look_with_readable_colours():
    assert set(R.LOOKS) == set(SCENES)
    for name, look in R.LOOKS.items():
        for palette in look.palettes:
            for background in palette.backgrounds:
                for ink in palette.inks:
                    assert contrast(background, ink) > 4.0, (name, background, ink)


def test_render_depends_on_the_generator_alone():
    a = R.render('HELLO', 'neon', np.random.default_rng(3))
    assert a.shape == (32, 96, 3) and a.dtype == np.uint8
    np.testing.assert_array_equal(a, R.render('HELLO', 'neon', np.random.default_rng(3)))
    assert not np.array_equal(a, R.render('HELLO', 'neon', np.random.default_rng(4)))
    assert R.render('HI', 'wood', np.random.default_rng(0), 64, 128).shape == (64, 128, 3)


@pytest.mark.parametrize('font', R.FONTS)
def test_the_widest_word_fits_inside_the_border(font):
    rng = np.random.default_rng(0)
    for scene in ('road', 'chalkboard'):
        image = R.render('WWWWW', scene, rng, font=font)
        for ring in (image[2:4, 3:-3], image[-4:-2, 3:-3], image[3:-3, 2:4], image[3:-3, -4:-2]):
            assert (ring == image[2, 2]).all() or (ring == image[3, 3]).all(), (
                'ink touches the border'
            )
        assert (image[5:-5, 5:-5] != image[4, 4]).any()


def test_a_word_that_cannot_fit_is_an_error():
    with pytest.raises(ValueError, match='does not fit'):
        R.render('W' * 40, 'neon', np.random.default_rng(0))
    with pytest.raises(ValueError, match="unknown scene 'moon'"):
        R.render('HELLO', 'moon', np.random.default_rng(0))


def test_scenes_depend_on_the_generator_alone_and_keep_the_second_sign_below():
    draw = lambda seed, **options: R.render_scene(
        'Out for Lunch', np.random.default_rng(seed), side=256, **options
    )
    first = draw(0)
    assert first.shape == (256, 256, 3) and first.dtype == np.uint8
    np.testing.assert_array_equal(first, draw(0))
    assert (first != draw(1)).any()
    # Only the extra text differs: everything above the middle was drawn before it.
    one, other = draw(2, extra='open daily'), draw(2, extra='closed')
    changed = np.flatnonzero((one != other).any((1, 2)))
    assert len(changed) and changed.min() >= 128
    with pytest.raises(ValueError, match='does not fit a sign of 128 x 256 pixels'):
        draw(0, extra=40 * 'W')


def test_training_batch_is_a_function_of_seed_and_step():
    images, prompts, targets = R.training_batch(seed=5, step=7, batch_size=24)
    again = R.training_batch(5, 7, 24)
    np.testing.assert_array_equal(images, again[0])
    assert (prompts, targets) == again[1:]
    assert images.shape == (24, 32, 96, 3) and images.dtype == np.uint8
    assert [quoted_target(p) for p in prompts] == targets
    digests = {
        hashlib.sha1(R.training_batch(s, t, 24)[0]).digest()
        for s, t in ((5, 7), (5, 8), (6, 7), (7, 5))
    }
    assert len(digests) == 4


def test_training_batches_hold_no_held_out_word(monkeypatch):
    # words only
    monkeypatch.setattr(R, 'render', lambda *args, **kwargs: np.zeros((32, 96, 3), np.uint8))
    seen = set()
    for step in range(20):
        seen.update(R.training_batch(0, step, 256)[2])
    assert len(seen) > 3000
    assert not seen & set(held_out_words())


def test_missing_fonts_are_explained(monkeypatch):
    R.font_folder.cache_clear()
    monkeypatch.setattr(R.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(FileNotFoundError, match='pip install matplotlib'):
        R.font_folder()
    R.font_folder.cache_clear()


@pytest.mark.slow
def test_clean_renderings_are_read_by_the_ocr_engine():
    rapidocr = pytest.importorskip('rapidocr')
    distance = pytest.importorskip('rapidfuzz').distance.Levenshtein.distance
    options = {'intra_op_num_threads': 1, 'inter_op_num_threads': 1}
    engine = rapidocr.RapidOCR(
        params={'Global.log_level': 'critical'}
        | {f'EngineConfig.onnxruntime.{k}': v for k, v in options.items()}
    )
    images, _, targets = R.training_batch(0, 0, 64)
    scores = []
    for image, target in zip(images, targets):
        texts = engine(
            image.repeat(2, 0).repeat(2, 1), use_det=False, use_cls=False, use_rec=True
        ).txts
        text = ''.join(texts or ()).replace(' ', '').lower()
        wrong = 0 if target.lower() in text else min(distance(text, target.lower()), len(target))
        scores.append(1 - wrong / len(target))
    assert np.mean(scores) >= 0.95
