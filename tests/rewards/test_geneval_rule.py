"""GenEval's rules on hand-made detections of every tag; the numbers are worked out by hand."""

import pytest

from densegrpo_jax.data.geneval import check_metadata
from densegrpo_jax.rewards.local.geneval_rule import (
    Detection,
    colours_needed,
    geneval_scores,
    relations,
)


def at(name, x, y, colour=None, *, size=20, score=0.95):
    """An object of `size` pixels a side, its centre at (x, y)."""
    return Detection(name, (x - size / 2, y - size / 2, x + size / 2, y + size / 2), score, colour)


def many(name, count, **more):
    return [at(name, 30 * i, 50, **more) for i in range(count)]


def one(name, **more):
    return {'class': name, 'count': 1, **more}


SINGLE = {'tag': 'single_object', 'include': [one('bowl')], 'prompt': 'a photo of a bowl'}
TWO = {
    'tag': 'two_object',
    'include': [one('bowl'), one('skis')],
    'prompt': 'a photo of a bowl and a skis',
}
COUNTING = {
    'tag': 'counting',
    'include': [{'class': 'wine glass', 'count': 2}],
    'exclude': [{'class': 'wine glass', 'count': 3}],
    'prompt': 'a photo of two wine glasses',
}
COLORS = {
    'tag': 'colors',
    'include': [one('cup', color='purple')],
    'prompt': 'a photo of a purple cup',
}
POSITION = {
    'tag': 'position',
    'include': [one('laptop'), one('cow', position=['right of', 0])],
    'prompt': 'a photo of a cow right of a laptop',
}
COLOR_ATTR = {
    'tag': 'color_attr',
    'include': [one('handbag', color='pink'), one('scissors', color='black')],
    'prompt': 'a photo of a pink handbag and a black scissors',
}
ROWS = (SINGLE, TWO, COUNTING, COLORS, POSITION, COLOR_ATTR)

laptop, cow_right, cow_left = at('laptop', 100, 100), at('cow', 200, 100), at('cow', 0, 100)
pink_bag, black_scissors = at('handbag', 50, 50, 'pink'), at('scissors', 150, 50, 'black')


