"""The runs of a figure, running them, and what is kept of them; trainings are played by a small
script.
"""

import csv
import dataclasses
import json
import math
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from matplotlib import pyplot as plt

from densegrpo_jax.config.schema import default_config
from densegrpo_jax.runtime.stop import Preempted, StopRequest
from experiments import reproduce
from experiments.reproduction import page
from experiments.reproduction.drawing import draw_curves
from experiments.reproduction.figures import FIGURES, VARIANTS, select
from experiments.reproduction.records import Records, read_evaluations
from experiments.reproduction.sweep import Run, base_digest, configured, recorded, run_all
from tests.experiments.conftest import FACTS

ROOT = pathlib.Path(__file__).parents[2]


def runs(tmp_path, variants=('dense', 'sparse'), seeds=('0', '1', '2')):
    changes = {
        'dense': (),
        'sparse': (('credit.rule', 'sparse'),),
        'fails': (('credit.rule', 'fails'),),
    }
    return [
        Run('tiny_ocr', v, changes[v], s, tmp_path / 'work' / v / s, tmp_path / 'text')
        for s in seeds
        for v in variants
    ]


def test_every_variant_sets_keys_that_exist():
    config = default_config()
    for changes in VARIANTS.values():
        for key, value in changes.items():
            group, name = key.split('.')
            assert isinstance(value, type(config[group][name])), key


def test_every_figure_is_made_of_known_variants():
    for figure in FIGURES.values():
        assert set(figure.variants) <= set(VARIANTS)
        assert all(c.more != c.less for c in figure.comparisons)


def test_figures_share_their_runs_and_the_gate_comes_first():
    planned = reproduce.chosen_runs(
        ['6a', '6b'], 'c.py', ['3', '1'], pathlib.Path('w'), pathlib.Path('w/psi.json'), ['--x=1']
    )
    names = [(run.variant, run.seed) for run in planned]
    assert names[:6] == [(variant, seed) for seed in '31' for variant in ('dense', 'sparse', 'psi')]
    assert names[6:10] == [
        ('dense_baseline', '3'),
        ('noise_0.5', '3'),
        ('noise_0.8', '3'),
        ('dense_baseline', '1'),
    ]
    assert (
        len(names) == len(set(names)) == 2 * len({*FIGURES['6a'].variants, *FIGURES['6b'].variants})
    )
    psi = planned[2]
    assert psi.command == [
        'python',
        '-m',
        'densegrpo_jax.main',
        '--config=c.py',
        '--x=1',
        '--config.noise.psi_path=w/psi.json',
        '--config.seed=3',
    ]


def test_an_unknown_figure_is_named():
    assert select(['6b', '4', '6b']) == ['6b', '4']
    assert select(['all']) == list(FIGURES)
    with pytest.raises(ValueError, match='--figure=9 is not known; choose from 4, 6a'):
        select(['4', '9'])


def test_the_base_changes_with_the_file_and_with_the_arguments(tmp_path):
    config = tmp_path / 'some.py'
    start = 'from densegrpo_jax.config.schema import default_config\n'
    text = start + 'def get_config():\n    c = default_config()\n    c.seed = {}\n    return c\n'
    config.write_text(text.format(1))
    first = base_digest(str(config), [])
    assert first.startswith('some-') and first == base_digest(str(config), [])
    assert first != base_digest(str(config), ['--config.x=1'])
    assert first == base_digest(
        str(config), ['--config.model.scan=True', '--config.mesh.data=2', '--cpu_devices=1']
    )
    config.write_text('# The same.\n' + text.format(1) + '    # End.\n')
    assert first == base_digest(str(config), [])
    config.write_text(text.format(2))
    assert first != base_digest(str(config), [])


@pytest.mark.parametrize(
    'folder, name', [('.', 'ocr'), ('96_samples', 'ocr_96'), ('geneval', 'geneval')]
)
def test_new_runs_may_join_the_results_that_are_shipped(folder, name):
    path = ROOT / 'docs' / 'results' / 'reproduction' / folder / 'runs.csv'
    with open(path, newline='') as file:
        bases = {row['base'] for row in csv.DictReader(file)}
    assert bases == {base_digest(str(ROOT / 'configs' / f'claims_{name}.py'), [])}


