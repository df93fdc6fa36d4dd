"""Scenes of shapes: their words and GenEval rows, the split by composition, and pictures that show
what was asked for.
"""

import collections

import numpy as np
import pytest

from densegrpo_jax.data import shapes as S
from densegrpo_jax.data.geneval import check_metadata
from densegrpo_jax.rewards.local.geneval_rule import Detection, relations

RED_CIRCLES_LEFT = S.Scene(
    'position', (S.Group(3, 'circle', 'red'), S.Group(1, 'square', 'blue')), 'left of'
)


def scenes(count, seed=0):
    rng = np.random.default_rng(seed)
    return [S.random_scene(S.TAGS[i % len(S.TAGS)], rng) for i in range(count)]


def test_words_and_rows():
    prompt = RED_CIRCLES_LEFT.prompt()
    assert prompt.text == 'a photo of three red circles left of a blue square'
    square, circles = (
        {'class': 'square', 'count': 1, 'color': 'blue'},
        {'class': 'circle', 'count': 3, 'color': 'red'},
    )
    assert prompt.metadata == {
        'tag': 'position',
        'include': [square, circles | {'position': ['left of', 0]}],
        'prompt': prompt.text,
    }
    crosses = S.Scene('counting', (S.Group(2, 'cross'),)).prompt()
    assert (
        crosses.metadata['exclude'] == [{'class': 'cross', 'count': 3}]
        and crosses.text == 'a photo of two crosses'
    )
    assert S.Scene('colors', (S.Group(1, 'star', 'orange'),)).words() == 'an orange star'
    for scene in scenes(120):
        check_metadata(scene.prompt().metadata, S.SHAPES)
        assert set(scene.prompt().text.split()) <= set(S.vocabulary())
    with pytest.raises(ValueError, match="'colour'.*single_object"):
        S.random_scene('colour', np.random.default_rng(0))


def test_a_composition_is_the_same_in_other_words():
    first, second = RED_CIRCLES_LEFT.groups
    mirrored = S.Scene('position', (second, first), 'right of')
    assert mirrored.words() == 'a blue square right of three red circles'
    assert mirrored.composition() == RED_CIRCLES_LEFT.composition()
    other_side = S.Scene('position', (first, second), 'right of')
    both = S.Scene('color_attr', (first, second))
    assert len({scene.composition() for scene in (RED_CIRCLES_LEFT, other_side, both)}) == 3
    assert both.composition() == S.Scene('color_attr', (second, first)).composition()


def test_no_training_prompt_asks_for_a_held_out_composition():
    """The two sets meet in neither texts nor compositions, which are read off the rows here, not by
    `composition`.
    """

    def asked_for(row):
        things = [
            tuple(clause.get(k) for k in ('class', 'count', 'color')) for clause in row['include']
        ]
        relation = next(
            (clause['position'][0] for clause in row['include'] if 'position' in clause), None
        )
        if relation in ('right of', 'below'):  # the other way round
            things, relation = things[::-1], S.OPPOSITE[relation]
        return relation, tuple(things) if relation else tuple(sorted(things, key=str))

    train, held_out = S.shapes_train_prompts(), S.shapes_eval_prompts()
    rng = np.random.default_rng(7)
    base = [S.training_scene(S.BASE_WEIGHTS, rng).prompt() for _ in range(4000)]
    distinct = {p.text: p.metadata['tag'] for p in held_out}
    assert collections.Counter(p.metadata['tag'] for p in held_out) == dict.fromkeys(S.TAGS, 100)
    assert [list(distinct.values()).count(tag) for tag in S.TAGS] == [5, 4, 7, 45, 100, 100]
    assert not {asked_for(p.metadata) for p in held_out} & {
        asked_for(p.metadata) for p in (*train, *base)
    }
    tags = collections.Counter(p.metadata['tag'] for p in train)
    assert (
        len(train) == 4096
        and tags['position'] > tags['counting'] > tags['color_attr'] > tags['colors'] > 100
    )
    assert S.shapes_eval_prompts() == held_out and tuple(S.shapes_train_prompts(50)) == train[:50]


def test_places_keep_distance_and_satisfy_the_relation_of_every_pair():
    rng = np.random.default_rng(1)
    for scene in scenes(200) + [RED_CIRCLES_LEFT] * 20:
        objects = S.place(scene, rng)
        wanted = [(g.shape, g.colour) for g in scene.groups for _ in range(g.count)]
        assert [(o.shape, colour and o.colour) for o, (_, colour) in zip(objects, wanted)] == wanted
        for i, a in enumerate(objects):
            assert (
                all(S.REACH * a.radius <= v <= S.SIZE - S.REACH * a.radius for v in (a.x, a.y))
                and a.radius > 4.5
            )
            for b in objects[:i]:
                assert (
                    np.hypot(a.x - b.x, a.y - b.y) >= S.REACH * (a.radius + b.radius) + S.GAP - 1e-6
                )
        if scene.relation:
            found = [
                Detection(
                    o.shape, (o.x - o.radius, o.y - o.radius, o.x + o.radius, o.y + o.radius), 1.0
                )
                for o in objects
            ]
            split = scene.groups[0].count
            assert all(
                scene.relation in relations(a, b) for a in found[:split] for b in found[split:]
            )


@pytest.mark.parametrize(
    'shape, area',
    [
        ('circle', np.pi),
        ('square', 4 * 0.85**2),
        ('triangle', 1.2**2 * 3**0.5 * 0.75),
        ('cross', 8 * 0.36 * 1.08 - 4 * 0.36**2),
    ],
)
def test_drawn_areas(shape, area):
    image = S.draw([S.Object(shape, 'black', 31.3, 33.1, 14.0, 5.0)], (255, 255, 255))
    black = (255 - image[..., 0].astype(float)) / (255 - S.COLOURS['black'][0])
    assert abs(black.sum() / (area * 14.0**2) - 1) < 0.06
    ys, xs = np.indices(black.shape)
    assert (
        abs((xs * black).sum() / black.sum() - 30.8) < 0.6
        and abs((ys * black).sum() / black.sum() - 32.6) < 0.6
    )


def test_training_data_is_a_function_of_its_key():
    images, prompts = S.training_batch(3, 5, 12)
    again, same = S.training_batch(3, 5, 12)
    assert images.shape == (12, 48, 48, 3) and images.dtype == np.uint8 and prompts == same
    np.testing.assert_array_equal(images, again)
    assert (S.training_batch(3, 6, 12)[0] != images).any()
    assert [p.startswith(S.PREFIX) for p in prompts] == [True, False] * 6
    assert S.training_batch(3, 5, 2, size=64)[0].shape == (2, 64, 64, 3)
