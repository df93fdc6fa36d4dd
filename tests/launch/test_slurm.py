"""Slurm and single machines, with stand-ins for sbatch, srun and scontrol."""

import shlex

import pytest


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