def test_a_sweep_runs_what_is_missing_and_keeps_what_is_there(tmp_path, training):
    some = runs(tmp_path, seeds=('0',))
    assert run_all(some, 2, StopRequest(), FACTS) == []
    assert all(run.finished for run in some)
    times = [(run.folder / 'summary.json').stat().st_mtime_ns for run in some]
    run_all(runs(tmp_path), 2, StopRequest(), FACTS)
    assert all(run.finished for run in runs(tmp_path))
    assert times == [(run.folder / 'summary.json').stat().st_mtime_ns for run in some]
    changed = Run(
        'tiny_ocr', 'dense', (('credit.rule', 'sparse'),), '0', some[0].folder, tmp_path / 'text'
    )
    assert not changed.finished  # the folder holds the end of another run
    # ... but with other settings of the machine it is the same
    elsewhere = dataclasses.replace(
        some[0], extra=('--config.model.scan=True', '--config.mesh.data=2', '--noconfig.model.scan')
    )
    assert elsewhere.finished
    assert not dataclasses.replace(some[0], extra=('--config.rollout.steps=3',)).finished


def test_an_argument_with_a_space_is_recognised_in_the_tables(tmp_path):
    run = dataclasses.replace(runs(tmp_path)[0], extra=('--config.data.train=my prompts.txt',))
    records = Records()
    records.runs['dense', '0'] = {'command': ' '.join(run.command)}
    assert recorded(records, run)
    assert not recorded(records, dataclasses.replace(run, extra=('--config.data.train=my',)))


def test_a_run_of_other_code_counts_only_where_that_is_accepted(tmp_path):
    own = (('credit.rule', 'examples.own_method:rule'),)
    run = dataclasses.replace(runs(tmp_path)[0], changes=own)
    records, row = Records(), {'command': ' '.join(run.command), 'own_code': run.own_code}
    records.runs['dense', '0'] = row
    assert recorded(records, run) and len(run.own_code) == 12
    row['own_code'] = 'before'
    assert not recorded(records, run)
    assert recorded(records, dataclasses.replace(run, extra=('--own_code=warn',)))
    mine = ("--config.reward={'mine': {'kind': 'examples.own_method:rule'}}",)
    rewarded = dataclasses.replace(runs(tmp_path)[0], extra=mine)
    assert rewarded.own_code and not runs(tmp_path)[0].own_code


def test_a_failed_run_is_reported_and_the_others_go_on(tmp_path, training):
    several = runs(tmp_path, variants=('fails', 'dense'), seeds=('0',))
    assert [run.variant for run in run_all(several, 1, StopRequest(), FACTS)] == ['fails']
    assert [run.finished for run in several] == [False, True]


def test_the_end_of_an_older_run_does_not_stand_for_one_that_failed(tmp_path, training):
    (old,) = runs(tmp_path, variants=('dense',), seeds=('0',))
    run_all([old], 1, StopRequest(), FACTS)
    new = Run('tiny_ocr', 'dense', (('credit.rule', 'fails'),), '0', old.folder, tmp_path / 'text')
    assert run_all([new], 1, StopRequest(), FACTS) == [new]
    assert not new.finished and not old.finished


def test_the_beginning_of_another_run_is_not_continued(tmp_path, training):
    (old,) = runs(tmp_path, variants=('dense',), seeds=('0',))
    run_all([old], 1, StopRequest(), FACTS)
    (old.folder / 'checkpoints').mkdir()
    longer = dataclasses.replace(old, changes=(*old.changes, ('iterations', 99)))
    with pytest.raises(ValueError, match='holds a run of other settings,.*move it away, or give'):
        run_all([longer], 1, StopRequest(), FACTS)
    assert old.finished and run_all([old], 1, StopRequest(), FACTS) == []


def test_a_folder_of_a_run_outside_any_sweep_is_no_finished_run(tmp_path):
    (run,) = runs(tmp_path, variants=('dense',), seeds=('0',))
    run.folder.mkdir(parents=True)
    (run.folder / 'summary.json').write_text('{}')
    assert not run.finished


def test_a_stop_reaches_the_runs_under_way_and_begins_no_more(tmp_path, training):
    several, stop = runs(tmp_path), StopRequest()
    (tmp_path / 'work').mkdir()
    (tmp_path / 'work' / 'hold').write_text('')

    def ask():
        while not (several[0].folder / 'waiting').exists():
            time.sleep(0.02)
        stop.signal_name = 'SIGTERM'

    threading.Thread(target=ask, daemon=True).start()
    with pytest.raises(Preempted, match='SIGTERM'):
        run_all(several, 1, stop, FACTS)
    assert not any(run.finished for run in several)
    assert [run.folder.exists() for run in several] == [True] + [False] * 5
    (tmp_path / 'work' / 'hold').unlink()
    assert run_all(several, 3, StopRequest(), FACTS) == []


