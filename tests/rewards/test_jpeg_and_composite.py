"""JPEG reward, the weighted sum, and rewards from a config."""

import io

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from densegrpo_jax.rewards import (
    CompositeReward,
    JpegReward,
    RewardError,
    Scorer,
    Scores,
    build_reward,
    to_uint8,
)
from densegrpo_jax.rewards.base import check_scores


class Constant:
    """A reward that returns what it is told to."""

    range = (0.0, 1.0)

    def __init__(self, name, values, valid=None, names=None):
        self.name, self.names = name, names or (name,)
        self._values = np.array(values, np.float32)
        self._valid = np.ones(len(values), bool) if valid is None else np.array(valid)

    def check(self, prompts, metadata):
        pass

    def __call__(self, images, prompts, metadata):
        return Scores({name: self._values for name in self.names}, self._valid)


def images(count):
    return np.random.default_rng(0).integers(0, 256, (count, 16, 24, 3)).astype(np.uint8)


def call(reward, count):
    return reward(images(count), [''] * count, [{}] * count)


def test_jpeg_is_the_file_size_over_500_kb():
    buffer = io.BytesIO()
    Image.fromarray(images(2)[1]).save(buffer, format='JPEG', quality=95)
    scores = call(JpegReward(), 2)
    assert scores.values['jpeg'][1] == pytest.approx(-len(buffer.getvalue()) / 1000 / 500, rel=1e-6)
    np.testing.assert_array_equal(
        call(JpegReward('incompressible'), 2).values['jpeg'], -scores.values['jpeg']
    )
    flat = JpegReward()(np.zeros((1, 16, 24, 3), np.uint8), [''], [{}]).values['jpeg']
    assert scores.values['jpeg'].max() < flat[0] < 0


@pytest.mark.parametrize('options', [{'direction': 'up'}, {'quality': 0}])
def test_jpeg_options_out_of_range(options):
    with pytest.raises(ValueError, match='jpeg'):
        JpegReward(**options)


def test_weighted_sum_by_hand():
    reward = CompositeReward(
        [
            (Constant('a', [1, 0.5, 0]), 2.0),
            (Constant('b', [0, 1, 1], names=('b', 'b_detail')), -0.5),
        ]
    )
    assert reward.names == ('total', 'a', 'b', 'b_detail')
    assert reward.range == (-0.5, 2.0)
    scores = call(reward, 3)
    assert scores.values['total'].tolist() == [2.0, 0.5, -0.5]
    assert scores.values['a'].tolist() == [1.0, 0.5, 0.0]
    assert scores.values['b'].tolist() == [0.0, 1.0, 1.0]
    assert scores.valid.all()


def test_a_picture_is_valid_only_if_all_parts_are():
    broken = Constant('b', [1, np.nan, 1], valid=[True, False, True])
    scores = call(CompositeReward([(Constant('a', [1, 1, 1]), 1.0), (broken, 1.0)]), 3)
    assert scores.valid.tolist() == [True, False, True]
    np.testing.assert_array_equal(scores.values['total'], np.array([2, np.nan, 2], np.float32))
    for name in 'ab':  # a score that its own reward gave is not one of a picture without a total
        np.testing.assert_array_equal(scores.values[name], np.array([1, np.nan, 1], np.float32))


def test_weight_zero_only_logs():
    scores = call(CompositeReward([(Constant('a', [1, 0]), 1.0), (Constant('b', [5, 5]), 0.0)]), 2)
    assert scores.values['total'].tolist() == [1.0, 0.0]
    assert scores.values['b'].tolist() == [5.0, 5.0]


def test_a_reward_of_weight_zero_decides_nothing():
    logged = Constant('b', [5, 7, 6], valid=[True, False, True], names=('b', 'b_detail'))
    trained = Constant('a', [1, 0, np.nan], valid=[True, True, False])
    reward = CompositeReward([(trained, 1.0), (logged, 0.0)])
    with Scorer(reward, 1) as scorer:  # which checks what it is given
        scores = scorer.submit(images(3), [''] * 3).result(20)
    assert scores.valid.tolist() == [True, True, False] and reward.log_only == {'b', 'b_detail'}
    for name, expected in {
        'total': [1, 0, np.nan],
        'a': [1, 0, np.nan],
        'b': [5, np.nan, np.nan],
        'b_detail': [5, np.nan, np.nan],
    }.items():
        np.testing.assert_array_equal(scores.values[name], np.array(expected, np.float32))
    nothing = Constant('b', [np.nan] * 3, valid=[False] * 3)
    assert call(CompositeReward([(nothing, 0.0), (trained, 1.0)]), 3).valid.tolist() == [
        True,
        True,
        False,
    ]
    endless = Scores({**scores.values, 'b': np.array([np.inf, 1, 1], np.float32)}, scores.valid)
    with pytest.raises(RewardError, match="'b' is not finite"):  # missing is not wrong
        check_scores(endless, reward, 3)


