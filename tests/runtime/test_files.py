import errno
import fcntl
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest

from densegrpo_jax.runtime import files
from densegrpo_jax.runtime.files import Holder, holder, lock, only_writer, replace_file
from densegrpo_jax.runtime.hosts import Hosts
from densegrpo_jax.runtime.paths import check_room
from tests.fake_hosts import on_hosts

ROOT = pathlib.Path(__file__).parents[2]


def test_a_full_disk_leaves_the_old_file_and_is_named(tmp_path, monkeypatch):
    path = tmp_path / 'a.json'
    replace_file(path, 'old')

    def full(number):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='No space left on device') as caught:
        replace_file(path, 'new')
    assert caught.value.filename == str(path) and path.read_text() == 'old'
    assert [p.name for p in tmp_path.iterdir()] == ['a.json']


def test_what_would_fill_a_disk_is_said_before_it_is_written(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=5 << 20)
    monkeypatch.setattr(shutil, 'disk_usage', lambda folder: usage)
    check_room(tmp_path / 'run' / 'new', 5 << 20, 'a checkpoint')
    said = 'a checkpoint takes 7.00 GiB in .*new, whose disk has 5.00 MiB left: make room'
    with pytest.raises(ValueError, match=said):
        check_room(tmp_path / 'run' / 'new', 7 << 30, 'a checkpoint')


def test_a_file_is_the_old_one_until_the_new_one_is_on_disk(tmp_path, monkeypatch):
    path, synced = tmp_path / 'a.json', []
    replace_file(path, b'old\n')
    sync = os.fsync

    def fails(number):
        sync(number)
        synced.append((tmp_path / 'a.json.tmp').read_text())
        raise OSError('the machine stops here')

    monkeypatch.setattr(os, 'fsync', fails)
    with pytest.raises(OSError, match='stops here'):
        replace_file(path, 'new – ü\n')
    # all of it was synced before anything was renamed
    assert path.read_text() == 'old\n' and synced == ['new – ü\n']
    monkeypatch.undo()
    replace_file(path, 'new – ü\n')
    assert path.read_text(encoding='utf-8') == 'new – ü\n' and sorted(
        p.name for p in tmp_path.iterdir()
    ) == ['a.json']


HOLDER = """
import pathlib, sys, time
from densegrpo_jax.runtime.files import lock
held = lock(pathlib.Path(sys.argv[1]))
print('held', flush=True)
time.sleep(600)
"""


def test_a_folder_has_one_writer_and_is_free_once_that_was_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(files, '_PATIENCE_HERE', 0.0)
    holder = subprocess.Popen(
        [sys.executable, '-c', HOLDER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == 'held\n'
        message = (
            f'{tmp_path} is being written to by another run: process {holder.pid} on .* holds '
            f'{tmp_path}/lock. Wait .*--workdir'
        )
        with pytest.raises(ValueError, match=message), only_writer(tmp_path, Hosts()):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with only_writer(tmp_path, Hosts()):
            assert (tmp_path / 'lock').read_text().startswith(f'process {os.getpid()} on ')
    finally:
        holder.kill()


def test_of_several_processes_the_first_holds_the_folder_and_all_of_them_give_up(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(files, '_PATIENCE_HERE', 0.0)

    def work(hosts):
        with only_writer(tmp_path, hosts):
            return 'worked'

    assert on_hosts(work) == ['worked', 'worked']
    with only_writer(tmp_path, Hosts()):
        first, second = on_hosts(work)
    assert type(first) is type(second) is ValueError
    assert 'is being written to' in str(first) and str(second) == f'process 0 of the run: {first}'


def test_a_folder_in_which_nothing_was_written_is_left_as_it_was(tmp_path):
    with pytest.raises(KeyError), only_writer(tmp_path / 'a' / 'b', Hosts()):
        raise KeyError
    assert not [*tmp_path.iterdir()]
    (tmp_path / 'mine').mkdir()
    with only_writer(tmp_path / 'mine', Hosts()):
        pass
    assert not [*(tmp_path / 'mine').iterdir()]
    with only_writer(tmp_path / 'a' / 'b', Hosts()):
        (tmp_path / 'a' / 'b' / 'result').touch()
    assert sorted(path.name for path in (tmp_path / 'a' / 'b').iterdir()) == ['lock', 'result']


def test_who_waits_for_a_folder_that_then_goes_makes_it_anew(tmp_path, monkeypatch):
    first = only_writer(tmp_path / 'run', Hosts())
    first.__enter__()
    monkeypatch.setattr(files.time, 'sleep', lambda seconds: first.__exit__(None, None, None))
    with only_writer(tmp_path / 'run', Hosts()):
        assert (tmp_path / 'run' / 'lock').exists() and holder(tmp_path / 'run').held


def test_a_lock_names_its_machine_and_its_command(tmp_path, monkeypatch):
    monkeypatch.setattr(files.socket, 'gethostname', lambda: 'a box')
    monkeypatch.setattr(files, '_PATIENCE_HERE', 0.0)
    assert holder(tmp_path) == Holder(None)
    with lock(tmp_path):
        assert holder(tmp_path) == Holder(True)
    with lock(tmp_path, 'process-reward'):
        assert holder(tmp_path) == Holder(True, 'process-reward')
        with pytest.raises(ValueError, match=r'run: process \d+ of process-reward on a box'):
            lock(tmp_path)
    assert holder(tmp_path) == Holder(False, 'process-reward')
    told = {'process 7 of train on box': 'train', 'process 7 on box': '', 'x': ''}
    for text, command in told.items():
        (tmp_path / 'lock').write_text(text)
        assert holder(tmp_path) == Holder(None, command)


@pytest.mark.parametrize('number', [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_without_locks_a_run_goes_on(tmp_path, monkeypatch, caplog, number):
    def flock(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, 'flock', flock)
    with only_writer(tmp_path, Hosts()):
        assert f'{tmp_path}: this file system has no locks' in caplog.text
