"""The detector against what was drawn, the shapes reward by hand, and the preference reward's
smoothness.
"""

import cv2
import numpy as np
import pytest

from densegrpo_jax.data import shapes as S
from densegrpo_jax.rewards.build import build_reward
from densegrpo_jax.rewards.local.preference import PreferenceReward
from densegrpo_jax.rewards.local.shape_detector import detect
from densegrpo_jax.rewards.local.shapes import ShapesReward

WHITE = (250, 250, 248)


def drawn(count, seed):
    """`count` scenes of all tasks in turn: pictures and the objects in them."""
    rng, images, truth = np.random.default_rng(seed), [], []
    shade = lambda colour: tuple(int(v) for v in np.clip(colour + rng.integers(-12, 13, 3), 0, 255))
    for i in range(count):
        truth.append(S.place(S.random_scene(S.TAGS[i % len(S.TAGS)], rng), rng))
        images.append(S.draw(truth[-1], shade(S.BACKGROUNDS[i % len(S.BACKGROUNDS)]), jitter=shade))
    return np.stack(images), truth


def accuracy(images, truth, threshold=0.3):
    """Share of pictures in which exactly the drawn objects, shape and colour, are found with more
    than that confidence.
    """
    names = lambda found: sorted((d.name, d.colour) for d in found if d.score > threshold)
    drawn = [sorted((o.shape, o.colour) for o in objects) for objects in truth]
    return np.mean([names(detect(image)) == objects for image, objects in zip(images, drawn)])


def test_detector_finds_what_was_drawn_where_it_was_drawn():
    images, truth = drawn(300, seed=1)
    assert accuracy(images, truth) >= 0.98 and accuracy(images, truth, threshold=0.9) >= 0.98
    for image, objects in zip(images[:60], truth):
        for detection in detect(image):
            x0, y0, x1, y1 = detection.box
            same = [o for o in objects if o.shape == detection.name]
            away = min(np.hypot((x0 + x1) / 2 - o.x, (y0 + y1) / 2 - o.y) / o.radius for o in same)
            assert away < 0.4  # a triangle's centroid lies 0.3 below the centre of its box


def test_detector_stands_blur_and_noise():
    images, truth = drawn(150, seed=2)
    rng = np.random.default_rng(0)
    blurred = np.stack([cv2.GaussianBlur(image, (0, 0), 1.0) for image in images])
    noisy = np.clip(images + rng.normal(0, 20, images.shape), 0, 255).astype(np.uint8)
    assert accuracy(blurred, truth) >= 0.95 and accuracy(noisy, truth) >= 0.95


def test_touching_colours_are_separate_and_blots_are_nothing():
    circle, square = S.Object('circle', 'red', 17, 22, 8), S.Object('square', 'blue', 31, 23, 7)
    found = detect(S.draw([circle, square], WHITE))
    assert [(d.name, d.colour) for d in found if d.score > 0.9 and d.name == 'square'] == [
        ('square', 'blue')
    ]
    assert {d.colour for d in found} == {'red', 'blue'}
    assert detect(np.full((48, 48, 3), 230, np.uint8)) == []
    noise = np.random.default_rng(0).integers(0, 256, (20, 48, 48, 3)).astype(np.uint8)
    # as early completions look
    fog = [cv2.GaussianBlur(cv2.GaussianBlur(image, (0, 0), 4), (0, 0), 4) for image in noise]
    assert sum(d.score > 0.9 for image in (*noise, *fog) for d in detect(image)) <= 2


@pytest.mark.parametrize('ground', S.COLOURS)
def test_a_background_in_a_colour_of_the_palette_hides_nothing_of_another(ground):
    circle, square = [colour for colour in ('red', 'blue', 'green') if colour != ground][:2]
    objects = [S.Object('circle', circle, 12, 24, 7), S.Object('square', square, 36, 24, 7)]
    scene = S.Scene('color_attr', (S.Group(1, 'circle', circle), S.Group(1, 'square', square)))
    assert scores_of(objects, scene, S.COLOURS[ground]) == [1, 1, 1]
    assert detect(S.draw([], S.COLOURS[ground])) == []


def scores_of(objects, scene, ground=WHITE, **options):
    prompt = scene.prompt()
    scores = ShapesReward(**options)(
        S.draw(objects, ground)[None], [prompt.text], [prompt.metadata]
    )
    assert scores.valid.all()
    return [round(float(scores.values[name][0]), 4) for name in ShapesReward.names]


def test_scores_by_hand():
    red_circle, blue_square = (
        S.Object('circle', 'red', 12, 24, 7),
        S.Object('square', 'blue', 36, 24, 7),
    )
    scene = S.Scene(
        'position', (S.Group(1, 'circle', 'red'), S.Group(1, 'square', 'blue')), 'left of'
    )
    swapped = S.Scene('position', scene.groups, 'right of')
    assert scores_of([red_circle, blue_square], scene) == [1, 1, 1]
    # two counts, two colours, and a position that is wrong
    assert scores_of([red_circle, blue_square], swapped) == [0.8, 0, 0]
    assert scores_of([red_circle, blue_square], swapped, half_for_wrong_position=True) == [
        round(5 / 6, 4),
        0,
        0,
    ]
    green = S.Object('circle', 'green', 12, 24, 7)
    assert scores_of([green, blue_square], S.Scene('color_attr', scene.groups)) == [0.75, 0, 0]
    three = S.Scene('counting', (S.Group(3, 'circle'),))
    circles = [S.Object('circle', 'red', x, y, 6) for x, y in ((9, 9), (39, 9), (24, 39), (9, 39))]
    assert scores_of(circles[:3], three) == [1, 1, 1]
    assert scores_of(circles[:2], three) == scores_of(circles, three) == [0.6667, 0, 0]
    assert scores_of(
        [red_circle, blue_square], S.Scene('single_object', (S.Group(1, 'circle'),))
    ) == [1, 1, 1]


