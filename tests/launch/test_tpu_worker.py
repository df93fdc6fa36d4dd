"""What tpu_worker.sh does on a worker: the bucket, the run and its settings, how the run is."""

import os
import shlex
import shutil
import time

import pytest

from tests.launch.stand_ins import PYTHON


@pytest.mark.skipif(shutil.which('gcsfuse') is not None, reason='needs a machine without gcsfuse')
def test_a_worker_without_gcsfuse_installs_it_once_and_mounts_the_bucket(scripts, tmp_path):
    setup = lambda: scripts('tpu_worker.sh', 'setup', 'my bucket', HOME=str(tmp_path))
    scripts('tpu_worker.sh', 'setup')  # the environment
    (tmp_path / 'answers' / 'curl').write_text('0 KEY\n')
    (tmp_path / 'answers' / 'lsb_release').write_text('0 jammy\n')
    done, calls = setup()
    assert done.returncode == 0, done.stderr
    assert done.stdout == f'workdir: {tmp_path}/bucket/...\n' and (tmp_path / 'bucket').is_dir()
    key, mount = (
        '/usr/share/keyrings/cloud.google.asc',
        ['gcsfuse', '--implicit-dirs', '--metadata-cache-ttl-secs=0', 'my bucket'],
    )
    source = f'deb [signed-by={key}] https://packages.cloud.google.com/apt gcsfuse-jammy main'
    assert ['sudo', 'tee', key, 'KEY'] in calls and [
        'sudo',
        'tee',
        '/etc/apt/sources.list.d/gcsfuse.list',
        source,
    ] in calls
    assert calls[-3:] == [
        ['sudo', 'apt-get', '-qq', 'update'],
        ['sudo', 'apt-get', '-qq', 'install', '-y', 'gcsfuse'],
        [*mount, f'{tmp_path}/bucket'],
    ]
    assert setup()[1] == [[*mount, f'{tmp_path}/bucket']]


def test_a_worker_does_not_take_one_bucket_for_another(scripts, tmp_path):
    commands = tmp_path / 'bin'
    for name in ('gcsfuse', 'findmnt'):
        shutil.copy(commands / 'gcloud', commands / name)
    setup = lambda bucket: scripts(
        'tpu_worker.sh', 'setup', bucket, HOME=str(tmp_path), answers_for={'findmnt': [(0, 'mine')]}
    )
    done, calls = setup('mine')
    assert done.returncode == 0 and 'gcsfuse' not in [c[0] for c in calls], done.stderr
    done, calls = setup('other')
    assert done.returncode == 1 and 'gcsfuse' not in [c[0] for c in calls]
    assert f'--bucket=other: at {tmp_path}/bucket there is another one, mine.' in done.stderr


@pytest.mark.parametrize('broken', ['mktemp', 'mv'])
def test_a_worker_whose_bucket_takes_no_renamed_folder_says_what_it_needs(
    scripts, tmp_path, broken
):
    commands, bucket = tmp_path / 'bin', tmp_path / 'bucket'
    shutil.copy(commands / 'gcloud', commands / 'gcsfuse')
    setup = lambda: scripts('tpu_worker.sh', 'setup', 'my-bucket', HOME=str(tmp_path))[0]
    assert setup().returncode == 0 and list(bucket.iterdir()) == []
    (commands / broken).write_text('#!/bin/bash\necho "the bucket says no" >&2\nexit 1\n')
    (commands / broken).chmod(0o755)
    done = setup()
    assert done.returncode == 1 and done.stdout == '' and list(bucket.iterdir()) == []
    for words in (
        'the bucket says no',
        '--bucket=my-bucket: a folder',
        'hierarchical',
        'roles/storage.objectUser',
        '--only-upgrade',
    ):
        assert words in done.stderr


def test_a_worker_writes_down_how_the_run_ended(scripts):
    done, _ = scripts('tpu_worker.sh', 'setup')
    assert done.returncode == 0, done.stderr
    done, _ = scripts('tpu_worker.sh', 'train', '--config=c', '--config.label=two words')
    assert done.returncode == 0, done.stderr
    outcome, deadline = scripts.folder / 'outcome', time.monotonic() + 30
    while not (outcome.exists() and outcome.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert outcome.read_text() == '0\n'
    recorded = [
        shlex.split(line) for line in (scripts.folder.parent / 'calls').read_text().splitlines()
    ]
    main = ['python', '-m', 'densegrpo_jax.main', '--distributed=on', '--device=tpu']
    assert recorded[-1] == [*main, '--config=c', '--config.label=two words']


def test_a_worker_gives_the_run_its_settings_as_they_stand(scripts, tmp_path):
    (scripts.folder / 'run.env').write_text(
        '# a comment\r\nHF_TOKEN=a $HOME `b` "c" # = d\r\n\nEMPTY=\nLIBTPU_INIT_ARGS=--x=1 --y'
    )
    seen, python = tmp_path / 'seen', tmp_path / 'bin' / 'fake-python'
    show = f'echo "$HF_TOKEN|${{EMPTY-unset}}|$LIBTPU_INIT_ARGS" >{seen}.new; mv {seen}.new {seen}'
    python.write_text(PYTHON + f'case "$*" in *densegrpo_jax.main*) {show} ;; esac\n')
    for settings, wanted in (
        ({'ENV_FILE': 'run.env'}, 'a $HOME `b` "c" # = d||--x=1 --y\n'),
        ({}, '|unset|\n'),
    ):
        seen.unlink(missing_ok=True)
        done, _ = scripts(
            'tpu_worker.sh', 'train', '--config=c', HF_TOKEN='', LIBTPU_INIT_ARGS='', **settings
        )
        assert done.returncode == 0, done.stderr
        deadline = time.monotonic() + 30
        while (
            not (
                seen.exists() and scripts('tpu_worker.sh', 'state', '--config=c')[0].stdout == '0\n'
            )
            and time.monotonic() < deadline
        ):
            time.sleep(0.05)
        assert seen.read_text() == wanted
        assert 'HOME' not in done.stderr + (scripts.folder / 'train.log').read_text()


def test_a_worker_says_how_its_run_is(scripts, tmp_path):
    state = lambda *args: scripts('tpu_worker.sh', 'state', *(args or ['--config=c']))[0].stdout
    assert state() == 'absent\n'
    # after a reboot: another process has that number
    (scripts.folder / 'run.pid').write_text(f'{os.getpid()}\n')
    assert state() == 'absent\n'
    hold = tmp_path / 'hold'
    hold.touch()
    assert scripts('tpu_worker.sh', 'train', '--config=c', HOLD=str(hold))[0].returncode == 0
    try:
        assert state() == 'running\n'
        assert (
            'a run is under way here' in scripts('tpu_worker.sh', 'train', '--config=c')[0].stderr
        )
        assert state() == 'running\n'
    finally:
        hold.unlink()
    deadline = time.monotonic() + 30
    while state() == 'running\n' and time.monotonic() < deadline:
        time.sleep(0.05)
    assert state() == '0\n'
    # that was another run
    assert state('--config=d') == state('--config=c', '--workdir=w') == 'absent\n'
