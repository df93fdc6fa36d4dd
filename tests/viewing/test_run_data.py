"""What the pages read of a run's folder."""

import json
import os
import pathlib

import pytest

from densegrpo_jax.runtime.files import lock
from densegrpo_jax.viewing import run_data
from densegrpo_jax.viewing.folder import ENDS
from densegrpo_jax.viewing.run_data import read_run, read_runs, version
from tests.viewing.made_run import make_group, make_run


def test_a_finished_run(tmp_path):
    run = read_run(make_run(tmp_path / 'run'))
    assert (run['state'], run['updates'], run['iterations'], run['samples']) == (
        'finished', 4, 4, 4
    )  # fmt: skip
    assert run['series']['eval/total'] == [[0, 2, 4], [0.4, 0.6, 0.8]]
    assert run['series']['train/nfe'] == [[1, 2, 3, 4], [24.0, 48.0, 72.0, 96.0]]
    assert run['series']['steps/zero_spread'] == [[1, 2, 3, 4], [0.25] * 4]
    assert [s['step'] for s in run['sheets']] == [0, 2, 4]
    assert [s['file'] for s in run['verdicts']] == [
        'guard/verdict_000002.png', 'guard/verdict_000004.png'
    ]  # fmt: skip
    assert [(g['step'], g['file']) for g in run['groups']] == [
        (2, 'groups/step_000002_0.webp'),
        (4, 'groups/step_000004_0.webp'),
    ]
    changed = {key: value for key, value, *_ in run['changes']}
    assert (changed['iterations'], changed['rollout.group']) == ('4', '4')
    assert 'optim.learning_rate' not in changed
    assert run['advice'] == run['continue'] == ''
    json.dumps(run, allow_nan=False)


def test_runs_of_one_name_are_told_apart(tmp_path, monkeypatch):
    names = 'a/run', 'b/run', 'b/other'
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        make_run(tmp_path / name)
    folders = [tmp_path / name for name in names]
    assert [run['name'] for run in read_runs(folders)] == ['a/run', 'b/run', 'other']
    assert [run['name'] for run in read_runs(folders[:1] * 2)] == ['run', 'run']
    monkeypatch.chdir(folders[0])
    here = read_run(pathlib.Path('.'))
    assert (here['name'], here['folder']) == ('run', str(folders[0]))


def test_a_run_is_compared_with_its_recipe(tmp_path):
    folder = make_run(tmp_path / 'run')
    config = json.loads((folder / 'config.json').read_text())
    of_key = lambda key: next(row[1:] for row in read_run(folder)['changes'] if row[0] == key)
    assert of_key('eval.every') == ['2', None, '30']
    recipe = {**config, 'eval': {**config['eval'], 'every': 5, 'prompts': 1}, 'seed': 7}
    (folder / run_data.RECIPE).write_text(json.dumps(recipe))
    assert of_key('eval.every') == ['2', '5', '30']
    assert of_key('rollout.group') == ['4', '4', '24']
    assert of_key('seed') == ['42', '7', '42']  # set back to its default


def test_half_written_files_are_not_errors(tmp_path):
    folder = make_run(tmp_path / 'run', updates=2, iterations=6)
    with open(folder / 'metrics.jsonl', 'a') as file:
        file.write('{"step": 3, "train/rew')
    (folder / 'groups' / 'step_000006_0.json').write_text('{"step": 6,')
    (folder / 'groups' / 'step_000009_0.json').write_text('{}')  # its image is not there yet
    (folder / 'summary.json').write_text('')
    run = read_run(folder)
    assert run['updates'] == 2 and [g['step'] for g in run['groups']] == [2]


@pytest.mark.parametrize(
    'line',
    [
        b'{"a": 1}', b'[1]', b'{"step": "a", "eval/total": 1}', b'{"step": 3, "x": "\xe9"}',
        b'[' * 100_000, b'5',
    ],
)  # fmt: skip
def test_a_line_of_another_form_is_left_out(tmp_path, line):
    folder = make_run(tmp_path / 'run', updates=2, iterations=6)
    before = read_run(folder)['series']
    with open(folder / 'metrics.jsonl', 'ab') as file:
        file.write(line + b'\n')
    assert read_run(folder)['series'] == before


def test_numbers_that_no_curve_shows_are_left_out(tmp_path):
    folder = make_run(tmp_path / 'run', updates=2, iterations=6)
    with open(folder / 'metrics.jsonl', 'a') as file:
        file.write(f'{{"step": 3, "a": 1e999, "b": {10**400}, "c": "x", "d": null, "e": 2}}\n')
    found = read_run(folder)['series']
    assert found['e'] == [[3], [2.0]] and not {'a', 'b', 'c', 'd'} & found.keys()


