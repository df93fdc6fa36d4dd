"""The scripts for TPU slices, Slurm and single machines, against stand-ins for gcloud, sbatch, srun
and scontrol that record calls.
"""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Writes its name and arguments down, one call a line; answers with the first line of the file
# $ANSWERS/<name> [and takes it away], whose first word is the exit code. Unless told otherwise, a
# bucket has a hierarchical namespace.
STAND_IN = """#!/bin/bash
{ printf '%q ' "$(basename "$0")" "$@"; echo; } >>"$CALLS"
case "$*" in
  *"buckets describe"*) topic=bucket ;;
  *describe*) topic=describe ;;
  *"tpu_worker.sh state"*) topic=state ;;
  *) topic="$(basename "$0")" ;;
esac
file="$ANSWERS/$topic"
[ -s "$file" ] || { [ "$topic" != bucket ] || echo True; exit 0; }
read -r code answer <"$file"
sed -i 1d "$file"
[ -z "$answer" ] || echo "$answer"
exit "$code"
"""

# An interpreter whose packages are all installed; modules are recorded, and training goes on as
# long as there is the file $HOLD.
PYTHON = """#!/bin/bash
case "$*" in
  "-c import sys; sys.exit(sys.version_info"*|"-m pip --version") exit ;;
  "-c import hashlib"*) echo stamp-"$(basename "${!#}")"; exit ;;
  "-m venv"*) mkdir -p "${!#}/bin" && cp "$0" "${!#}/bin/python"; exit ;;
esac
{ printf '%q ' python "$@"; echo; } >>"$CALLS"
case "$*" in *densegrpo_jax.main*) while [ -e "${HOLD:-}" ]; do sleep 0.05; done ;; esac
"""

# Writes down what it is told and what `tee` is given; installed, gcsfuse is a command that writes
# its arguments down.
SUDO = """#!/bin/bash
if [ "$1" = tee ]; then given="$(cat)"; fi
{ printf '%q ' sudo "$@" ${given+"$given"}; echo; } >>"$CALLS"
case "$*" in *"install -y gcsfuse") cp "$(dirname "$0")/gcloud" "$(dirname "$0")/gcsfuse" ;; esac
"""


