"""tpu.sh watches a run: it makes the slice again, and sets up and starts what does not train."""

from pathlib import Path

import pytest

from tests.launch.stand_ins import WATCH


def test_a_preempted_slice_is_made_again_and_a_finished_one_left(scripts):
    answers = {
        'describe': [(0, 'PREEMPTED'), (0, 'READY'), (0, 'READY')],
        'state': [(0, 'running'), (0, '0')],
    }
    done, calls = scripts('tpu.sh', *WATCH[:4], '--spot', *WATCH[4:], answers_for=answers)
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
    done, calls = scripts('tpu.sh', *WATCH, answers_for=answers)
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
    done, calls = scripts('tpu.sh', *WATCH, answers_for=answers)
    assert [call[4] for call in calls][1:5] == ['describe', 'create', 'describe', 'create']
    assert done.returncode == 1 and 'failed with exit code 3' in done.stderr


@pytest.mark.parametrize(
    'options, message',
    [(['--type=v99-4'], 'known for --type=v99-4: give --version'), ([], 'watch needs --type')],
)
def test_a_watch_that_could_never_make_its_slice_ends_at_once(scripts, options, message):
    answers = {'gcloud': [(7, '')]}
    done, calls = scripts('tpu.sh', *WATCH[:3], *options, *WATCH[4:], answers_for=answers)
    assert done.returncode == 1 and calls == [] and message in done.stderr


def test_a_slice_that_takes_no_ssh_yet_is_set_up_again(scripts):
    # gcloud makes it and cannot copy; then copies and loses ssh; then all works
    answers = {
        'describe': [(1, '')] + [(0, 'READY')] * 3,
        'gcloud': [(0, ''), (255, ''), (0, ''), (255, '')],
        'state': [(0, 'absent'), (0, 'absent'), (0, '0')],
    }
    done, calls = scripts('tpu.sh', *WATCH, answers_for=answers)
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
    done, calls = scripts('tpu.sh', *WATCH, answers_for=answers)
    assert done.returncode == 0, done.stderr
    assert 'n could not be set up and started (the lines above say why; attempt 1' in done.stderr
    told = [' '.join(call) for call in calls if call[4:5] == ['ssh']]
    begun = [i for i, words in enumerate(told) if 'tpu_worker.sh train' in words]
    stopped = [i for i, words in enumerate(told) if 'tpu_worker.sh stop' in words]
    assert len(begun) == 2 and len(stopped) == 1 and begun[0] < stopped[0] < begun[1]


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
    done, calls = scripts('tpu.sh', *WATCH, answers_for=answers)
    assert (
        done.returncode == 1 and [call[4] for call in calls[1:]] == ['describe', 'ssh', 'scp'] * 5
    )
    assert (
        'n could not be set up and started in 5 attempts' in done.stderr
        and 'launch/tpu.sh delete --name=n --zone=z' in done.stderr
    )
    assert not Path(calls[3][5]).parent.exists()  # the archive does not stay behind, five times
