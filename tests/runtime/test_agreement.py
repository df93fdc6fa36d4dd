"""Processes agree on what happened to any of them."""

import pytest

from densegrpo_jax.runtime.agreement import Agreement
from densegrpo_jax.runtime.hosts import Hosts
from tests.fake_hosts import on_hosts


def test_values_of_all_in_their_order():
    def twice(hosts):
        agreement = Agreement(hosts, 'test')
        return agreement.poll({'index': hosts.index}), agreement.poll('' if hosts.index else None)

    assert on_hosts(twice, 3) == [([{'index': 0}, {'index': 1}, {'index': 2}], [None, '', ''])] * 3
    assert Agreement(Hosts(), 'test').poll([1.5]) == [[1.5]]
    assert (
        on_hosts(lambda hosts: hosts.share('raw', bytes([hosts.index]) * 2 * hosts.index), 3)
        == [[b'', b'\1\1', b'\2\2\2\2']] * 3
    )


@pytest.mark.parametrize(
    ('errors', 'expected'),
    [
        ([None, None], ['went on', 'went on']),
        ([None, KeyError('b')], ["ValueError: process 1 of the run: 'b'", "KeyError: 'b'"]),
        ([OSError('a'), KeyError('b')], ['OSError: a', "KeyError: 'b'"]),
        (
            [OSError('a'), MemoryError('b')],
            ['OtherProcessFailed: process 1 of the run: b', 'MemoryError: b'],
        ),
        (
            [MemoryError('a'), None],
            ['MemoryError: a', 'OtherProcessFailed: process 0 of the run: a'],
        ),
    ],
)
def test_an_error_of_one_is_an_error_of_all(errors, expected):
    def attempt(hosts):
        agreement, went_on = Agreement(hosts, 'test', (MemoryError,)), False
        with agreement.alike():
            if errors[hosts.index] is not None:
                raise errors[hosts.index]
            went_on = True
        assert agreement.poll(went_on) == [True, True]  # still in step
        return 'went on'

    found = on_hosts(attempt)
    assert [
        one if isinstance(one, str) else f'{type(one).__name__}: {one}' for one in found
    ] == expected