@pytest.mark.parametrize(
    ('metadata', 'detections', 'score', 'strict', 'correct', 'reason'),
    [
        # what nobody asked for is free
        (SINGLE, many('bowl', 1) + many('dog', 3), 1, True, True, ''),
        (
            SINGLE,
            [],
            0,
            False,
            False,
            'expected 1 bowl, found 0; expected at least 1 bowl, found 0',
        ),
        # 1 - |1 - 2| / 1; GenEval asks for at least one
        (SINGLE, many('bowl', 2), 0, False, True, 'expected 1 bowl, found 2'),
        (SINGLE, many('bowl', 4), -2, False, True, 'expected 1 bowl, found 4'),
        # no more than 16 of a class
        (SINGLE, many('bowl', 40), 1 - 15, False, True, 'expected 1 bowl, found 16'),
        (SINGLE, many('bowl', 1, score=0.3), 0, False, False, None),  # not above the threshold
        (SINGLE, many('bowl', 1, score=0.31), 1, True, True, ''),
        (TWO, many('bowl', 1) + many('skis', 1), 1, True, True, ''),
        (TWO, many('bowl', 1), 0.5, False, False, None),
        (TWO, many('bowl', 1) + many('skis', 2), 0.5, False, True, 'expected 1 skis, found 2'),
        (COUNTING, many('wine glass', 2), 1, True, True, ''),
        (COUNTING, many('wine glass', 1), 0.5, False, False, None),
        (
            COUNTING,
            many('wine glass', 3),
            0.5,
            False,
            False,
            'expected 2 wine glass, found 3; expected fewer than 3 wine glass, found 3',
        ),
        (COUNTING, many('wine glass', 5), -0.5, False, False, None),
        # 0.9 must be passed where one counts
        (COUNTING, many('wine glass', 2) + many('wine glass', 3, score=0.9), 1, True, True, ''),
        (COLORS, [at('cup', 0, 0, 'purple')], 1, True, True, ''),
        # (1 + 0) / 2
        (COLORS, [at('cup', 0, 0, 'blue')], 0.5, False, False, 'expected 1 purple cup, found blue'),
        (COLORS, [], 0, False, False, None),
        # Two cups: the count gives 0, the colour 0 with it; GenEval looks at the more confident one
        # alone, wherever it stands.
        (
            COLORS,
            [at('cup', 0, 0, score=0.5), at('cup', 50, 0, 'purple')],
            0,
            False,
            True,
            'expected 1 cup, found 2',
        ),
        (
            COLORS,
            [at('cup', 50, 0, 'red'), at('cup', 0, 0, 'purple', score=0.5)],
            0,
            False,
            False,
            None,
        ),
        (POSITION, [laptop, cow_right], 1, True, True, ''),
        # parts 1, 1, 0 and 1
        (POSITION, [laptop, cow_left], 3 / 4, False, False, 'expected cow right of laptop'),
        (POSITION, [laptop], 1 / 3, False, False, None),  # parts 1, 0, 0
        (POSITION, [cow_right], 1 / 3, False, False, None),  # parts 0, 1, 0: nothing to be right of
        # the same, but one laptop is enough for GenEval
        (POSITION, [laptop, laptop, cow_right], 1 / 3, False, True, None),
        # parts 1, 0, 0
        (POSITION, [laptop, cow_right, cow_left], 1 / 3, False, True, 'expected 1 cow, found 2'),
        # of equals the first counts
        (POSITION, [laptop, cow_left, cow_right], 1 / 3, False, False, None),
        (COLOR_ATTR, [pink_bag, black_scissors], 1, True, True, ''),
        (
            COLOR_ATTR,
            [pink_bag, black_scissors._replace(colour='red')],
            3 / 4,
            False,
            False,
            'expected 1 black scissors, found red',
        ),
        (COLOR_ATTR, [pink_bag], 1 / 2, False, False, None),  # parts 1, 1, 0, 0
        (
            COLOR_ATTR,
            [pink_bag._replace(colour='black'), black_scissors._replace(colour='pink')],
            1 / 2,
            False,
            False,
            None,
        ),
    ],
)
def test_every_tag_by_hand(metadata, detections, score, strict, correct, reason):
    got = geneval_scores(detections, metadata)
    assert got.score == pytest.approx(score, abs=1e-12)
    assert (got.strict, got.correct) == (strict, correct)
    assert got.reason == reason if reason is not None else got.reason


def test_a_wrong_position_is_worth_nothing_where_the_rule_is_meant_not_the_code():
    wrong = geneval_scores([laptop, cow_left], POSITION, half_for_wrong_position=False)
    assert wrong.score == pytest.approx(2 / 3)  # parts 1, 1, 0
    assert geneval_scores([laptop, cow_right], POSITION, half_for_wrong_position=False).score == 1


def test_several_of_a_colour_count_one_by_one():
    metadata = {'tag': 'colors', 'include': [{'class': 'cup', 'count': 4, 'color': 'red'}]}
    cups = [at('cup', 30 * i, 0, colour) for i, colour in enumerate(['red', 'red', 'red', 'blue'])]
    assert geneval_scores(cups, metadata)[:3] == (pytest.approx((1 + 3 / 4) / 2), False, False)
    metadata['include'][0]['position'] = ['below', 0]
    metadata['include'].insert(0, one('bowl'))
    after = geneval_scores([at('bowl', 45, -90), *cups], metadata)
    assert after.score == pytest.approx((1 + 1 + 3 / 4) / 3)  # no position after a wrong colour


def test_a_position_must_hold_for_every_pair():
    metadata = {
        'tag': 'position',
        'include': [
            {'class': 'dog', 'count': 2},
            {'class': 'kite', 'count': 2, 'position': ['above', 0]},
        ],
    }
    dogs = [at('dog', 0, 100), at('dog', 20, 100)]
    assert geneval_scores([*dogs, at('kite', 0, 0), at('kite', 20, 0)], metadata)[:3] == (
        1,
        True,
        True,
    )
    assert geneval_scores([*dogs, at('kite', 0, 0), at('kite', 20, 200)], metadata)[:3] == (
        3 / 4,
        False,
        False,
    )


def test_exclude_holds_for_any_class_and_only_in_the_official_rule():
    metadata = {**SINGLE, 'exclude': [{'class': 'dog', 'count': 1}]}
    assert geneval_scores(many('bowl', 1) + many('dog', 1), metadata)[:3] == (1, True, False)
    assert geneval_scores(many('bowl', 1) + many('dog', 1, score=0.2), metadata).correct