def test_weights_by_the_names_of_the_scores_that_are_trained_on():
    parts = [
        (Constant('a', [1], names=('a_soft', 'a')), 0.5),
        (Constant('b', [5]), 0.0),
        (Constant('c', [5]), -2.0),
    ]
    assert CompositeReward(parts).weights == {'a_soft': 0.5, 'c': -2.0}


def test_a_score_that_is_nan_but_called_valid_is_an_error():
    with pytest.raises(RewardError, match='not finite'):
        call(CompositeReward([(Constant('a', [1, np.nan]), 1.0)]), 2)
    with pytest.raises(RewardError, match='expected bool'):
        call(CompositeReward([(Constant('a', [1, 1, 1]), 1.0)]), 2)


@pytest.mark.parametrize('scores', [[1, 3e38], [1, -3e38], [1, 2e15]])
def test_a_sum_beyond_float32_is_an_error_and_no_infinity(scores):
    reward = CompositeReward([(Constant('a', scores), 4.0), (Constant('b', [1, 1]), 1.0)])
    with pytest.raises(RewardError, match=r'weighted sum of the rewards is .*smaller weights'):
        call(reward, 2)


def test_a_score_beyond_the_range_of_its_reward_is_told_once(caplog):
    for values in ([0.0, 1.0], [0.5, 91.8], [-3.0, 0.0]):
        call(CompositeReward([(Constant('share', values), 1.0)]), 2)
    (said,) = [record.message for record in caplog.records if 'share' in record.message]
    assert 'is 91.8, beyond its range 0 to 1' in said


@pytest.mark.parametrize(
    'name, owner',
    [
        ('total', 'the weighted sum of the rewards'),
        ('group_best', 'the metric train/reward_group_best'),
        ('standard_error', 'the metric eval/standard_error'),
        ('fallen', 'the metric guard/fallen'),
    ],
)
def test_a_score_takes_no_name_that_the_log_gives_to_something_else(name, owner):
    parts = [(Constant('a', [1]), 1.0), (Constant('mine', [1], names=('b', name)), 0.0)]
    message = f"'mine' has a score '{name}', which is the name of {owner}: rename .*`prefix`"
    with pytest.raises(ValueError, match=message):
        CompositeReward(parts)


@pytest.mark.parametrize('weights', [(), (0.0, 0.0), (1.0, float('nan'))])
def test_impossible_weights(weights):
    with pytest.raises(ValueError, match=r'weight'):
        CompositeReward([(Constant(name, [1]), weight) for name, weight in zip('ab', weights)])


def test_names_must_differ():
    with pytest.raises(ValueError, match="'a'"):
        CompositeReward([(Constant('a', [1]), 1.0), (Constant('a', [1]), 1.0)])


@pytest.mark.parametrize('wrap', [dict, ConfigDict])
def test_build_from_a_config(wrap):
    reward = build_reward(
        wrap({'jpeg': {'weight': 2.0, 'direction': 'incompressible'}, 'ocr': {'mode': 'recognise'}})
    )
    assert reward.names == ('total', 'jpeg', 'ocr')
    scores = reward(np.zeros((1, 32, 96, 3), np.uint8), ['"A"'], [{}])
    assert scores.values['total'][0] == pytest.approx(2 * scores.values['jpeg'][0])
    assert scores.values['jpeg'][0] > 0
    with pytest.raises(ValueError, match='prompt 0'):
        reward.check(['no target'], [{}])


@pytest.mark.parametrize(
    ('spec', 'words'),
    [
        ({'orc': {}}, ('orc', 'known rewards', 'ocr', 'jpeg')),
        ({'jpeg': {'qualty': 3}}, ('qualty', 'known options', 'weight', 'direction', 'quality')),
        ({'ocr': {'make_reader': 1}}, ('make_reader', 'known options', 'width_scale')),
        ({'jpeg': {'quality': 0}}, ('quality',)),
        ({}, ('at least one',)),
    ],
)
def test_build_names_what_is_wrong(spec, words):
    with pytest.raises(ValueError, match='.*'.join(words)):
        build_reward(spec)


