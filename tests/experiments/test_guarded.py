"""What the guard changes, told from summaries."""

import numpy as np
import pytest

from densegrpo_jax.config.command_line import load
from densegrpo_jax.config.validation import validate
from experiments.guarded import __main__ as guarded


def summary(falls):
    """Six evaluations that rise from 0.5; unseen scores fall by as much at `falls`."""
    steps = [0, 20, 40, 60, 80, 100]
    change = lambda s: -0.001 * s if s in falls else 0.0
    return {
        'evaluations': [[s, 0.5 + 0.002 * s, 0.01] for s in steps],
        'guard': {
            'evaluations': [
                {
                    'step': s,
                    'scores': {'preference': [1.0, change(s), 0.01, 0.5]},
                    'kl': 0.0,
                    'fallen': ['preference'] * (s in falls),
                }
                for s in steps
            ]
        },
    }


def test_the_best_of_all_and_the_best_without_a_fall():
    found = guarded.outcome(summary({60, 80, 100}))
    assert found.start == 0.5 and (found.alarms, found.evaluations) == (3, 5)
    assert found.plain == (100, pytest.approx(0.7), {'preference': pytest.approx(-0.1)})
    assert found.guarded == (40, pytest.approx(0.58), {'preference': 0.0})
    same = guarded.outcome(summary(set()))
    assert same.plain == same.guarded and same.alarms == 0
    assert (found.gain, found.kept) == (pytest.approx(0.2), pytest.approx(0.4))


def test_the_start_may_be_the_best_as_in_a_run():
    falls = {20, 40, 60, 80, 100}
    found = guarded.outcome(summary(falls))
    assert found.guarded == (0, 0.5, {'preference': 0.0}) and found.kept == 0
    worse = summary(falls)
    worse['evaluations'] = [[s, 0.5 - 0.002 * s, 0.01] for s, *_ in worse['evaluations']]
    found = guarded.outcome(worse)
    assert found.plain.step == found.guarded.step == 0 and np.isnan(found.kept)
    assert (found.alarms, found.evaluations) == (5, 5)


def test_the_page_tells_cost_and_gain():
    hacked, fine = guarded.outcome(summary({60, 80, 100})), guarded.outcome(summary(set()))
    text = guarded.page({'scene': {'0': hacked, '1': fine}, 'shapes': {'0': fine}}, 'command')
    assert (
        'mean of 2 seed(s): trained score -0.0600 (70% of the gain kept); unseen: preference '
        '+0.0500. Of the 1 in which they differ: trained score -0.1200 (40% of the gain kept); '
        'unseen: preference +0.1000.'
    ) in text
    assert 'mean of 1 seed(s): trained score +0.0000 (100% of the gain kept)' in text
    assert '| 0 | start | 0 | 0.5000 |  |  |' in text
    assert '| 0 | best of all | 100 | 0.7000 | -0.1000 | 3 of 5 |' in text
    none = {'scene': {'0': guarded.outcome(summary({20, 40, 60, 80, 100}))}}
    assert 'In 1 the guard leaves none but the start.' in guarded.page(none, 'command')


@pytest.mark.parametrize('case', guarded.CASES)
def test_the_configurations_are_whole(case):
    config = load(str(guarded.HERE / f'{case}.yaml'))
    validate(config)
    assert config.guard.on and config.guard.action == 'warn'
    unseen = {*config.eval.panel} | {n for n, o in config.reward.items() if not o.weight}
    assert 'preference' in unseen