@pytest.mark.parametrize(
    ('x', 'y', 'size', 'expected'),
    [
        (100, 0, 20, {'right of'}),
        (-100, 0, 20, {'left of'}),
        (0, -100, 20, {'above'}),
        (0, 100, 20, {'below'}),
        (100, 100, 20, {'right of', 'below'}),  # (100 - 4) / 141 = 0.68 on both axes
        (100, 80, 20, {'right of', 'below'}),  # 96 / 128 = 0.75, 76 / 128 = 0.59
        (100, 50, 20, {'right of'}),  # 46 / 112 = 0.41
        (16, 0, 80, set()),  # overlapping: 16 - 0.1 * 160 = 0
        (30, 0, 80, set()),  # overlapping: (30 - 16) / 30 = 0.47
        (40, 0, 80, {'right of'}),  # overlapping: (40 - 16) / 40 = 0.6
        (0, 0, 20, set()),
    ],
)
def test_relative_positions_by_hand(x, y, size, expected):
    assert relations(at('cow', x, y, size=size), at('dog', 0, 0, size=size)) == expected


def test_colours_are_asked_for_only_where_they_matter():
    cups = [at('cup', 0, 0, score=0.5), at('cup', 9, 9, score=0.9), at('cup', 9, 9, score=0.2)]
    assert colours_needed(cups, COLORS) == [1]
    assert colours_needed(cups[:1], COLORS) == [0]
    assert colours_needed(cups[2:], COLORS) == []
    assert colours_needed([laptop, cow_left], POSITION) == []
    two = {**COLORS, 'include': [{'class': 'cup', 'count': 2, 'color': 'red'}]}
    assert colours_needed(cups, two) == [0, 1] and colours_needed(cups[:1], two) == []
    with pytest.raises(ValueError, match=r'detection 1 \(cup\) has no colour'):
        geneval_scores(cups, COLORS)


def test_rows_of_every_tag_are_in_order():
    for row in ROWS:
        check_metadata(row)
    # the prompt is the reader's business
    check_metadata({'tag': 'single_object', 'include': [one('computer mouse')]})


@pytest.mark.parametrize(
    ('metadata', 'message'),
    [
        ([], r'expected an object with tag and include, found \[\]'),
        ({**SINGLE, 'tag': 'colours'}, "tag is 'colours'; expected one of: single_object"),
        ({**SINGLE, 'exlude': []}, 'unknown key exlude; known keys: tag, include, exclude'),
        ({**SINGLE, 'include': []}, r'include is \[\]; expected a list of at least one clause'),
        ({**SINGLE, 'exclude': {}}, r'exclude is \{\}; expected a list'),
        ({**SINGLE, 'include': ['bowl']}, r"include\[0\] is 'bowl'"),
        (
            {**SINGLE, 'include': [one('mouse')]},
            r"include\[0\].class is 'mouse'; expected one of: person",
        ),
        ({**SINGLE, 'include': [one('bowl', count=0)]}, r'include\[0\].count is 0'),
        ({**SINGLE, 'exclude': [one('bowl', count=True)]}, r'exclude\[0\].count is True'),
        (
            {**SINGLE, 'include': [one('bowl', colour='red')]},
            r'unknown key include\[0\].colour; known keys: class, count, color, position',
        ),
        ({**SINGLE, 'include': [one('bowl', color='grey')]}, r"include\[0\].color is 'grey'"),
        (
            {**TWO, 'include': [one('bowl'), one('cow', position='above')]},
            r"include\[1\].position is 'above'",
        ),
        (
            {**TWO, 'include': [one('bowl'), one('cow', position=['on', 0])]},
            r"include\[1\].position\[0\] is 'on'",
        ),
        (
            {**TWO, 'include': [one('bowl'), one('cow', position=['above', 1])]},
            r'include\[1\].position\[1\] is 1; .* below 1',
        ),
    ],
)
def test_malformed_metadata_is_named(metadata, message):
    with pytest.raises(ValueError, match=message):
        check_metadata(metadata)
    with pytest.raises(ValueError, match=message):
        geneval_scores([], metadata)
