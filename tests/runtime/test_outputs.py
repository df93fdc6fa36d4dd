"""Outputs take the place of nothing but earlier outputs."""

import json
import os

import pytest

from densegrpo_jax.runtime import outputs
from densegrpo_jax.runtime.communicator import Communicator
from densegrpo_jax.runtime.files import RECORD, only_writer
from densegrpo_jax.runtime.hosts import Hosts
from densegrpo_jax.runtime.outputs import check_shared, claim, is_shared
from tests.fake_hosts import on_hosts


def test_a_command_may_write_its_own_files_again(tmp_path):
    out = tmp_path / 'new' / 'out'
    claim(out, ['README.md', 'weights'])
    (out / 'README.md').write_text('ours')
    (out / 'notes.txt').write_text("somebody's, in nobody's way")
    claim(out, ['README.md', 'config.json'])
    assert json.loads((out / RECORD).read_text()) == ['README.md', 'config.json', 'weights']


def test_what_somebody_else_wrote_stays(tmp_path):
    (tmp_path / 'README.md').write_text('mine')
    with pytest.raises(ValueError, match='holds README.md, which this command did not write'):
        claim(tmp_path, ['README.md', 'config.json'])
    assert [path.name for path in tmp_path.iterdir()] == ['README.md']
    (tmp_path / 'README.md').unlink()
    (tmp_path / 'config.json').symlink_to(tmp_path / 'elsewhere')  # a broken link is somebody's too
    with pytest.raises(ValueError, match='config.json is a broken link'):
        claim(tmp_path, ['README.md', 'config.json'])


def test_nothing_is_put_into_what_another_command_writes(tmp_path):
    run = tmp_path / 'run'
    claim(run, ['metrics.jsonl'], ['checkpoints'])
    part = 'part of the results in .*run: '
    for inner in (run / 'checkpoints' / 'second', run / 'x/../checkpoints/y'):
        with pytest.raises(ValueError, match=f'checkpoints, which is {part}'):
            claim(inner, ['metrics.jsonl'])
    with pytest.raises(ValueError, match=f'checkpoints is {part}'):
        claim(run / 'checkpoints', ['metrics.jsonl'])
    assert not (run / 'checkpoints').exists()
    claim(run / 'evaluation', ['summary.md'])
    claim(run / 'evaluation', ['summary.md'])


def test_texts_that_are_named_by_their_content_are_shared(tmp_path):
    (tmp_path / 'text').mkdir()
    claim(tmp_path, ['psi.json'], ['text'])
    (tmp_path / 'images').mkdir()
    with pytest.raises(ValueError, match='holds images, which'):
        claim(tmp_path, [], ['images', 'text'])


def test_what_is_read_is_not_written_to(tmp_path):
    base = tmp_path / 'base'
    base.mkdir()
    (tmp_path / 'link').symlink_to(base)
    for out in (base, tmp_path / 'link', base / '..' / 'base'):
        with pytest.raises(ValueError, match='which this command reads and would'):
            claim(out, ['weights'], read=[base, tmp_path / 'run'])
    assert not list(base.iterdir())
    claim(base / 'exported', ['weights'], read=[base])
    (tmp_path / 'out' / 'images').mkdir(parents=True)
    for read in (tmp_path / 'out' / 'images', tmp_path / 'out' / 'images' / '..' / 'images'):
        with pytest.raises(ValueError, match='images and would overwrite it'):
            claim(tmp_path / 'out', [], ['images'], read=[read])


@pytest.mark.parametrize('meanwhile', [False, True])
def test_a_refused_command_takes_nothing_as_its_own_when_it_comes_again(tmp_path, meanwhile):
    """Its lock stays where another program has written something in the meantime."""
    (tmp_path / 'images').mkdir()
    for _ in range(2):
        with pytest.raises(ValueError, match='holds images'), only_writer(tmp_path, Hosts()):
            if meanwhile:
                (tmp_path / 'log.txt').touch()
            claim(tmp_path, [], ['images'])
    assert (tmp_path / 'lock').exists() == meanwhile and not (tmp_path / RECORD).exists()


@pytest.mark.parametrize(
    'name', ['checkpoints/3/meta/metadata', 'checkpoints/flow/3/meta/metadata', 'scores.jsonl']
)
def test_results_of_an_earlier_version_are_ours_without_its_lock(tmp_path, name):
    """As in a copy; for every command, and also if a line of them is damaged."""
    (tmp_path / 'images').mkdir()
    (tmp_path / 'a.jsonl').write_text('{"text": "settings"}')
    os.mkfifo(tmp_path / 'b.jsonl')
    with pytest.raises(ValueError, match='holds images'):
        claim(tmp_path, ['summary.md'], ['images'])
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text('{"settings": {"seed": 4')
    claim(tmp_path, ['summary.md'], ['images'])
    (tmp_path / 'config.json').touch()
    with pytest.raises(ValueError, match='holds config.json'):  # it came later
        claim(tmp_path, ['config.json'])


def test_nothing_is_written_inside_what_only_its_owner_writes(tmp_path):
    (tmp_path / 'checkpoints' / '1').mkdir(parents=True)
    claim(tmp_path / 'adapter', ['a'], closed=[tmp_path / 'checkpoints'])
    (tmp_path / 'link').symlink_to(tmp_path / 'checkpoints')
    for folder in ('checkpoints', 'checkpoints/1', 'checkpoints/new', 'link/1'):
        with pytest.raises(ValueError, match='name a folder outside it'):
            claim(tmp_path / folder, ['a'], closed=[tmp_path / 'checkpoints'])


def test_a_record_of_another_form_is_named(tmp_path):
    (tmp_path / '.densegrpo.json').write_text('[5]')
    with pytest.raises(ValueError, match='expected names of files'):
        claim(tmp_path, ['a'])


def test_a_folder_of_one_process_alone_is_refused_by_all(tmp_path, monkeypatch):
    """Folders of one name on two disks look alike to each of two processes."""
    assert on_hosts(lambda hosts: check_shared(tmp_path, hosts)) == [None, None]
    assert not [*tmp_path.iterdir()]
    monkeypatch.setattr(outputs, 'SHARED_SECONDS', 0.1)
    folders = [tmp_path / 'here', tmp_path / 'there']
    for folder in folders:
        folder.mkdir()
    first, second = on_hosts(lambda hosts: check_shared(folders[hosts.index], hosts))
    assert type(first) is type(second) is ValueError
    assert f'{folders[1]} is not the folder of that name that process 0 writes to' in str(second)
    assert str(first) == f'process 1 of the run: {second}'
    assert not [path for folder in folders for path in folder.iterdir()]


def test_processes_find_out_whether_a_folder_is_one(tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, 'SOON_SECONDS', 0.0)
    (tmp_path / 'file').touch()
    shared = lambda name: on_hosts(
        lambda hosts: is_shared(tmp_path / name(hosts.index), Communicator(hosts)), 3
    )
    assert shared(lambda index: 'new/folder') == [True] * 3
    assert shared(lambda index: f'{index > 1}') == [False] * 3
    assert shared(lambda index: 'file') == [False] * 3  # nothing can be written there
    assert not [*tmp_path.rglob('.*')]
