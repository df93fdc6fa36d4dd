"""The page as a folder: complete, self-contained, and careful with other people's files."""

import errno
import json
import os
import re

import pytest

from densegrpo_jax.viewing import report
from densegrpo_jax.viewing.report import ASSETS, MARK, asset, write_report
from tests.viewing.made_run import EVIL, make_run


def data_of(folder):
    text = (folder / 'data.js').read_text()
    return json.loads(text.removeprefix('window.RUNS = ').removesuffix(';\n'))


def test_a_folder_has_all_that_the_page_names(tmp_path):
    run = make_run(tmp_path / 'run')
    page = write_report(tmp_path / 'out', [run])
    assert page == tmp_path / 'out' / 'index.html'
    for name in re.findall(r'(?:src|href)="([^"#:]+)"', page.read_text()):
        assert (page.parent / name).stat().st_size > 0, name
    (data,) = data_of(page.parent)
    files = [shown['file'] for shown in (*data['sheets'], *data['verdicts'], *data['groups'])]
    assert len(files) == 7
    for name in files:
        copied = page.parent / data['files'] / name
        assert copied.read_bytes() == (run / name).read_bytes()


def test_nothing_is_fetched_from_the_web():
    for name in ASSETS:
        assert not re.search(rb'https?://|//cdn', asset(name)), name


def test_texts_of_a_run_are_data_and_not_part_of_the_page(tmp_path):
    page = write_report(tmp_path / 'out', [make_run(tmp_path / 'run')])
    assert data_of(page.parent)[0]['groups'][0]['prompt'] == EVIL
    assert 'taken' not in page.read_text()
    assert b'innerHTML' not in b''.join(map(asset, ASSETS))


def test_links_out_of_the_run_are_not_copied(tmp_path):
    """A page is passed on; a folder from somebody else may link to any file of its reader."""
    run, secret = make_run(tmp_path / 'run'), tmp_path / 'secret'
    secret.write_bytes(b'secret')
    for name in ('samples/step_000004.png', 'groups/step_000004_0.webp', 'reward_curve.png'):
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(secret)
    (run / 'samples/step_000006.png').symlink_to('step_000006.png')  # to itself
    secrets = {
        'command.txt': 'secret',
        'newest_command.txt': 'train --secret',
        'recipe.json': '{"secret": 1}',
        'summary.json': '{"updates": 4, "guard": {"stopped": "secret"}}',
        'metrics.jsonl': '{"step": 4, "secret": 1}',
        'guard/verdict_000002.png': 'secret',
        'groups/step_000002_0.json': (run / 'groups/step_000002_0.json').read_text(),
    }
    for number, (name, text) in enumerate(secrets.items()):
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(tmp_path / f'secret_{number}')
        (tmp_path / f'secret_{number}').write_text(text)
    page = write_report(tmp_path / 'out', [run])
    (data,) = data_of(page.parent)
    assert [s['step'] for s in data['sheets']] == [0, 2] and data['pictures'] == []
    assert [v['step'] for v in data['verdicts']] == [4]
    assert data['groups'] == [] and data['series'] == {} and data['command'] == ''
    assert 'secret' not in json.dumps(data)
    copied = [path for path in (page.parent / 'runs').rglob('*') if path.is_file()]
    assert len(copied) == 3 and b'secret' not in {path.read_bytes() for path in copied}


def test_a_page_is_made_anew_and_other_folders_are_left_alone(tmp_path):
    run, out = make_run(tmp_path / 'run'), tmp_path / 'out'
    write_report(out, [run])
    (run / 'samples' / 'step_000002.png').unlink()
    write_report(out, [run])
    (data,) = data_of(out)
    assert (out / data['files'] / 'samples/step_000004.png').is_file()
    assert len([*out.rglob('step_000004.png')]) == 1 and not [*out.rglob('step_000002.png')]
    (out / MARK).unlink()
    with pytest.raises(ValueError, match=r'--out=.*out holds something else; name a new folder'):
        write_report(out, [run])
    with pytest.raises(ValueError, match='holds something else'):
        write_report(run / 'config.json', [run])
    with pytest.raises(FileNotFoundError, match='holds no run'):
        write_report(tmp_path / 'new', [tmp_path])
    assert not (tmp_path / 'new').exists()
    (tmp_path / 'begun').mkdir()
    (tmp_path / 'begun' / f'{MARK}.tmp').touch()  # all that a killed process left
    write_report(tmp_path / 'begun', [run])


@pytest.mark.parametrize('name', ['step_000002.png', 'plotly.js', 'data.js'])
def test_a_full_disk_leaves_the_page_that_was_there(tmp_path, monkeypatch, name):
    run, out = make_run(tmp_path / 'run', updates=2, iterations=6), tmp_path / 'out'
    write_report(out, [run])
    before, data = {path for path in out.rglob('*') if path.is_file()}, data_of(out)

    def until_full(write):
        def wrapped(path, other):
            if path.name == name:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write(path, other)

        return wrapped

    monkeypatch.setattr(report, 'replace_file', until_full(report.replace_file))
    monkeypatch.setattr(report.shutil, 'copyfile', until_full(report.shutil.copyfile))
    (run / 'metrics.jsonl').write_text('{"step": 3}')
    with pytest.raises(OSError, match='No space left'):
        write_report(out, [run])
    assert {path for path in out.rglob('*') if path.is_file()} == before and data_of(out) == data


def test_several_runs_share_a_page(tmp_path):
    runs = [make_run(tmp_path / name, updates=n) for name, n in (('a', 4), ('b', 2))]
    page = write_report(tmp_path / 'out', runs)
    assert [(d['name'], d['files']) for d in data_of(page.parent)] == [
        ('a', 'runs/0'),
        ('b', 'runs/1'),
    ]
