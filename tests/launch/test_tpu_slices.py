"""tpu.sh makes, sets up, starts, shows and ends slices, with a stand-in for gcloud."""

import shlex
from pathlib import Path

import pytest

from tests.launch.stand_ins import STAND_IN, TAIL, VM, WATCH, gcloud


def test_a_slice_is_made_with_the_image_of_its_type(scripts):
    done, calls = scripts('tpu.sh', 'create', *VM, '--type=v5litepod-8', '--spot')
    assert done.returncode == 0, done.stderr
    assert calls == [
        gcloud(
            'create',
            'n',
            '--accelerator-type=v5litepod-8',
            '--version=v2-alpha-tpuv5-lite',
            '--spot',
        )
    ]
    _, calls = scripts('tpu.sh', 'create', *VM, '--type=v6e-4', '--version=mine', '--project=p')
    assert calls == [
        [*gcloud('create', 'n', '--accelerator-type=v6e-4', '--version=mine'), '--project=p']
    ]
    done, calls = scripts('tpu.sh', 'create', *VM, '--type=v99-4')
    assert done.returncode == 1 and calls == [] and 'give --version' in done.stderr


@pytest.mark.parametrize(
    'args, message',
    [
        (['dance'], 'say what to do'),
        (['create', '--zone=z', '--type=v4-8'], 'create needs --name'),
        (['train', *VM], 'nothing to train'),
        (['train', *VM, '--', '--config=c'], '--workdir is missing among the arguments after --'),
        (['train', *VM, '--', 'c', '--workdir=w'], '--config is missing among the arguments'),
        (['train', *VM, '--env=', '--', '--config=c'], '--env= is empty: is a variable of the sh'),
        (['logs', *VM, '--', '--config=c'], 'arguments after -- go with train and watch'),
        (['setup', *VM, '--bucket=gs://b'], '--bucket=gs://b: expected the name alone'),
        (['logs', *VM, '--worker=all'], '--worker=all: expected a whole number'),
        (['setup', *VM, '--worker=1'], '--worker=1 goes with logs'),
        (['setup', *VM, '--poll=soon'], '--poll=soon: expected a whole number'),
        (['watch', *VM, '--', '--config=c', '--workdir=w'], 'watch needs --bucket'),
        (['setup', *VM, '--speed=1'], 'unknown option --speed=1'),
        (['fetch', *VM, '--from=x'], 'fetch needs --to'),
        (['setup', *VM, '--env=x'], '--env=x goes with train and watch'),
    ],
)
def test_what_is_missing_is_named(scripts, args, message):
    done, calls = scripts('tpu.sh', *args)
    assert done.returncode == 1 and calls == [] and message in done.stderr


def test_setup_sends_the_commit_to_every_worker(scripts):
    done, calls = scripts('tpu.sh', 'setup', *VM, '--bucket=my-bucket')
    assert done.returncode == 0, done.stderr
    (bucket, scp, ssh) = calls
    assert bucket == [
        'gcloud',
        'storage',
        'buckets',
        'describe',
        'gs://my-bucket',
        '--format=value(hierarchical_namespace.enabled)',
    ]
    assert scp[4] == 'scp' and scp[6:] == ['n:densegrpo_jax.tar.gz', '--worker=all', *TAIL]
    assert ssh[4:7] == ['ssh', 'n', '--worker=all'] and ssh[7].startswith(
        '--command=set -e; tar xzf densegrpo_jax.tar.gz;'
    )
    assert ssh[7].endswith('bash launch/tpu_worker.sh setup my-bucket')
    assert scripts('tpu.sh', 'setup', *VM)[1][1][7].endswith("bash launch/tpu_worker.sh setup ''")


@pytest.mark.parametrize(
    'answer, message',
    [
        ((0, ''), 'has no hierarchical namespace'),
        ((0, 'False'), 'has no'),
        ((1, ''), 'could not be looked at'),
    ],
)
@pytest.mark.parametrize(
    'args',
    [
        ['setup', '--bucket=b', '--project=p'],
        ['watch', '--bucket=b', '--project=p', '--type=v5p-8', '--', '--config=c', '--workdir=w'],
    ],
)
def test_a_bucket_that_cannot_rename_folders_is_refused_before_anything_is_made(
    scripts, args, answer, message
):
    done, calls = scripts(
        'tpu.sh',
        args[0],
        '--name=n',
        '--zone=us-east5-a',
        *args[1:],
        answers_for={'bucket': [answer]},
    )
    assert done.returncode == 1 and len(calls) == 1 and calls[0][-1] == '--project=p'
    assert f'--bucket=b {message}' in done.stderr
    create = (
        'buckets create gs://NAME --location=us-east5 --enable-hierarchical-namespace '
        '--uniform-bucket-level-access --project=p'
    )
    assert create in done.stderr


