"""Trackers: what they are told, what happens when they fail; the real ones, where installed."""

import inspect
import json
import os
import pathlib
import sqlite3
import subprocess
import sys
import threading

import numpy as np
import pytest

from densegrpo_jax.runtime import trackers
from densegrpo_jax.runtime.images import save_grid
from tests import tracker_stand_in
from tests.tracker_stand_in import stand_in

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def installed(monkeypatch):
    """Puts a stand-in into the place of a tracker's module."""

    def put(name, fails=''):
        module = stand_in(name, fails)
        monkeypatch.setitem(sys.modules, name, module)
        return module

    return put


def told(workdir, names='wandb,trackio', steps=(1,)):
    with trackers.Trackers(names, 'words', workdir, {'seed': 1}) as made:
        for step in steps:
            made.log(step, {'eval/total': step / 2})
        made.picture(steps[-1], 'eval/images', workdir / 'sheet.png')


def test_both_are_told_the_same_and_a_run_that_continues_keeps_its_name(installed, tmp_path):
    wandb, trackio = installed('wandb'), installed('trackio')
    told(tmp_path, steps=(1, 2))
    told(tmp_path, steps=(2, 3))
    for module in (wandb, trackio):
        first, second = (run.options for run in module.runs)
        assert first == second and first['project'] == 'words' and first['config'] == {'seed': 1}
        assert first['name'].startswith(f'{tmp_path.name}-') and first['resume'] == 'allow'
        assert all(run.finished for run in module.runs)
    assert (
        wandb.runs[0].options['id']
        == json.loads((tmp_path / 'trackers.json').read_text())['wandb']['id']
    )
    # wandb's steps cannot go back; those of a run that continues do
    axis = [('update', None), ('*', 'update')]
    assert wandb.told[:2] == axis and wandb.told[2] == (None, {'eval/total': 0.5, 'update': 1})
    assert trackio.told[0] == (1, {'eval/total': 0.5})
    rows = [(step, values['eval/total']) for step, values in trackio.told if 'eval/total' in values]
    assert rows == [(1, 0.5), (2, 1.0), (2, 1.0), (3, 1.5)]
    picture = trackio.told[2][1]['eval/images']
    assert (picture.value, picture.caption) == (str(tmp_path / 'sheet.png'), 'after 2 updates')


def test_two_runs_of_one_name_are_told_apart(installed, tmp_path):
    trackio = installed('trackio')
    for place in ('a', 'b'):
        (tmp_path / place / 'run').mkdir(parents=True)
        told(tmp_path / place / 'run', 'trackio')
    assert len({run.options['name'] for run in trackio.runs}) == 2


@pytest.mark.parametrize('fails, said', [('init', 'start'), ('log', 'get metrics')])
def test_a_tracker_that_fails_is_one_warning(installed, tmp_path, caplog, fails, said):
    installed('wandb', fails)
    trackio = installed('trackio')
    told(tmp_path, steps=(1, 2, 3))
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith(f'wandb could not {said} (') and '\n' not in line
    assert [values for _, values in trackio.told][1] == {'eval/total': 1.0}


def test_a_tracker_that_never_finishes_is_left_behind(installed, tmp_path, caplog, monkeypatch):
    module, released = installed('trackio'), threading.Event()
    monkeypatch.setattr(trackers, 'FINISH_SECONDS', 0.01)
    monkeypatch.setattr(tracker_stand_in.Run, 'finish', lambda self: released.wait(60))
    told(tmp_path, 'trackio')
    released.set()
    assert module.runs and 'did not send everything within 0 s and is left behind' in caplog.text


def test_without_trackers_there_is_no_file(tmp_path):
    told(tmp_path, ' , ')
    assert not (tmp_path / 'trackers.json').exists()


@pytest.mark.parametrize(
    'names, message',
    [
        ('wand', "no tracker 'wand'; did you mean 'wandb'"),
        ('wandb,tensorboard', "no tracker 'tensorboard'; expected some of 'wandb', 'trackio'"),
        ('trackio, trackio', "names 'trackio' twice"),
    ],
)
def test_other_names_are_refused(names, message):
    with pytest.raises(ValueError, match=message):
        trackers.names_of(names)


def test_an_absent_package_is_one_line_with_its_extra(monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'densegrpo_jax\[trackio\]'"):
        trackers.check_trackers('trackio')
    trackers.check_trackers('')


@pytest.mark.parametrize('name', ['wandb', 'trackio'])
def test_the_stand_ins_parameters_are_those_of_the_real_ones(name):
    real = inspect.signature(pytest.importorskip(name).init).parameters
    recorded = inspect.signature(getattr(tracker_stand_in, f'{name}_init')).parameters
    assert set(recorded) <= set(real)


def itself(name, workdir, **environment):
    """Two parts of a run, told to the real tracker in a process of its own."""
    pytest.importorskip(name)
    images = np.zeros((2, 8, 8, 3), np.uint8)
    save_grid(workdir / 'sheet.png', images, columns=2, captions=['a', 'b'])
    lines = [
        'import pathlib, sys; from tests.runtime.test_trackers import told',
        f'told(pathlib.Path(sys.argv[1]), {name!r}, (1, 2))',
        f'told(pathlib.Path(sys.argv[1]), {name!r}, (2, 3))',
    ]
    command = [sys.executable, '-c', '\n'.join(lines), str(workdir)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0 and 'could not' not in done.stderr, done.stderr


def test_trackio_itself(tmp_path):
    itself('trackio', tmp_path, TRACKIO_DIR=str(tmp_path / 'trackio'))
    [file] = (tmp_path / 'trackio').glob('*.db')
    with sqlite3.connect(file) as found:
        rows = found.execute('select run_name, step, metrics from metrics order by id').fetchall()
    assert [step for _, step, _ in rows] == [1, 2, 2, 2, 3, 3] and len({r[0] for r in rows}) == 1
    assert json.loads(rows[0][2])['eval/total'] == 0.5
    assert len(list((tmp_path / 'trackio').rglob('*.png'))) == 2


def test_wandb_itself_offline(tmp_path):
    itself('wandb', tmp_path, WANDB_MODE='offline')
    key = json.loads((tmp_path / 'trackers.json').read_text())['wandb']['id']
    files = list((tmp_path / 'wandb').glob('offline-run-*/run-*.wandb'))
    assert {file.name for file in files} == {f'run-{key}.wandb'}
    assert list((tmp_path / 'wandb').rglob('offline-run-*/files/media/images/eval/*.png'))


@pytest.mark.parametrize('content', ['{"wandb": 5}', '{"wandb": {"id": 1, "name": "a"}}', '[1]'])
def test_a_file_of_another_form_is_named_before_the_run(monkeypatch, tmp_path, content):
    (tmp_path / trackers.FILE).write_text(content)
    monkeypatch.setattr(trackers.importlib.util, 'find_spec', lambda name: name)
    with pytest.raises(ValueError, match='trackers.json'):
        trackers.check_trackers('wandb', tmp_path)