def test_records_survive_their_files_and_join_other_machines(tmp_path, training):
    run_all(runs(tmp_path), 3, StopRequest(), FACTS)
    here, there = Records(), Records()
    for run in runs(tmp_path):
        (here if run.seed == '0' else there).add(run.folder)
    here.save(tmp_path / 'out')
    joined = Records.load(tmp_path / 'out')
    for run in runs(tmp_path):
        if run.seed != '0':
            joined.add(run.folder)
    joined.save(tmp_path / 'out')
    again = Records.load(tmp_path / 'out')
    assert again.seeds('dense') == ['0', '1', '2']
    rows = again.curves('sparse')['2']
    assert [row['updates'] for row in rows] == [0, 1, 2]
    assert [row['score'] for row in rows] == pytest.approx([0.52, 0.62, 0.72])
    assert [row['nfe'] for row in rows] == [0, 100, 200]
    assert math.isnan(rows[0]['kl']) and rows[1]['kl'] == pytest.approx(0.1)
    assert again.runs['sparse', '2']['commit'] == 'abc'


def test_tables_of_somebody_else_are_refused(tmp_path, training):
    run_all(runs(tmp_path)[:1], 1, StopRequest(), FACTS)
    records, out = Records(), tmp_path / 'out'
    records.add(runs(tmp_path)[0].folder)
    records.save(out)
    evaluations = (out / 'evaluations.csv').read_text()
    (out / 'evaluations.csv').write_text(evaluations.splitlines()[0])
    with pytest.raises(ValueError, match='has no evaluations of dense 0, which .*runs.csv lists'):
        Records.load(out)
    (out / 'evaluations.csv').unlink()
    with pytest.raises(FileNotFoundError, match='evaluations.csv does not exist'):
        Records.load(out)
    (out / 'evaluations.csv').write_text(evaluations)
    (out / 'runs.csv').write_text('date,score\n2026,0.5\n')
    with pytest.raises(ValueError, match='runs.csv has no column variant, .*but date, score'):
        Records.load(out)


def test_runs_on_another_base_are_refused(tmp_path, training):
    one, two = runs(tmp_path, seeds=('0',))
    run_all([one], 1, StopRequest(), FACTS)
    run_all([two], 1, StopRequest(), FACTS | {'base': 'base-2'})
    records = Records()
    records.add(one.folder)
    with pytest.raises(
        ValueError, match='base configuration base-2, but the results so far have base-1.*--out'
    ):
        records.add(two.folder)


def test_the_page_says_what_holds_and_what_has_not_run(tmp_path, training):
    run_all(runs(tmp_path), 3, StopRequest(), FACTS)
    records = Records()
    for run in runs(tmp_path):
        records.add(run.folder)
    out = tmp_path / 'out'
    out.mkdir()
    (out / 'notes_4.md').write_text('Why CoCA is missing.\n')
    made = page.write(out, records, {}, {variant: 5 for variant in FIGURES['4'].variants})
    text = (out / 'README.md').read_text()
    assert out / 'fig_4.png' in made and (out / 'fig_4.png').stat().st_size > 5000
    assert (
        '- dense above sparse: +0.0750, BCa [+0.0750, +0.0750], t [+0.0750, +0.0750], '
        '3 seeds: **holds**' in text
    )
    assert 'Not run: coca_to_go_signed, coca_share_signed, coca_to_go, coca_share.' in text
    assert 'Fewer seeds than asked for: dense (3 of 5), sparse (3 of 5).' in text
    assert 'Why CoCA is missing.' in text
    verdicts = {
        line.split('|')[1].strip(): line.split('|')[4].strip()
        for line in text.splitlines()
        if line.count('|') == 6
    }
    parts = [
        'dense above sparse: holds',
        'dense above coca_to_go_signed: not run',
        'coca_to_go_signed above sparse: not run',
    ]
    assert verdicts['[Learning curves](#learning-curves)'] == '; '.join(['**undecided**', *parts])
    assert verdicts['GAE(lambda) over the completions'] == '**not run**' and '## GAE' not in text


