"""What the guard changes, told from summaries."""

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
    assert guarded.outcome(summary({20, 40, 60, 80, 100})).guarded is None


def test_the_page_tells_cost_and_gain():
    found = {
        'scene': {'0': guarded.outcome(summary({60, 80, 100}))},
        'shapes': {'0': guarded.outcome(summary(set()))},
    }
    text = guarded.page(found, 'command')
    assert 'trained score -0.1200; unseen: preference +0.1000' in text
    assert 'trained score +0.0000; unseen: preference +0.0000' in text
    assert '| 0 | best of all | 100 | 0.7000 | -0.1000 | 3 of 5 |' in text
    none = {'scene': {'0': guarded.outcome(summary({20, 40, 60, 80, 100}))}}
    assert 'the guard leaves none' in guarded.page(none, 'command')


@pytest.mark.parametrize('case', guarded.CASES)
def test_the_configurations_are_whole(case):
    config = load(str(guarded.HERE / f'{case}.yaml'))
    validate(config)
    assert config.guard.on and config.guard.action == 'warn'
    unseen = {*config.eval.panel} | {n for n, o in config.reward.items() if not o.weight}
    assert 'preference' in unseen