@pytest.fixture
def scripts(tmp_path):
    """run(script, *args, answers={topic: [(code, text), ...]}, **env) -> (CompletedProcess, [call
    as a list of words]).
    """
    folder, commands, answers = tmp_path / 'a project', tmp_path / 'bin', tmp_path / 'answers'
    shutil.copytree(ROOT / 'launch', folder / 'launch')
    commands.mkdir()
    answers.mkdir()
    for name in ('requirements-tpu.txt', 'requirements-cuda.txt', 'requirements.txt'):
        (folder / name).write_text('jax\n')
    for name in ('gcloud', 'sbatch', 'srun', 'scontrol', 'curl', 'lsb_release'):
        (commands / name).write_text(STAND_IN)
    (commands / 'fake-python').write_text(PYTHON)
    (commands / 'sudo').write_text(SUDO)
    for file in commands.iterdir():
        file.chmod(0o755)
    git = ['git', '-c', 'user.name=x', '-c', 'user.email=x@example.org']
    for command in (['init', '-q'], ['add', '-A'], ['commit', '-qm', 'x']):
        subprocess.run([*git, *command], cwd=folder, check=True)

    def run(script, *args, answers_for=None, **env):
        for topic, lines in (answers_for or {}).items():
            (answers / topic).write_text(''.join(f'{code} {text}\n' for code, text in lines))
        calls = tmp_path / 'calls'
        calls.unlink(missing_ok=True)
        env = {
            **os.environ,
            'PATH': f'{commands}:{os.environ["PATH"]}',
            'CALLS': str(calls),
            'ANSWERS': str(answers),
            'PYTHON': str(commands / 'fake-python'),
            **env,
        }
        env.pop('VENV', None)
        command = ['bash', str(folder / 'launch' / script), *args]
        done = subprocess.run(
            command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        return done, [
            shlex.split(line) for line in calls.read_text().splitlines()
        ] if calls.exists() else []

    run.folder = folder
    return run


VM = ['--name=n', '--zone=z']
TAIL = ['--zone=z']


def gcloud(*words):
    return ['gcloud', 'compute', 'tpus', 'tpu-vm', *words, *TAIL]


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
    options = [
        '--type=v5p-8',
        '--bucket=b',
        '--poll=0',
        f'--env={file}',
        '--',
        '--config=c',
        '--workdir=w',
    ]
    done, calls = scripts('tpu.sh', 'watch', *VM, *options, answers_for=answers)
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


def test_a_preempted_slice_is_made_again_and_a_finished_one_left(scripts):
    answers = {
        'describe': [(0, 'PREEMPTED'), (0, 'READY'), (0, 'READY')],
        'state': [(0, 'running'), (0, '0')],
    }
    options = [
        '--type=v5p-8',
        '--spot',
        '--bucket=b',
        '--poll=0',
        '--',
        '--config=c',
        '--workdir=w',
    ]
    done, calls = scripts('tpu.sh', 'watch', *VM, *options, answers_for=answers)
    assert done.returncode == 0, done.stderr
    assert calls[0][1:4] == ['storage', 'buckets', 'describe']
    assert [call[4] for call in calls[1:]] == [
        'describe',
        'delete',
        'create',
        'scp',
        'ssh',
        'ssh',
        'describe',
        'ssh',
        'describe',
        'ssh',
    ]
    assert 'finished' in done.stderr and '--spot' in calls[3] and 'train' in calls[6][7]


@pytest.mark.parametrize('state', ['absent', '75'])
def test_a_slice_that_trains_nothing_is_set_up_and_started(scripts, state):
    answers = {
        'describe': [(0, 'READY')] * 4,
        'state': [(255, ''), (0, state), (0, 'running'), (0, '0')],
    }
    done, calls = scripts(
        'tpu.sh',
        'watch',
        *VM,
        '--type=v5p-8',
        '--bucket=b',
        '--poll=0',
        '--',
        '--config=c',
        '--workdir=w',
        answers_for=answers,
    )
    assert done.returncode == 0, done.stderr
    assert 'tpu_worker.sh state --config=c --workdir=w;' in calls[2][7]
    look = ['describe', 'ssh']
    assert [call[4] for call in calls[1:]] == [*look, *look, 'scp', 'ssh', 'ssh', *look, *look]
    assert (
        'tpu_worker.sh setup b' in calls[6][7]
        and 'tpu_worker.sh train --config=c --workdir=w' in calls[7][7]
    )


def test_a_slice_that_cannot_be_had_is_asked_for_again(scripts):
    answers = {
        'describe': [(1, ''), (1, ''), (0, 'READY')],
        'gcloud': [(1, '')],
        'state': [(0, '3')],
    }
    done, calls = scripts(
        'tpu.sh',
        'watch',
        *VM,
        '--type=v5p-8',
        '--bucket=b',
        '--poll=0',
        '--',
        '--config=c',
        '--workdir=w',
        answers_for=answers,
    )
    assert [call[4] for call in calls][1:5] == ['describe', 'create', 'describe', 'create']
    assert done.returncode == 1 and 'failed with exit code 3' in done.stderr


@pytest.mark.parametrize(
    'options, message',
    [(['--type=v99-4'], 'known for --type=v99-4: give --version'), ([], 'watch needs --type')],
)
def test_a_watch_that_could_never_make_its_slice_ends_at_once(scripts, options, message):
    answers = {'gcloud': [(7, '')]}
    done, calls = scripts(
        'tpu.sh',
        'watch',
        *VM,
        *options,
        '--bucket=b',
        '--poll=0',
        '--',
        '--config=c',
        '--workdir=w',
        answers_for=answers,
    )
    assert done.returncode == 1 and calls == [] and message in done.stderr


def test_a_slice_that_takes_no_ssh_yet_is_set_up_again(scripts):
    # gcloud makes it and cannot copy; then copies and loses ssh; then all works
    answers = {
        'describe': [(1, '')] + [(0, 'READY')] * 3,
        'gcloud': [(0, ''), (255, ''), (0, ''), (255, '')],
        'state': [(0, 'absent'), (0, 'absent'), (0, '0')],
    }
    done, calls = scripts(
        'tpu.sh',
        'watch',
        *VM,
        '--type=v5p-8',
        '--bucket=b',
        '--poll=0',
        '--',
        '--config=c',
        '--workdir=w',
        answers_for=answers,
    )
    assert done.returncode == 0, done.stderr
    look = ['describe', 'ssh']
    assert [call[4] for call in calls[1:]] == [
        'describe',
        'create',
        'scp',
        *look,
        'scp',
        'ssh',
        *look,
        'scp',
        'ssh',
        'ssh',
        *look,
    ]
    assert 'attempt 2 of 5' in done.stderr


def test_a_run_that_some_workers_do_not_start_is_started_again(scripts):
    """Those that did start are stopped: they would refuse a second run."""
    answers = {
        'describe': [(0, 'READY')] * 3,
        'gcloud': [(0, ''), (0, ''), (255, ''), (0, '')],  # copies, sets up, loses a worker, stops
        'state': [(0, 'absent'), (0, 'absent'), (0, '0')],
    }
    run = ('--', '--config=c', '--workdir=w')
    options = ('--type=v5p-8', '--bucket=b', '--poll=0')
    done, calls = scripts('tpu.sh', 'watch', *VM, *options, *run, answers_for=answers)
    assert done.returncode == 0, done.stderr
    assert 'n could not be set up and started (the lines above say why; attempt 1' in done.stderr
    told = [' '.join(call) for call in calls if call[4:5] == ['ssh']]
    begun = [i for i, words in enumerate(told) if 'tpu_worker.sh train' in words]
    stopped = [i for i, words in enumerate(told) if 'tpu_worker.sh stop' in words]
    assert len(begun) == 2 and len(stopped) == 1 and begun[0] < stopped[0] < begun[1]


WATCH = ['watch', *VM, '--type=v5p-8', '--bucket=b', '--poll=0', '--', '--config=c', '--workdir=w']


@pytest.mark.parametrize('status', ['69', '134', '137'])
def test_a_run_that_has_lost_a_process_is_started_again_everywhere(scripts, status):
    """134: the process on the first worker was aborted, as another was gone; 69: nobody joined it
    after a restart, as nothing starts the run on a worker that was rebooted.
    """
    answers = {'describe': [(0, 'READY')] * 3, 'state': [(0, status), (0, 'running'), (0, '0')]}
    done, calls = scripts('tpu.sh', *WATCH, answers_for=answers)
    assert done.returncode == 0, done.stderr
    look = ['describe', 'ssh']
    again = ['ssh', 'scp', 'ssh', 'ssh']
    assert [call[4] for call in calls[1:]] == [*look, *again, *look, *look]
    stop, _, setup, train = (' '.join(call) for call in calls[3:7])
    assert '--worker=all' in stop and 'tpu_worker.sh stop' in stop
    assert 'tpu_worker.sh setup' in setup and 'tpu_worker.sh train' in train
    assert f'lost a process of the run (exit code {status}' in done.stderr


def test_a_run_that_loses_a_process_at_every_start_ends_the_watch(scripts):
    answers = {
        'describe': [(0, 'READY')] * 9,
        'state': [(0, '134'), (0, 'running')] * 4 + [(0, '137')],
    }
    done, calls = scripts('tpu.sh', *WATCH, answers_for=answers)
    assert done.returncode == 1
    assert sum('tpu_worker.sh train' in ' '.join(call) for call in calls) == 4
    assert 'n lost a process of the run in 5 attempts (exit code 137: bash' in done.stderr
    assert 'launch/tpu.sh delete --name=n --zone=z' in done.stderr


def test_a_slice_that_cannot_be_deleted_now_is_deleted_later(scripts):
    """The service may refuse it, or be about to delete the slice itself."""
    states = ['PREEMPTED', 'PREEMPTED', 'STOPPING', 'DELETING', 'UNKNOWN']
    answers = {
        'describe': [*((0, state) for state in states), (1, ''), (0, 'READY')],
        'gcloud': [(1, ''), (0, '')],
        'state': [(0, '0')],
    }
    done, calls = scripts('tpu.sh', *WATCH, answers_for=answers)
    assert done.returncode == 0, done.stderr
    assert 'it could not be deleted now (the lines above say why)' in done.stderr
    told = [call[4] for call in calls[1:]]
    begin = ['create', 'scp', 'ssh', 'ssh']
    assert told[:5] == ['describe', 'delete', 'describe', 'delete', *begin[:1]]
    # made anew after the second; what is on its way elsewhere is left alone
    assert told[5:] == [*begin[1:], *['describe'] * 4, *begin, 'describe', 'ssh']


def test_a_slice_that_can_never_be_set_up_ends_the_watch(scripts):
    answers = {
        'describe': [(0, 'READY')] * 9,
        'gcloud': [(1, '')] * 9,
        'state': [(0, 'absent')] * 9,
    }
    done, calls = scripts(
        'tpu.sh',
        'watch',
        *VM,
        '--type=v5p-8',
        '--bucket=b',
        '--poll=0',
        '--',
        '--config=c',
        '--workdir=w',
        answers_for=answers,
    )
    assert (
        done.returncode == 1 and [call[4] for call in calls[1:]] == ['describe', 'ssh', 'scp'] * 5
    )
    assert (
        'n could not be set up and started in 5 attempts' in done.stderr
        and 'launch/tpu.sh delete --name=n --zone=z' in done.stderr
    )
    assert not Path(calls[3][5]).parent.exists()  # the archive does not stay behind, five times


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


def test_slurm_submits_one_task_per_box(scripts):
    args = [
        '--name=flux',
        '--nodes=2',
        '--gpus=4',
        '--partition=p',
        '--sbatch=--mem=0',
        '--',
        '--config=c',
        '--workdir=two words',
    ]
    done, calls = scripts('slurm.sh', *args, answers_for={'sbatch': [(0, '123')]})
    assert done.returncode == 0 and 'Submitted job 123' in done.stderr
    call = calls[-1]
    assert call[:2] == ['sbatch', '--parsable']
    assert {
        '--job-name=flux',
        '--nodes=2',
        '--ntasks-per-node=1',
        '--gpus-per-node=4',
        '--requeue',
    } <= set(call)
    assert {'--partition=p', '--mem=0'} <= set(call)
    assert call[-4:] == [
        'launch/slurm_job.sh',
        '.venv/bin/python',
        '--config=c',
        '--workdir=two words',
    ]
    done, calls = scripts('slurm.sh', '--print', *args)
    assert [c[0] for c in calls] == [] and shlex.split(done.stdout) == call
    done, calls = scripts('slurm.sh', '--nodes=2', '--', '--config=c', '--workdir=w')
    assert done.returncode == 1 and '--name=NAME is missing' in done.stderr


def test_a_slurm_job_is_shown_before_anything_is_installed(scripts):
    for given in ('--gpus=many', '--gpus=0', '--nodes=1e3', '--nodes=2.5'):
        done, calls = scripts('slurm.sh', '--name=flux', given, '--', '--config=c', '--workdir=w')
        assert done.returncode == 1 and f'{given}: expected a whole number' in done.stderr
        assert not calls
    for given, words in {
        '--time=abc': '--time=abc: expected HOURS:MINUTES:SECONDS',
        '--time=': '--time= is empty',
        '--partition=': '--partition= is empty',
        '--name=a/b': '--name=a/b: expected letters',
    }.items():
        done, calls = scripts('slurm.sh', '--name=flux', given, '--', '--config=c', '--workdir=w')
        assert done.returncode == 1 and words in done.stderr and not calls
    (scripts.folder.parent / 'bin' / 'sbatch').unlink()
    done, calls = scripts('slurm.sh', '--name=flux', '--', '--config=c', '--workdir=w')
    assert done.returncode == 1 and 'sbatch is not installed here' in done.stderr and not calls
    done, calls = scripts('slurm.sh', '--print', '--name=flux', '--', '--config=c', '--workdir=w')
    assert done.returncode == 0 and calls == []
    assert shlex.split(done.stdout)[-4:] == [
        'launch/slurm_job.sh',
        '.venv/bin/python',
        '--config=c',
        '--workdir=w',
    ]
    assert not (scripts.folder / '.venv').exists() and not (scripts.folder / 'logs').exists()


@pytest.mark.parametrize('code, wanted, requeued', [(0, 0, False), (75, 0, True), (3, 3, False)])
def test_a_slurm_job_that_was_stopped_goes_back_into_the_queue(scripts, code, wanted, requeued):
    done, calls = scripts(
        'slurm_job.sh', 'py', '--config=c', answers_for={'srun': [(code, '')]}, SLURM_JOB_ID='9'
    )
    assert done.returncode == wanted
    assert calls[0] == [
        'srun',
        '--kill-on-bad-exit=0',
        '--wait=0',
        'py',
        '-m',
        'densegrpo_jax.main',
        '--distributed=on',
        '--device=cuda',
        '--config=c',
    ]
    assert calls[1:] == ([['scontrol', 'requeue', '9']] if requeued else [])


def test_one_machine_installs_for_its_device(scripts):
    done, calls = scripts('local.sh', '--device=cuda', '--config=c')
    assert done.returncode == 0, done.stderr
    assert calls[-2][-2:] == ['-r', 'requirements-cuda.txt']
    assert calls[-1] == ['python', '-m', 'densegrpo_jax.main', '--device=cuda', '--config=c']
    done, calls = scripts('local.sh', '--device=abacus')
    assert done.returncode == 1 and calls == [] and 'cpu, cuda or tpu' in done.stderr


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


def test_the_supervisor_restarts_what_can_be_resumed_and_nothing_else(tmp_path):
    job = (
        'n=$(cat n 2>/dev/null || echo 0); echo $((n + 1)) >n; if [ "$n" -lt 2 ]; then exit 75; '
        'fi; exit "$0"'
    )
    for wanted in (0, 3):
        (tmp_path / 'n').unlink(missing_ok=True)
        command = ['bash', str(ROOT / 'launch/supervise.sh'), 'bash', '-c', job, str(wanted)]
        done = subprocess.run(command, cwd=tmp_path, stderr=subprocess.PIPE)
        assert done.returncode == wanted and (tmp_path / 'n').read_text() == '3\n'


STOPPABLE = """
import sys, time
from densegrpo_jax.runtime.stop import RESUMABLE, handle_stop_signals
with handle_stop_signals() as stop:
    print('ready', flush=True)
    while not stop.requested:
        time.sleep(0.01)
    time.sleep(0.5)
    print('saved', flush=True)
sys.exit(RESUMABLE)
"""


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
# as `kill` does, and as the terminal or systemd: to the trainer too
@pytest.mark.parametrize('send', [os.kill, os.killpg])
def test_the_supervisor_hands_a_stop_signal_on_and_waits_for_the_save(send, number):
    # What runs the tests may ignore signals, as nohup and a shell's background jobs do, and what it
    # starts then ignores them too.
    command = [
        'env',
        '--default-signal=HUP,INT',
        'bash',
        str(ROOT / 'launch/supervise.sh'),
        sys.executable,
        '-c',
        STOPPABLE,
    ]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stdout.readline() == 'ready\n'
        send(process.pid, number)
        assert process.communicate(timeout=60)[0] == 'saved\n' and process.returncode == 75
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    'job, asked, wanted',
    [('echo; exec sleep 60', True, 75), ('echo; kill -USR1 $$', False, 128 + signal.SIGUSR1)],
)
def test_what_the_supervisors_own_signal_ends_was_asked_to_stop(job, asked, wanted):
    process = subprocess.Popen(
        ['bash', str(ROOT / 'launch/supervise.sh'), 'bash', '-c', job],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == '\n'
    if asked:
        process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == wanted
