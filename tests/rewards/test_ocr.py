"""OCR reward: the formula by hand, targets, failures, and the real engine on rendered words."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageFilter

from densegrpo_jax.data.scenes import scene_prompts
from densegrpo_jax.rewards import OcrReward, ocr_score
from densegrpo_jax.rewards.local import readers
from densegrpo_jax.rewards.local.readers import Line
from tools.make_miniature.render import render, render_scene

WORDS = (
    ('STONE', 'neon'),
    ('RIVER', 'paper'),
    ('LAMP', 'taxi'),
    ('QUIET', 'screen'),
    ('FOX', 'poster'),
)


@pytest.fixture(scope='module')
def reward():
    return OcrReward()


@pytest.fixture(scope='module')
def pictures():
    rng = np.random.default_rng(0)
    return np.stack([render(word, scene, rng) for word, scene in WORDS])


def prompts():
    return [f'A sign that says "{word}"' for word, _ in WORDS]


def blank(count):
    return np.zeros((count, 32, 96, 3), np.uint8)


def stub(lines):
    """A reader that answers with the given lines, one list per picture."""
    answers = iter(lines)
    return lambda: lambda images: [next(answers) for _ in images]


def scored(lines, targets, **options):
    reward = OcrReward(make_reader=stub(lines), **options)
    scores = reward(
        blank(len(targets)), [''] * len(targets), [{'target': target} for target in targets]
    )
    assert scores.valid.all()
    assert scores.values['ocr'].dtype == np.float32
    return scores.values['ocr'].tolist()


@pytest.mark.parametrize(
    ('recognised', 'target', 'penalty', 'expected'),
    [
        ('HELLO', 'hello', 0, 1.0),
        ('he llo', 'H E L L O', 0, 1.0),  # spaces and case do not count
        ('say HELLO world', 'HELLO', 0, 1.0),  # text around the target is free ...
        ('say HELLO world', 'HELLO', 1, 0.0),  # ... unless it is not: 8 extra letters, capped at 5
        ('HELLO12', 'HELLO', 1, 1 - 2 / 5),
        ('HELLO12', 'HELLO', 0.5, 1 - 1 / 5),
        ('HELO', 'HELLO', 0, 1 - 1 / 5),  # one deletion
        ('HELO', 'HELLO', 1, 1 - 1 / 5),
        ('HALLO', 'HELLO', 0, 1 - 1 / 5),  # one substitution
        ('EHLLO', 'HELLO', 0, 1 - 2 / 5),  # a swap is two edits
        ('xHELO', 'HELLO', 0, 1 - 2 / 5),
        ('', 'HELLO', 0, 0.0),
        ('a long text without it', 'HELLO', 0, 0.0),  # distance capped at the length of the target
    ],
)
def test_formula_by_hand(recognised, target, penalty, expected):
    assert ocr_score(recognised, target, penalty) == pytest.approx(expected, abs=1e-12)


def test_empty_target_is_an_error():
    with pytest.raises(ValueError, match='empty'):
        ocr_score('x', '  ')


@pytest.mark.parametrize('target', [5, 0.5, True, ['OPEN']])
def test_a_target_that_is_no_text_is_named(target):
    reward = OcrReward(make_reader=stub([]))
    said = r"prompt 1, 'b': its target is .*; expected the text that the image shows"
    with pytest.raises(ValueError, match=said):
        reward.check(['a', 'b'], [{'target': 'OPEN'}, {'target': target}])
    with pytest.raises(ValueError, match=said):
        reward(blank(2), ['a', 'b'], [{'target': 'OPEN'}, {'target': target}])


def test_lines_are_joined_unless_their_confidence_is_zero():
    lines = [[Line('NEW', 0.9), Line('YORK', 0.1)], [Line('NEW', 0.9), Line('YORK', 0.0)], []]
    assert scored(lines, ['New York'] * 3) == pytest.approx([1.0, 3 / 7, 0.0])
    assert scored(lines, ['New York'] * 3, drop_score=0.5) == pytest.approx([3 / 7, 3 / 7, 0.0])


def test_target_comes_from_metadata_or_the_first_straight_quotes():
    lines = [[Line('ONE', 1.0)], [Line('TWO', 1.0)]]
    text = ['Signs "ONE" and "TWO"'] * 2
    scores = OcrReward(make_reader=stub(lines))(blank(2), text, [{}, {'target': 'TWO'}])
    assert scores.values['ocr'].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    'bad', ['A sign without a target', 'One lonely " quote', 'Nothing in "  "', '“Curly” quotes']
)
def test_a_prompt_without_target_is_an_error_that_names_it(bad):
    reward = OcrReward(make_reader=stub([]))
    with pytest.raises(ValueError, match='prompt 1:') as error:
        reward(blank(2), ['A sign "OK"', bad], [{}, {}])
    assert bad in str(error.value)
    with pytest.raises(ValueError, match='prompt 0:'):
        reward.check([bad], [{}])


def test_an_engine_failure_makes_only_its_picture_invalid(caplog):
    def reader(images):
        if any(image[0, 0, 0] == 7 for image in images):
            raise RuntimeError('engine trouble')
        return [[Line('OK', 1.0)] for _ in images]

    images = blank(5)
    images[3] = 7
    scores = OcrReward(make_reader=lambda: reader)(images, ['"OK"'] * 5, [{}] * 5)
    assert scores.valid.tolist() == [True, True, True, False, True]
    np.testing.assert_array_equal(scores.values['ocr'], np.array([1, 1, 1, np.nan, 1], np.float32))
    assert 'image 3' in caplog.text
    assert 'engine trouble' in caplog.text


@pytest.mark.parametrize(
    'images',
    [
        np.zeros((1, 32, 96, 3), np.float32),
        np.full((1, 32, 96, 3), np.nan),
        np.zeros((1, 32, 96), np.uint8),
        blank(2),
    ],
)
def test_malformed_pictures_are_refused(images):
    with pytest.raises((TypeError, ValueError), match='images'):
        OcrReward(make_reader=stub([]))(images, ['"A"'], [{}])


@pytest.mark.parametrize(
    'options',
    [
        {'mode': 'guess'},
        {'extra_text_penalty': 1.5},
        {'smooth': 2.0},
        {'smooth': 0.5, 'mode': 'detect'},
        {'drop_score': -1},
        {'batch_size': 0},
        {'width_scale': 0.0},
    ],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        OcrReward(**options)


def test_a_missing_model_is_reported_at_once(monkeypatch):
    monkeypatch.setattr('densegrpo_jax.rewards.local.ocr.RECOGNISER', 'absent.onnx')
    with pytest.raises(FileNotFoundError, match=r'absent\.onnx.*pip install'):
        OcrReward()


def test_smooth_reward_moves_where_the_score_stands_still(pictures):
    said, nothing = prompts(), [{}] * len(WORDS)
    faded = [(0.5 * image + 64).astype(np.uint8) for image in pictures]
    blurred = np.stack(
        [
            np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(2.5)))
            for image in faded
        ]
    )
    smooth, plain = OcrReward(smooth=0.25), OcrReward()
    clear, worse = smooth(pictures, said, nothing).values, smooth(blurred, said, nothing).values
    np.testing.assert_array_equal(clear['ocr'], plain(pictures, said, nothing).values['ocr'])
    np.testing.assert_allclose(
        clear['ocr_smooth'], 0.75 * clear['ocr'] + 0.25 * clear['ocr_likelihood'], rtol=1e-6
    )
    assert smooth.names[0] == 'ocr_smooth' and set(smooth.names) == set(clear)
    still = clear['ocr'] == worse['ocr']
    assert still.any() and np.all(clear['ocr_likelihood'][still] != worse['ocr_likelihood'][still])
    wrong = smooth(pictures, said[1:] + said[:1], nothing).values
    assert np.all(clear['ocr_likelihood'] > 0.8) and np.all(wrong['ocr_likelihood'] < 0.1)


def test_reads_rendered_words(reward, pictures):
    assert [text.upper() for text in reward.read(pictures)] == [word for word, _ in WORDS]
    scores = reward(pictures, prompts(), [{}] * 5)
    assert scores.valid.all()
    assert scores.values['ocr'].tolist() == [1.0] * 5
    swapped = reward(pictures, prompts()[1:] + prompts()[:1], [{}] * 5)
    assert swapped.values['ocr'].max() < 0.7


def test_batches_do_not_change_the_text(pictures):
    one, two = OcrReward(batch_size=1), OcrReward(batch_size=2)
    assert one.read(pictures) == two.read(pictures) == two.read(pictures[::-1])[::-1]


def test_agrees_with_the_package_s_own_recogniser(pictures):
    rapidocr = pytest.importorskip('rapidocr')
    engine = rapidocr.RapidOCR(
        params={'Global.log_level': 'critical', 'EngineConfig.onnxruntime.intra_op_num_threads': 1}
    )
    ours = readers.LineReader(width_scale=1.0)(pictures)
    for image, [line] in zip(pictures, ours):
        theirs = engine(
            np.ascontiguousarray(image[..., ::-1]), use_det=False, use_cls=False, use_rec=True
        )
        assert line.text == theirs.txts[0]
        # another resize filter and padding
        assert line.confidence == pytest.approx(theirs.scores[0], abs=0.05)


def test_score_declines_smoothly_with_noise_and_blur(reward, pictures):
    words = np.repeat(pictures, 2, axis=0)
    text, rng = [prompt for prompt in prompts() for _ in range(2)], np.random.default_rng(1)

    def mean(images):
        scores = reward(images, text, [{}] * len(text))
        assert scores.valid.all()
        return scores.values['ocr'].mean()

    eps = rng.standard_normal(words.shape)
    noise = [
        mean(np.uint8(np.clip(((1 - s) * (words / 127.5 - 1) + s * eps + 1) * 127.5, 0, 255)))
        for s in (0, 0.2, 0.4, 0.6, 1)
    ]
    assert noise[0] == 1.0
    assert noise[1] > 0.9
    assert 0.4 < noise[2] <= noise[1]
    assert noise[3] < noise[2]
    assert noise[4] < 0.15

    def blur(radius):
        return np.stack(
            [
                np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))
                for image in words
            ]
        )

    soft = [mean(blur(radius)) for radius in (1, 2, 4, 12)]
    assert soft[0] > 0.95
    assert soft[1] > 0.85
    assert soft[3] < 0.2 < soft[1]
    assert soft[3] <= soft[2] <= soft[1]


@pytest.mark.parametrize('shape', [(32, 96), (32, 32), (8, 8), (16, 200), (200, 16)])
def test_a_blank_picture_scores_zero(reward, shape):
    for value in (0, 127, 255):
        scores = reward(np.full((2, *shape, 3), value, np.uint8), ['"STOP"'] * 2, [{}] * 2)
        assert scores.valid.all()
        assert scores.values['ocr'].tolist() == [0.0, 0.0]


def test_detects_and_reads_two_lines_on_a_large_picture():
    rng = np.random.default_rng(0)
    scene = np.full((512, 512, 3), 130, np.uint8)
    for top, word in ((60, 'QUIET'), (300, 'RIVER')):
        scene[top : top + 96, 112:400] = np.asarray(
            Image.fromarray(render(word, 'paper', rng)).resize((288, 96))
        )
    reward = OcrReward('detect')
    images = np.stack([scene, np.full_like(scene, 130)])
    assert [text.upper() for text in reward.read(images)] == ['QUIET RIVER', '']
    scores = reward(images, ['"Quiet River"'] * 2, [{}] * 2)
    assert scores.values['ocr'].tolist() == [1.0, 0.0]
    assert scores.valid.all()


def test_reads_cluttered_scenes_and_charges_for_text_beside_the_target():
    """Clean signs on 512-px pictures of shapes, gradients and grain; the last four have a second
    sign.
    """
    rng, targets = np.random.default_rng(3), [prompt.target for prompt in scene_prompts(12, seed=7)]
    extra = [''] * 8 + ['open daily', 'sale today', 'visit our shop', 'since 1984']
    images = np.stack(
        [render_scene(target, rng, extra=more) for target, more in zip(targets, extra)]
    )
    texts = OcrReward('detect').read(images)
    plain, strict = (
        np.array([ocr_score(*pair, penalty) for pair in zip(texts, targets)])
        for penalty in (0.0, 1.0)
    )
    assert plain.mean() >= 0.9
    np.testing.assert_array_equal(plain[:8], strict[:8])
    assert (strict[8:] < plain[8:] - 0.2).all()


def test_recognising_needs_neither_opencv_nor_jax():
    code = (
        'import sys, numpy as np; from densegrpo_jax.rewards import build_reward\n'
        'build_reward({"ocr": {}})(np.zeros((1, 32, 96, 3), np.uint8), [\'"A"\'], [{}])\n'
        'print([m for m in ("cv2", "rapidocr", "torch", "flax", "jax") if m in sys.modules])'
    )
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == '[]'


@pytest.mark.parametrize(
    ('read', 'target'),
    [
        ('CAFÉ', 'CAFE\u0301'),  # an accent of its own
        ('OPEN', '\uff2f\uff30\uff25\uff2e'),  # full width
        ('NO EXIT', 'NO\u00a0EXIT'),  # a space that does not break
        ("JOE'S", 'JOE\u2019S'),
        ('"HI"', '\u201cHI\u201d'),
        ('9-5', '9\u20135'),
        ('office', 'o\ufb03ce'),  # a ligature
        ('A\tB', 'A B'),
        ('COOPERATE', 'CO\u00adOPER\u200bATE'),  # a soft hyphen, a place to break
        ('HELLO', '\ufeffHE\u200dL\u2060LO\u200f'),  # what nothing is drawn for
    ],
)
def test_what_looks_alike_is_alike(read, target):
    assert ocr_score(read, target) == ocr_score(target, read) == 1
    assert ocr_score(read, target, extra_text_penalty=1.0) == 1
    assert ocr_score(read, target, unicode=False) < 1 or ocr_score(target, read, unicode=False) < 1


def test_for_ascii_both_formulas_are_the_same():
    rng = np.random.default_rng(0)
    letters = [c for c in map(chr, range(32, 127)) if c != '`']
    for _ in range(200):
        one, two = (''.join(rng.choice(letters, rng.integers(1, 9))) + 'x' for _ in range(2))
        assert ocr_score(one, two) == ocr_score(one, two, unicode=False)


def test_what_the_reader_does_not_know_is_said_before_the_run(caplog):
    reward = OcrReward()
    reward.check(
        ['a "CAFÉ"', 'b "\uff2f\uff2b"', f'c "{"".join(map(chr, range(35, 127)))}"'], [{}] * 3
    )
    assert not caplog.records
    reward.check(['a "OK"', 'b "\U0001f600 \u16a0"'], [{}] * 2)
    [record] = caplog.records
    said = record.getMessage()
    assert '1 of 2 targets' in said and '\U0001f600' in said and "prompt 'b" in said
    reward.check(['b "\U0001f600 \u16a0"'] * 3, [{}] * 3)  # a batch of images of it
    assert len(caplog.records) == 1
