"""What the pages say of a run's process, and how to go on with it."""

import json
import os
import time

import pytest

from densegrpo_jax.runtime.files import LOCK, lock
from densegrpo_jax.viewing import state
from densegrpo_jax.viewing.report import write_report
from densegrpo_jax.viewing.run_data import read_run, version
from tests.viewing.made_run import make_run

ELSEWHERE = 'process 7 on elsewhere\n'


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / 'run', updates=2, iterations=6)


def age(folder, minutes):
    """Makes the run's last news that old."""
    then = time.time() - 60 * minutes - 1
    for name in state.NEWS:
        if (folder / name).exists():
            os.utime(folder / name, (then, then))


def told(folder, **ended):
    found = read_run(folder, **ended)
    return found['state'], found['continue']


def ended_by_the_guard(folder, updates=2):
    config = json.loads((folder / 'config.json').read_text())
    config['guard'] |= {'on': True, 'action': 'stop'}
    (folder / 'config.json').write_text(json.dumps(config))
    summary = {'updates': updates, 'guard': {'stopped': True}}
    (folder / 'summary.json').write_text(json.dumps(summary))


def test_a_run_whose_process_is_there_runs_whatever_it_says(run):
    """An evaluation or a compilation may take longer than any time that one would wait."""
    with lock(run):
        age(run, 600)
        assert told(run) == ('running', '')
        assert read_run(run)['left'] == pytest.approx(8.0)


def test_another_command_in_the_folder_is_no_training(run):
    command = f'densegrpo train --config={run}/config.json --workdir={run}'
    with lock(run, 'preflight'):
        assert told(run) == ('stopped', command)
        assert 'preflight writes to its folder; once that' in read_run(run)['advice']
        config = json.loads((run / 'config.json').read_text()) | {'iterations': 2}
        (run / 'config.json').write_text(json.dumps(config))
        (run / 'summary.json').write_text('{"updates": 2}')
        assert told(run) == ('finished', '')
    with lock(run, 'train'):
        assert told(run) == ('running', '')


def test_the_version_of_a_run_elsewhere_changes_with_what_is_told(run, monkeypatch):
    (run / LOCK).write_text(ELSEWHERE)
    now = time.time()

    def at(minutes):
        monkeypatch.setattr(state.time, 'time', lambda: now + 60 * minutes + 1)
        return version(run)

    assert at(0) == at(4) != at(5) != at(6)
    assert at(600) == at(601) != at(660)
    ended_by_the_guard(run)
    assert at(5) == at(6) == at(6000)


def test_a_run_whose_process_has_gone_has_stopped(run):
    """At once, also after kill -9."""
    with lock(run):
        while_running = version(run)
    command = f'densegrpo train --config={run}/config.json --workdir={run}'
    assert told(run) == ('stopped', command) and version(run) != while_running
    assert read_run(run)['advice'] == 'continue with'


@pytest.mark.parametrize('lock_text', [ELSEWHERE, None])
def test_of_a_run_elsewhere_only_its_silence_is_told(run, lock_text):
    """No command: a second process would write to a folder that may have its writer."""
    if lock_text:
        (run / LOCK).write_text(lock_text)
    assert told(run) == ('running', '')
    seen = {}
    for minutes in (0, 4, 5, 6, 119, 150, 600, 601, 60 * 50):
        age(run, minutes)
        seen[version(run)] = told(run)
    assert list(seen.values()) == [
        *[('running', '')] * 2,
        *[(f'no news for {n}', '') for n in ('5 min', '6 min', '119 min', '2 h')],
        *[(f'no news for {n}', '') for n in ('10 h', '10 h', '2 days')],
    ]
    assert 'look for its process before you start it again' in read_run(run)['advice']


def test_long_iterations_are_waited_for(run):
    with open(run / 'metrics.jsonl', 'a') as file:
        file.write('{"step": 3, "seconds/iteration": 1200.0}\n')
    age(run, 99)
    assert told(run)[0] == 'running'
    age(run, 100)
    assert told(run)[0] == 'no news for 100 min'


def test_a_run_that_starts_again_elsewhere_has_news(run):
    age(run, 600)
    (run / LOCK).write_text(ELSEWHERE)
    assert told(run) == ('running', '')


def test_the_guards_end_is_told_and_how_to_go_on(run):
    ended_by_the_guard(run)
    name, command = told(run)
    assert name == 'ended by the guard' and command.endswith(' --config.guard.action=warn')
    assert command.startswith(f'densegrpo train --config={run}/config.json')
    with lock(run):
        assert told(run) == ('running', '')


def test_a_guards_end_that_is_over_is_not_told(run):
    ended_by_the_guard(run, updates=1)  # it went on since
    (run / LOCK).write_text(ELSEWHERE)
    assert told(run) == ('running', '')


@pytest.mark.parametrize('summary', ['[1]', '{"updates": 2, "guard": [true]}'])
def test_a_damaged_summary_is_no_end(run, summary):
    (run / 'summary.json').write_text(summary)
    assert told(run)[0] == 'running'


def test_the_report_that_a_run_writes_at_its_end_does_not_say_running(run):
    page = lambda: write_report(run / 'report', [run], ended=True).with_name('data.js').read_text()
    with lock(run):
        assert '"state": "stopped"' in page()
        ended_by_the_guard(run)
        assert '"state": "ended by the guard"' in page()
        (run / 'summary.json').write_text('{"updates": 2}')
        config = json.loads((run / 'config.json').read_text())
        (run / 'config.json').write_text(json.dumps(config | {'iterations': 2}))
        assert '"state": "finished"' in page()
