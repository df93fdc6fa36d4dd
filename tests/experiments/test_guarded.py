"""What the guard changes, told from summaries."""

import json
import types

import numpy as np
import pytest

from densegrpo_jax.config.loading import load
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


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes the page of runs that have finished elsewhere, with these cases and seeds."""
    monkeypatch.setattr(guarded.Run, 'finished', property(lambda run: run.folder.is_dir()))

    def write(cases, seeds, extra=(), out='out'):
        for case in cases:
            for seed in seeds:
                folder = tmp_path / 'work' / case / seed
                folder.mkdir(parents=True)
                (folder / 'summary.json').write_text(json.dumps(summary({60, 80, 100})))
        flag = dict(cases=cases, seeds=seeds, workdir=tmp_path / 'work', out=tmp_path / out)
        guarded.main(types.SimpleNamespace(**flag, run=False), extra)
        return (tmp_path / out / 'README.md').read_text()

    return write


def test_other_cases_and_seeds_join_the_page_and_the_notes_stay(tmp_path, write):
    write(['scene'], ['0', '1'])
    (tmp_path / 'out' / 'notes.md').write_text('## What this says\n\nMuch.\n')
    text = write(['shapes'], ['10', '2'])
    assert text.endswith('\n\n## What this says\n\nMuch.\n')
    rows = [line.split(' | ')[0] for line in text.splitlines() if ' | guarded | ' in line]
    assert rows == ['| 0', '| 1', '| 2', '| 10']
    with pytest.raises(ValueError, match='outcomes.json has outcomes of scene-'):
        write([], [], ['--config.optim.learning_rate=1e-5'])


def test_a_page_whose_rows_no_file_keeps_is_not_replaced(tmp_path, write):
    text = write(['scene'], ['0'])
    (tmp_path / 'out' / guarded.FILE).unlink()
    with pytest.raises(ValueError, match='the page there was made without outcomes.json'):
        write(['scene'], ['1'])
    assert (tmp_path / 'out' / 'README.md').read_text() == text


@pytest.mark.parametrize('case', guarded.CASES)
def test_the_configurations_are_whole(case):
    config = load(str(guarded.HERE / f'{case}.yaml'))
    validate(config)
    assert config.guard.on and config.guard.action == 'warn'
    unseen = {*config.eval.panel} | {n for n, o in config.reward.items() if not o.weight}
    assert ('shapes' if case == 'preference' else 'preference') in unseen
