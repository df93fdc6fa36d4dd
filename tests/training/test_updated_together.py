"""An update is kept by all processes of a run, or by none."""

import numpy as np
import pytest

from densegrpo_jax.runtime.communicator import Communicator
from densegrpo_jax.runtime.stop import Preempted, StopRequest
from densegrpo_jax.training.run import updated_together
from tests.fake_hosts import on_hosts


@pytest.mark.parametrize('donates', [True, False])
def test_a_stop_of_one_process_ends_the_wait_of_the_other(donates):
    """An update that reuses its input cannot be dropped: then nobody begins it."""
    begun = []

    def work(hosts):
        stop = StopRequest(Communicator(hosts))
        if hosts.index == 0:
            stop.signal_name = 'SIGTERM'

        def update():
            begun.append(hosts.index)
            return 'the new state', np.zeros(1)

        return updated_together(stop, update, donates)

    assert [type(end) for end in on_hosts(work)] == [Preempted, Preempted]
    assert not (donates and begun)


@pytest.mark.parametrize('donates', [True, False])
def test_without_a_stop_all_have_it(donates):
    def work(hosts):
        stop = StopRequest(Communicator(hosts))
        return updated_together(stop, lambda: (hosts.index, np.ones(1)), donates)[0]

    assert on_hosts(work) == [0, 1]