def test_training_starts_everywhere_with_its_arguments_untouched(scripts):
    _, calls = scripts(
        'tpu.sh',
        'train',
        *VM,
        '--',
        '--config=configs/flux_ocr.py:devices=8',
        '--workdir=two words',
    )
    (call,) = calls
    assert call[4:7] == ['ssh', 'n', '--worker=all']
    command = shlex.split(call[7].removeprefix('--command='))
    assert command[-3:] == [
        'train',
        '--config=configs/flux_ocr.py:devices=8',
        '--workdir=two words',
    ]


def test_settings_go_to_every_worker_and_are_never_shown(scripts, tmp_path):
    file, sent = tmp_path / 'my:settings', tmp_path / 'sent'
    file.write_text('# for the run\n\nHF_TOKEN=hush\n')
    copy = (
        '#!/bin/bash\n'
        f'case "$*" in *run.env*scp*|*scp*run.env*) stat -c %a "$5" >{sent}; cat "$5" >>{sent} ;; '
        'esac\n'
    )
    (tmp_path / 'bin' / 'gcloud').write_text(STAND_IN.replace('#!/bin/bash\n', copy))
    done, calls = scripts(
        'tpu.sh', 'train', *VM, f'--env={file}', '--', '--config=c', '--workdir=w'
    )
    assert done.returncode == 0, done.stderr
    scp, ssh = calls
    assert scp[4] == 'scp' and scp[6:] == ['n:densegrpo_jax/run.env', '--worker=all', *TAIL]
    assert sent.read_text() == '600\n' + file.read_text() and not Path(scp[5]).exists()
    assert ssh[7] == (
        '--command=cd densegrpo_jax && chmod 600 run.env && ENV_FILE=run.env bash '
        'launch/tpu_worker.sh train --config=c --workdir=w'
    )
    assert 'hush' not in done.stdout + done.stderr + str(calls)

    answers = {'describe': [(0, 'PREEMPTED'), (0, 'READY')], 'state': [(0, '0')]}
    watch = [*WATCH[:6], f'--env={file}', *WATCH[6:]]
    done, calls = scripts('tpu.sh', *watch, answers_for=answers)
    assert [call[4] for call in calls[1:]] == [
        'describe',
        'delete',
        'create',
        'scp',
        'ssh',
        'scp',
        'ssh',
        'describe',
        'ssh',
    ]
    assert 'hush' not in done.stdout + done.stderr + str(calls)


@pytest.mark.parametrize(
    'text, message',
    [
        (None, 'is not a file that can be read'),
        ('A=1\nexport B=hush', 'line 2 of --env='),
        ('A = hush', 'line 1 of --env='),
        ('hush', 'is not KEY=VALUE'),
        ('A="hush"', 'write the value of A without quotes'),
    ],
)
@pytest.mark.parametrize('action', ['train', 'watch'])
def test_settings_that_cannot_be_read_are_refused_before_anything_happens(
    scripts, tmp_path, action, text, message
):
    if text is not None:
        (tmp_path / 'settings').write_text(text)
    options = [
        '--type=v5p-8',
        '--bucket=b',
        f'--env={tmp_path}/settings',
        '--',
        '--config=c',
        '--workdir=w',
    ]
    done, calls = scripts('tpu.sh', action, *VM, *options)
    assert (
        done.returncode == 1
        and calls == []
        and message in done.stderr
        and 'hush' not in done.stderr
    )


def test_logs_and_the_end(scripts):
    assert scripts('tpu.sh', 'logs', *VM)[1][0][4:7] == ['ssh', 'n', '--worker=0']
    assert scripts('tpu.sh', 'logs', *VM, '--worker=3')[1][0][4:7] == ['ssh', 'n', '--worker=3']
    assert scripts('tpu.sh', 'delete', *VM)[1] == [gcloud('delete', 'n', '--quiet')]
    assert scripts('tpu.sh', 'stop', *VM)[1][0][6] == '--worker=all'


@pytest.mark.parametrize(
    'given, copied',
    [
        ('runs/x', 'densegrpo_jax/runs/x'),
        ('/home/me/bucket/flux', '/home/me/bucket/flux'),
        ('~/bucket/flux', 'bucket/flux'),
    ],
)
def test_results_are_looked_for_where_the_run_put_them(scripts, given, copied):
    done, calls = scripts(
        'tpu.sh', 'fetch', *VM, f'--from={given}', f'--to={scripts.folder}/results'
    )
    assert calls == [
        gcloud('scp', '--recurse', f'n:{copied}', f'{scripts.folder}/results', '--worker=0')
    ]
    assert (scripts.folder / 'results').is_dir()


def test_a_failing_command_ends_the_script(scripts):
    done, calls = scripts('tpu.sh', 'setup', *VM, answers_for={'gcloud': [(7, '')]})
    assert done.returncode == 7 and len(calls) == 1