def test_scores_of_other_rewards_are_on_no_curve(tmp_path):
    """The code of a reward has changed after update 2; later the run goes back to the old code."""
    folder = make_run(tmp_path / 'run', updates=6, iterations=9)
    file = folder / 'metrics.jsonl'
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        row |= {'train/reward_ocr': 0.5, 'guard/ocr': 0.5, 'guard/fallen': 0, 'guard/kl': 0.1}
        row |= {'eval/since': 2.0} if row['step'] in (2, 4, 6) else {}

    def series():
        file.write_text(''.join(json.dumps(row) + '\n' for row in rows))
        return read_run(folder)['series']

    found = series()
    for name in ('eval/total', 'eval/ocr', 'eval/standard_error'):
        assert found[name][0] == [2, 4, 6]
    for name in ('train/reward', 'train/reward_ocr'):  # update 2 was the last of the old code
        assert found[name][0] == [3, 4, 5, 6]
    for name in ('guard/ocr', 'guard/fallen'):
        assert found[name][0] == [2, 3, 4, 5, 6]
    assert found['guard/kl'][0][0] == found['eval/seconds'][0][0] == 0  # are no scores
    assert found['train/kl'][0][0] == 1 and 'eval/since' not in found
    del rows[-1]['eval/since']
    assert series()['eval/total'][0] == [0, 2, 4, 6]


def test_a_run_before_its_first_update(tmp_path):
    folder = make_run(tmp_path / 'run', updates=0, iterations=6)
    (folder / 'metrics.jsonl').unlink()
    run = read_run(folder)
    assert (run['updates'], run['left'], run['series'], run['groups']) == (0, None, {}, [])


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match='holds no run: there is no config.json'):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ('most', 'updates', 'kept'),
    [(2, 1, [1]), (2, 2, [1, 2]), (2, 4, [1, 4]), (3, 3, [1, 2, 3]), (3, 4, [1, 3, 4])],
)
def test_long_curves_are_thinned_and_keep_their_newest(tmp_path, monkeypatch, most, updates, kept):
    monkeypatch.setattr(run_data, 'MAX_POINTS', most)
    series = read_run(make_run(tmp_path / 'run', updates=updates))['series']
    assert series['train/nfe'] == [kept, [24.0 * step for step in kept]]


def test_the_version_changes_with_what_is_read(tmp_path):
    folder = make_run(tmp_path / 'run', updates=2, iterations=6)
    before = version(folder)
    assert version(folder) == before
    make_group(folder, 6)
    assert version(folder) != before


def test_pictures_are_of_the_last_end_and_tell_when_they_were_made(tmp_path):
    folder = make_run(tmp_path / 'run')
    for name in ENDS:
        (folder / name).write_bytes(b'a picture')
        os.utime(folder / name, (1, 1))
    assert read_run(folder)['pictures'] == [{'file': name, 'at': 1000} for name in ENDS]
    before = version(folder)
    os.utime(folder / ENDS[0], (1, 2))
    assert read_run(folder)['pictures'][0]['at'] == 2000 and version(folder) != before
    with open(folder / 'metrics.jsonl', 'a') as file:  # the run goes on
        file.write('{"step": 5}\n')
    assert read_run(folder)['pictures'] == []


@pytest.mark.parametrize('name', ['samples/step_000002.png', 'groups/step_000002_0.webp'])
def test_a_picture_that_is_made_anew_is_another_one(tmp_path, name):
    folder = make_run(tmp_path / 'run', updates=2, iterations=6)
    of = lambda: [p['at'] for kind in ('sheets', 'groups') for p in read_run(folder)[kind]]
    before = of()
    os.utime(folder / name, (7, 7))
    assert sorted(before) != sorted(of()) and 7000 in of()


def test_what_is_damaged_is_counted(tmp_path):
    folder = make_run(tmp_path / 'run')
    assert read_run(folder)['damaged'] == []
    with open(folder / 'metrics.jsonl', 'a') as file:
        file.write('garbage\nnull\n{"step": 4, "half')  # the last may be written just now
    (folder / 'groups/step_000002_0.json').write_text('{"broken')
    run = read_run(folder)
    assert run['damaged'] == [
        '2 lines of metrics.jsonl cannot be read, and are left out',
        '1 records in groups/ cannot be read, and are left out',
    ]
    assert [group['step'] for group in run['groups']] == [4]


def test_a_configuration_out_of_the_folder_or_damaged_is_said(tmp_path):
    folder = make_run(tmp_path / 'run')
    config = folder / 'config.json'
    config.rename(tmp_path / 'config.json')
    config.symlink_to(tmp_path / 'config.json')
    with pytest.raises(FileNotFoundError, match='its config.json is a link out of the folder'):
        read_run(folder)
    config.unlink()
    config.write_text('{"iterations": ')
    with lock(folder, 'train'), pytest.raises(ValueError, match=r'config.json is not valid JSON'):
        read_run(folder)