@pytest.mark.slow
def test_the_page_goes_into_the_work_directory_unless_told_otherwise(tmp_path):
    """Not into docs/results/reproduction: it would mix with the results that are shipped."""
    root = pathlib.Path(reproduce.__file__).parents[1]
    command = [
        sys.executable,
        '-m',
        'experiments.reproduce',
        '--figure=4',
        '--norun',
        f'--config={root / "configs" / "claims_ocr.py"}',
    ]
    env = {**os.environ, 'PYTHONPATH': str(root)}
    done = subprocess.run([*command, '--workdir=work'], cwd=tmp_path, env=env)
    assert done.returncode == 2 and not [*tmp_path.rglob('README.md')]  # there is nothing to draw
    for out in ('work/report', 'other'):
        (tmp_path / out).mkdir(parents=True)
        for table in ('runs.csv', 'evaluations.csv'):
            shutil.copy(root / 'docs' / 'results' / 'reproduction' / table, tmp_path / out)
    assert subprocess.run([*command, '--workdir=work'], cwd=tmp_path, env=env).returncode == 0
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob('README.md')] == [
        'work/report/README.md'
    ]
    assert (
        subprocess.run(
            [*command, '--workdir=work', '--out=other'], cwd=tmp_path, env=env
        ).returncode
        == 0
    )
    assert (tmp_path / 'other' / 'README.md').is_file()


def test_a_run_is_drawn_in_one_number_against_its_network_calls(tmp_path, monkeypatch):
    run = lambda last, calls: [
        {'updates': n, 'nfe': calls * n / 2, 'score': score, 'kl': math.nan}
        for n, score in enumerate((0.5, 0.6, last))
    ]
    monkeypatch.setattr('matplotlib.pyplot.close', lambda figure: None)
    curves = {'dense': [run(0.8, 4e6), run(1.0, 4e6)], 'sparse': [run(0.6, 2e6)]}
    draw_curves(curves, tmp_path / 'curves.png', axes=('updates',), totals=True)
    *_, panel = plt.gcf().axes
    points = [container.lines[0].get_xydata()[0] for container in panel.containers]
    np.testing.assert_allclose(points, [(4, (0.7 + 0.8) / 2), (2, 0.6)])
    bar = panel.containers[0].lines[2][0].get_segments()[0][:, 1]
    np.testing.assert_allclose(bar, 0.75 + np.std([0.7, 0.8], ddof=1) * np.array([-1, 1]))
    monkeypatch.undo()
    plt.close()


def test_evaluations_are_read_with_their_costs(tmp_path):
    rows = [
        {'step': 0, 'eval/ocr': 0.5, 'eval/standard_error': 0.1},
        {
            'step': 1,
            'train/velocity_evals': 10.0,  # as version 0.1 wrote it
            'train/seconds': 1.0,
            'train/kl': 1.0,
            'train/reward': 0.2,
        },
        {'step': 2, 'train/nfe': 20.0, 'train/seconds': 2.0, 'train/kl': 3.0, 'train/reward': 0.4},
        {'step': 2, 'eval/ocr': 0.6, 'eval/standard_error': 0.1},
    ]
    path = tmp_path / 'metrics.jsonl'
    path.write_text('\n'.join(map(json.dumps, rows)) + '\n')
    first, last = read_evaluations(path, 'ocr')
    assert (last['updates'], last['nfe'], last['seconds'], last['score']) == (2, 20.0, 2.0, 0.6)
    assert (last['kl'], last['reward']) == (2.0, pytest.approx(0.3))
    assert math.isnan(first['kl'])
    path.write_text(json.dumps({'step': 'x', 'eval/ocr': 0.5, 'eval/standard_error': 0.1}))
    with pytest.raises(ValueError, match="metrics.jsonl:1: step is 'x'; expected a number"):
        read_evaluations(path, 'ocr')


def test_the_configuration_of_a_run_has_its_arguments():
    found = configured(
        'tiny_ocr:method=dance',
        [
            '--config.credit.rule=gae',
            '--config.loss.beta=0.5',
            '--config.plan.splits=(0, 2)',
            '--noconfig.model.scan',
            '--config.full',
            "--config.reward={'jpeg': {'weight': 2}}",
            '--config.reward.ocr.mode=detect',  # no key of the table
            '--cpu_devices=1',
        ],
    )
    assert (found.credit.rule, found.loss.beta, found.plan.splits) == ('gae', 0.5, (0, 2))
    assert found.reward.to_dict() == {'jpeg': {'weight': 2}}
    assert (found.model.scan, found.full, found.moving.steps) == (False, True, 'subset')
    assert configured('tiny_ocr', ['--config.noise.psi_path=none']).noise.psi_path == ''
    with pytest.raises(ValueError, match='--config.rollout.steps=six: expected a whole number'):
        configured('tiny_ocr', ['--config.rollout.steps=six'])