def test_to_uint8_rounds_clips_and_finds_nan():
    x = np.zeros((3, 1, 2, 3), np.float32)
    x[0, 0] = [[-1, 1, 0], [-3, 3, 0.5]]
    x[1, 0, 0, 0] = np.nan
    pictures, finite = to_uint8(x)
    assert finite.tolist() == [True, False, True]
    assert pictures[0, 0].tolist() == [[0, 255, 128], [0, 255, 191]]
    assert not pictures[1].any()


class Bare:
    """What the class of a reward must have; its constructor may set names and range."""

    name = 'bare'

    def __init__(self, sides=3):
        self.area = 1 / sides

    def check(self, prompts, metadata): ...

    def __call__(self, images, prompts, metadata): ...


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({}, r"reward 'mine' \(.*:Bare\) has no 'names': names of its scores"),
        ({'sides': 0}, r"cannot be made with {'sides': 0}: ZeroDivisionError"),
        ({'sides': 'four'}, "reward.mine.sides='four': expected a whole number"),
        ({'weight': 'half'}, "reward.mine.weight='half'; expected a number"),
        ({'weight': True}, 'reward.mine.weight=True; expected a number'),
    ],
    ids=str,
)
def test_a_reward_of_ones_own_that_cannot_be_used_is_one_line(options, message):
    with pytest.raises(ValueError, match=message):
        build_reward({'mine': {'kind': f'{__name__}:Bare', **options}})


class Tensor:
    """As torch's: its dtype is none of numpy's."""

    shape, dtype = (2,), object()

    def __repr__(self):
        return 'tensor([0.5, 0.5])'


@pytest.mark.parametrize(
    ('returned', 'said'),
    [
        (None, 'returned None; expected rewards.Scores'),
        ([0.5, 0.5], r'returned \[0.5, 0.5\]; expected rewards.Scores'),
        (Scores([0.5], np.ones(2, bool)), 'returned Scores.*; expected rewards.Scores'),
        (Scores({'mine': [0.5, 0.5]}, np.ones(2, bool)), r'mine is \[0.5, 0.5\]; expected a numpy'),
        (Scores({'mine': np.array(['a', 'b'])}, np.ones(2, bool)), 'mine is .*; expected a numpy'),
        (Scores({'mine': np.zeros(2)}, [True, True]), r'valid is \[True, True\]; .*truth values'),
        (Scores({'mine': Tensor()}, np.ones(2, bool)), r'mine is tensor\(.*numbers \(torch: '),
        (Scores({'mine': np.zeros(2)}, Tensor()), r'valid is tensor\(.*truth values \(torch: '),
        (Scores({1: np.zeros(2), 'a': np.zeros(2)}, np.ones(2, bool)), r"returned scores \['1', "),
        (Scores({'valid': np.zeros(2)}, [True, True]), r'valid is \[True, True\]; .*truth values'),
    ],
)
def test_what_is_no_scores_is_blamed_on_its_own_reward(returned, said):
    class Mine(Constant):
        def __call__(self, images, prompts, metadata):
            return returned

    with pytest.raises(RewardError, match=f"reward 'mine'.*{said}"):
        call(CompositeReward([(Mine('mine', [0.5]), 1.0)]), 2)


@pytest.mark.parametrize(
    ('kind', 'option', 'value', 'expected'),
    [
        ('ocr', 'batch_size', 2.5, 'a whole number'),
        ('ocr', 'batch_size', True, 'a whole number'),
        ('ocr', 'smooth', float('nan'), 'a finite number'),
        ('ocr', 'smooth', 10**400, 'a finite number'),
        ('ocr', 'drop_score', 'x', 'a finite number or None'),
        ('ocr', 'unicode', 1, 'True or False'),
        ('ocr', 'mode', 3, 'text'),
        ('jpeg', 'quality', '90', 'a whole number'),
        ('remote', 'timeout_s', [1], 'a finite number'),
        ('clipscore', 'omega', 'x', 'a finite number or None'),
    ],
)
def test_an_option_has_the_type_of_its_signature(kind, option, value, expected):
    with pytest.raises(ValueError, match=rf'reward\.{kind}\.{option}=.*: expected {expected}$'):
        build_reward({kind: {option: value}})


def test_whole_numbers_are_floats_too_and_other_types_are_for_the_reward():
    parts = build_reward({'ocr': {'smooth': 1, 'drop_score': None}, 'jpeg': {}}).parts
    assert [part.name for part, _ in parts] == ['ocr', 'jpeg']
    build_reward({'remote': {'urls': ('http://x',), 'names': 'a', 'range': (0, 1)}})
