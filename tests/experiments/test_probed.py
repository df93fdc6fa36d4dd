"""What the page says of the measurements without training, from tables with known answers."""

import pytest

from experiments.probe import write_rows
from experiments.reproduction.probed import (
    MEASURES,
    bias_verdict,
    cost_verdict,
    direction_verdict,
    ranking_verdict,
    read,
)
from experiments.reproduction.statistics import FAILS, HOLDS, NOT_RUN, UNDECIDED


def middle(low, high):
    return str((float(low) + float(high)) / 2)


def states(*intervals):
    row = lambda left, low, high: {
        'timesteps_left': str(left),
        'rank_correlation': middle(low, high),
        'rank_correlation_low': low,
        'rank_correlation_high': high,
    }
    return [
        *(row(len(intervals) - i, *interval) for i, interval in enumerate(intervals)),
        row(0, '1', '1'),
    ]


@pytest.mark.parametrize(
    ('intervals', 'verdict'),
    [
        ([('0.6', '0.8'), ('0.7', '0.9')], HOLDS),
        ([('0.4', '0.8'), ('0.7', '0.9')], UNDECIDED),
        ([('0.1', '0.4'), ('0.7', '0.9')], FAILS),
    ],
)
def test_the_ranking_is_kept_where_every_state_keeps_it(intervals, verdict):
    assert ranking_verdict(states(*intervals)) == verdict


def biases(*intervals):
    row = lambda k, low, high: {
        'state': str(k),
        'group_rms_bias': middle(low, high),
        'group_rms_bias_low': low,
    }
    return [
        *(row(k, *interval) for k, interval in enumerate(intervals)),
        {'state': 'all', 'group_rms_bias_low': ''},
    ]


def test_a_bias_at_one_state_refutes_its_absence():
    assert bias_verdict(biases(('0.0', '0.2'), ('0.1', '0.2'))) == FAILS
    assert bias_verdict(biases(('0.0', '0.2'))) == UNDECIDED


def test_one_of_many_states_decides_only_beyond_what_chance_gives_as_many():
    # by hand: ends of five intervals are 2.576 / 1.960 times as far away, 0.05 - 0.042 * 1.314 < 0
    near = ('0.008', '0.092')
    assert bias_verdict(biases(near)) == FAILS
    assert bias_verdict(biases(near, *[('0.0', '0.1')] * 4)) == UNDECIDED
    kept, far = ('0.6', '0.8'), ('0.4', '0.49')
    assert ranking_verdict(states(far)) == FAILS
    assert ranking_verdict(states(far, *[kept] * 4)) == UNDECIDED


def test_a_cheaper_method_must_be_cheaper_and_keep_the_ranking():
    row = lambda calls, low, high: {
        'calls': calls,
        'group_gain_correlation': middle(low, high),
        'group_gain_correlation_low': low,
        'group_gain_correlation_high': high,
    }
    whole = row('21', '1', '1')
    assert cost_verdict([whole, row('21', '0.9', '0.95'), row('15', '0.2', '0.3')]) == FAILS
    assert cost_verdict([whole, row('15', '0.6', '0.7')]) == HOLDS
    assert cost_verdict([whole, row('15', '0.4', '0.7')]) == UNDECIDED


def test_sections_come_from_the_tables_that_are_there(tmp_path):
    rows = [
        {
            'state': k,
            's': 1.0 - k / 2,
            'timesteps_left': 2 - k,
            'reward': 0.5,
            'reward_low': 0.4,
            'reward_high': 0.6,
            'difference': 0.1,
            'rank_correlation': 0.8,
            'rank_correlation_low': 0.7,
            'rank_correlation_high': 0.9,
            'group_rank_correlation': 0.5,
            'prompts': 3,
            'samples': 12,
        }
        for k in range(3)
    ]
    write_rows(tmp_path / 'fig_8.csv', rows)
    sections = read(tmp_path)
    assert list(sections) == list(MEASURES)
    assert sections['8'].verdict == HOLDS and all(
        s.verdict == NOT_RUN for name, s in sections.items() if name != '8'
    )
    assert (
        '| 2 | 1.000 | 0.500 [0.400, 0.600] | 0.100 | 0.800 [0.700, 0.900] | 0.500 |'
        in sections['8'].text
    )
    assert '12 trajectories of 3 training prompts' in sections['8'].text


def test_directions_must_not_meet():
    row = lambda credit, low, high: {'credit': credit, 'progress_low': low, 'progress_high': high}
    assert direction_verdict([row('dense', '0.3', '0.4'), row('sparse', '0.1', '0.2')]) == HOLDS
    assert direction_verdict([row('dense', '0.1', '0.2'), row('sparse', '0.3', '0.4')]) == FAILS
    assert (
        direction_verdict([row('dense', '0.15', '0.4'), row('sparse', '0.1', '0.2')]) == UNDECIDED
    )


@pytest.mark.parametrize(
    'text', ['', 'credit,progress\n', 'credit,samples\ndense,5\n', 'credit\n' + 'x' * 200_000]
)
def test_a_table_of_another_form_is_named(tmp_path, text):
    (tmp_path / 'fig_direction.csv').write_text(text)
    with pytest.raises(ValueError, match=r'fig_direction\.csv'):
        read(tmp_path)
