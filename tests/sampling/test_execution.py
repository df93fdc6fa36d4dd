"""How the processes of a run end together: each with a reason, none waiting for another."""

import contextlib
import threading
import types

import jax
import pytest

from densegrpo_jax.rewards.base import RewardError, RewardsGone
from densegrpo_jax.runtime.agreement import Agreement
from densegrpo_jax.runtime.hosts import Hosts, OtherProcessFailed
from densegrpo_jax.runtime.stop import Preempted, StopRequest
from densegrpo_jax.sampling import execution
from tests.fake_hosts import on_hosts
from tests.process_flags import process_flags


class Left(Exception):
    """Stands for the end of a process. args: its exit status."""


@pytest.fixture
def statuses(tmp_path, monkeypatch):
    """A function: `work(stop)` -> the exit statuses of two processes that do it."""
    here = threading.local()

    @contextlib.contextmanager
    def without_signals(communicator):  # which only the main thread may handle
        yield StopRequest(communicator)

    def leave(status):
        raise Left(status)

    monkeypatch.setattr(Hosts, 'LOOK_SECONDS', 0.01)
    monkeypatch.setattr(Hosts, 'current', lambda: here.hosts)
    monkeypatch.setattr(jax.distributed, 'is_initialized', lambda: True)
    monkeypatch.setattr(execution, 'LAST_OUT', 0.0)
    monkeypatch.setattr(execution, 'leave_at_once', leave)
    monkeypatch.setattr(execution, 'handle_stop_signals', without_signals)
    for name in ('start_devices', 'start_processes', 'keep_compiled', 'make_mesh'):
        monkeypatch.setattr(execution, name, lambda *_, **__: None)
    monkeypatch.setattr(execution.logging, 'set_verbosity', lambda level: None)
    config = types.SimpleNamespace(mesh=None)
    flag = process_flags(tmp_path, config=config, distributed='on')

    def run(work):
        def on_host(hosts):
            here.hosts = hosts
            return execution.execute(flag, 8, lambda _, __, stop: work(stop), command='train')

        ends = on_hosts(on_host)
        assert all(isinstance(end, Left) for end in ends), ends
        return [end.args[0] for end in ends]

    return run


@pytest.mark.parametrize(
    'error, expected',
    [
        (ValueError('no such prompts'), [1, 2]),
        (ZeroDivisionError('oh'), [1, 1]),
        (RewardError('nonsense'), [1, 1]),
        (RewardsGone('no server'), [75, 75]),
    ],
)
@pytest.mark.parametrize('common', ['agreement', 'round'])
def test_an_error_of_one_process_ends_the_others_with_its_reason(
    statuses, caplog, error, expected, common
):
    def work(stop):
        hosts = stop.communicator.hosts
        if hosts.index == 1:
            raise error
        if common == 'agreement':
            Agreement(hosts, 'room').poll(1)
        else:
            stop.communicator.exchange()

    assert statuses(work) == expected
    assert str(error) in caplog.text
    told = f'process 1 of the run failed: {type(error).__name__}: {error}'
    assert (told in caplog.text) == (1 in expected)


def test_those_that_an_error_has_stopped_at_a_round_end_with_it_too(statuses, caplog):
    """They have left the rounds for a last save together, before the error ends the process."""

    def work(stop):
        if stop.communicator.hosts.index == 1:
            error = ValueError('bad')
            stop.communicator.hosts.fail(error)
            stop.leave('an error')
            raise error
        with pytest.raises(Preempted):
            stop.communicator.exchange()
        stop.check()

    assert statuses(work) == [1, 2]
    assert 'process 1 of the run failed: ValueError: bad' in caplog.text
    assert 'the same command continues' not in caplog.text


def test_what_is_behind_a_stop_is_the_error_of_another_process():
    def on_host(hosts):
        stopped, mine = Preempted('stopped'), ValueError('mine')
        assert hosts.behind(stopped) is stopped
        hosts.meet('looked', 5)
        if hosts.index == 1:
            hosts.fail(ValueError('bad'))
        hosts.meet('told', 5)
        assert hosts.behind(mine) is mine
        return hosts.behind(stopped)

    ends = on_hosts(on_host)
    assert all(isinstance(end, OtherProcessFailed) for end in ends), ends


def test_a_stop_of_one_process_is_no_error(statuses, caplog):
    def work(stop):
        if stop.communicator.hosts.index == 1:
            stop.signal_name = 'SIGTERM'
        stop.communicator.exchange()

    assert statuses(work) == [75, 75]
    assert 'failed' not in caplog.text


def test_the_folder_that_one_process_cannot_use_ends_all(statuses, monkeypatch):
    """The errors of what comes before the work count too."""
    only_writer = execution.only_writer

    def refused(folder, hosts, command):
        if hosts.index == 1:
            raise PermissionError(13, 'Permission denied', str(folder))
        return only_writer(folder, hosts, command)

    monkeypatch.setattr(execution, 'only_writer', refused)
    assert statuses(lambda stop: pytest.fail('it has begun')) == [1, 2]
