"""Rounds of several processes: values of all, arrays put together, and an end for all alike."""

import concurrent.futures
import time

import numpy as np
import pytest

from densegrpo_jax.runtime.agreement import Agreement
from densegrpo_jax.runtime.communicator import Communicator, Preempted
from densegrpo_jax.runtime.hosts import ENDED, Hosts
from densegrpo_jax.runtime.stop import StopRequest
from tests.fake_hosts import on_hosts


def test_arrays_of_all_are_put_together_whatever_their_names():
    def merged(hosts):
        communicator, own = Communicator(hosts), np.arange(6) % hosts.count == hosts.index
        part = lambda values: np.where(own, np.asarray(values, np.float32), np.nan)
        scores = {'file': part(range(6)), 'valid': part([7] * 6)}
        return communicator.merge((scores, part([0, 1] * 3)))

    for scores, mask in on_hosts(merged, 3):
        np.testing.assert_array_equal(scores['file'], range(6))
        np.testing.assert_array_equal(scores['valid'], [7] * 6)
        np.testing.assert_array_equal(mask, [0, 1] * 3)


def test_what_nobody_has_stays_missing():
    missing = lambda hosts: Communicator(hosts).merge(np.array([np.nan, 1.0]))
    for found in on_hosts(missing):
        np.testing.assert_array_equal(found, [np.nan, 1.0])
    alone = np.array([np.nan, 2.0])
    assert Communicator().merge({'x': alone})['x'] is alone


def test_all_have_the_value_of_the_first_that_has_one():
    def merged(hosts):
        values = np.array([[np.nan, hosts.index], [hosts.index or np.nan, np.nan]])
        return Communicator(hosts).merge((values, np.full(2, np.nan, np.float32)))

    for values, nobodys in on_hosts(merged, 3):
        np.testing.assert_array_equal(values, [[np.nan, 0], [1, np.nan]])
        np.testing.assert_array_equal(nobodys, [np.nan] * 2)


def test_a_process_reads_the_arrays_once_however_many_processes_there_are():
    """And sends no more than its own numbers and their places."""

    def merged(hosts):
        read, sent = [], []
        wait, put = hosts.wait, hosts.put

        def waits(name, seconds):
            read.append(wait(name, seconds))
            return read[-1]

        hosts.wait, hosts.put = waits, lambda name, value: (sent.append(value), put(name, value))
        own = np.arange(800) % hosts.count == hosts.index
        found = Communicator(hosts).merge(np.where(own, np.arange(800), np.nan).astype(np.float32))
        np.testing.assert_array_equal(found, np.arange(800))
        return hosts.primary, max(map(len, read)), len(sent[0])

    primary, *others = on_hosts(merged, 8)
    assert primary[2] < 1000
    for _, read, sent in others:
        assert read < 800 * 4 + 100 and sent < 1000


def test_a_round_that_one_leaves_ends_for_all_and_so_do_later_ones():
    def loop(hosts):
        communicator, rounds = Communicator(hosts), []
        try:
            for number in range(5):
                if hosts.index == 1 and number == 2:
                    communicator.leave()
                    communicator.leave()  # nothing more
                    break
                rounds.append(communicator.exchange(bytes([hosts.index])))
        except Preempted:
            assert hosts.index != 1
        return rounds, communicator.someone_leaves()

    assert on_hosts(loop, 3) == [([[b'\0', b'\1', b'\2']] * 2, True)] * 3


def test_a_round_can_wait_for_a_stop_of_its_own_process():
    def meet(hosts):
        communicator = Communicator(hosts)
        communicator.before_round = lambda: 1 / 0  # wants to stop
        communicator.still_together()
        if hosts.index == 1:
            return communicator.leave()
        communicator.still_together()

    Communicator().still_together()
    assert [type(end) for end in on_hosts(meet, 3)] == [Preempted, type(None), Preempted]


def test_who_leaves_need_not_wait_for_ever():
    def leave(hosts):
        if hosts.index == 1:
            Communicator(hosts).leave(0.0)

    error = on_hosts(leave)[1]
    assert isinstance(error, TimeoutError) and 'no answer from the other processes' in str(error)


def test_nobody_waits_for_the_others_who_does_not_want_to():
    def wants_to_stop():
        raise Preempted('SIGTERM')

    for communicator in (Communicator(), *on_hosts(Communicator)):
        communicator.before_round = wants_to_stop
        with pytest.raises(Preempted, match='SIGTERM'):
            communicator.exchange()
        with pytest.raises(Preempted, match='SIGTERM'):
            communicator.merge(np.zeros(1))


WAITS = {
    'in an agreement': lambda hosts: Agreement(hosts, 'test').poll(1),
    'in a round': lambda hosts: Communicator(hosts).exchange(),
    'at its own work': lambda hosts: StopRequest(Communicator(hosts)).wait(
        concurrent.futures.Future()
    ),
    'to leave': lambda hosts: Communicator(hosts).leave(),
}


@pytest.mark.parametrize('wait', WAITS)
@pytest.mark.parametrize('failed', [True, False])
def test_nobody_waits_for_a_process_that_has_ended(monkeypatch, wait, failed):
    monkeypatch.setattr(Hosts, 'LOOK_SECONDS', 0.01)

    def work(hosts):
        if hosts.index == 1:
            if failed:
                hosts.fail(OSError('the disk is full'))
                hosts.fail(ValueError('which followed'))
            return hosts.end()
        return WAITS[wait](hosts)

    end, _, other = on_hosts(work, 3)
    if failed:
        expected = 'OtherProcessFailed: process 1 of the run failed: OSError: the disk is full'
    else:
        expected = 'Preempted: stopped by another process of the run'
    for found in (end, other):
        if wait == 'to leave' and not failed:
            assert found is None  # it wanted to stop anyway
        else:
            assert f'{type(found).__name__}: {found}' == expected


def test_an_answer_given_before_the_end_counts():
    """One that waits looks only now and then, and may find answer and end at once."""

    def work(hosts):
        if hosts.primary:
            given = hosts.share('test', b'first')
            hosts.end()
            return given
        wait = hosts.wait

        def just_before_both(name, seconds):
            wait(name, 60)
            while hosts.find(ENDED) is None:
                time.sleep(0.001)

        hosts.wait = just_before_both
        return hosts.share('test', b'second')

    assert on_hosts(work) == [[b'first', b'second']] * 2