def test_rows_are_checked_by_name():
    reward = build_reward({'shapes': {}, 'preference': {'weight': 0.0}})
    assert reward.names == ('total', *ShapesReward.names, *PreferenceReward.names)
    prompts = S.shapes_eval_prompts()
    reward.check([p.text for p in prompts], [p.metadata for p in prompts])
    with pytest.raises(
        ValueError, match=r"prompt 1 \('a cat'\).*shapes.*include\[0\].class is 'cat'.*circle"
    ):
        row = {'tag': 'single_object', 'include': [{'class': 'cat', 'count': 1}]}
        reward.check(['a photo of a star', 'a cat'], [prompts[0].metadata, row])
    with pytest.raises(ValueError, match='preference'):
        PreferenceReward().check(['a sign'], [{'target': 'OPEN'}])


def preference(images, scenes):
    prompts = [scene.prompt() for scene in scenes]
    return PreferenceReward()(
        np.stack(images), [p.text for p in prompts], [p.metadata for p in prompts]
    ).values


def test_preference_falls_with_every_flaw_and_never_ties():
    rng = np.random.default_rng(3)
    scenes = [S.random_scene(S.TAGS[i % len(S.TAGS)], rng) for i in range(48)]
    images = [S.render(scene, rng) for scene in scenes]
    blur = lambda sigma: [cv2.GaussianBlur(image, (0, 0), sigma) for image in images]
    noise = lambda sigma: [
        np.clip(image + rng.normal(0, sigma, image.shape), 0, 255).astype(np.uint8)
        for image in images
    ]
    clean, wrong = (
        preference(given, scenes)['preference'] for given in (images, images[1:] + images[:1])
    )
    assert (clean > wrong + 0.3).mean() > 0.95 and len(set(clean.tolist())) == len(clean)
    for worse, little, much in ((blur, 0.8, 1.2), (noise, 6, 12)):
        slight, strong = (
            preference(worse(little), scenes)['preference'],
            preference(worse(much), scenes)['preference'],
        )
        assert (clean > slight).mean() > 0.95 and (slight > strong).mean() > 0.95
    low, high = PreferenceReward.range
    assert clean.min() > low and clean.max() < high
    assert not preference([np.full_like(images[0], 200)] * 48, scenes)['preference'].any()


def test_preference_moves_little_by_little():
    """A square that walks from one side of a circle to the other: no jump, lowest where it is asked
    to be highest.
    """
    scene = S.Scene(
        'position', (S.Group(1, 'square', 'blue'), S.Group(1, 'circle', 'red')), 'left of'
    )
    walk = [
        S.draw([S.Object('square', 'blue', x, 10, 7), S.Object('circle', 'red', 24, 36, 7)], WHITE)
        for x in np.arange(9, 40, 0.75)
    ]
    match = preference(walk, [scene] * len(walk))['preference_match']
    assert np.abs(np.diff(match)).max() < 0.06 and match[0] > match[20] + 0.2 > match[-1] + 0.4
    square = [S.Object('square', 'blue', 24, 24, 9)]
    shades = [
        S.draw(square, WHITE, jitter=lambda colour: (40 + t, 90, 215 - t)) for t in range(0, 170, 5)
    ]
    match = preference(shades, [S.Scene('colors', (S.Group(1, 'square', 'blue'),))] * len(shades))[
        'preference_match'
    ]
    assert (np.diff(match) < 0).mean() > 0.9 and match[0] > 0.9 and match[-1] < 0.2


def faint_line(row, columns, percent, ground=220, colour='black'):
    """A picture with a line one pixel wide, `percent` of the way from the grey of its ground to a
    colour.
    """
    image = np.full((48, 48, 3), float(ground))
    image[row, columns] += percent / 100 * (np.array(S.COLOURS[colour]) - ground)
    return np.round(image).astype(np.uint8)


def test_a_line_too_thin_for_an_outline_is_nothing():
    scene = S.Scene('counting', (S.Group(2, 'circle', 'red'),))
    lines = [faint_line(20, slice(6, 36), percent) for percent in range(74, 83)]
    for image in lines:
        assert detect(image) == []
    values = preference(lines, [scene] * len(lines))
    assert (
        all(np.isfinite(value).all() for value in values.values())
        and not values['preference'].any()
    )


def test_every_picture_of_thin_lines_has_a_preference():
    rng, images = np.random.default_rng(5), []
    for _ in range(300):
        image = np.full((48, 48, 3), float(rng.integers(0, 256)))
        for _ in range(rng.integers(1, 4)):
            colour = np.array(list(S.COLOURS.values())[rng.integers(len(S.COLOURS))])
            start, length = rng.integers(0, 30), rng.integers(14, 40)
            where = (rng.integers(48), slice(start, start + length))
            image[where if rng.random() < 0.5 else where[::-1]] += rng.uniform(0.6, 1.0) * (
                colour - image[0, 0]
            )
        images.append(np.clip(np.round(image), 0, 255).astype(np.uint8))
    scene = S.Scene(
        'position', (S.Group(1, 'square', 'blue'), S.Group(1, 'circle', 'red')), 'left of'
    )
    for value in preference(images, [scene] * len(images)).values():
        assert np.isfinite(value).all()
