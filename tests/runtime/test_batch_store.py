"""Batches on disk: of their settings, whole or absent, and alike in all processes."""

import numpy as np
import pytest

from densegrpo_jax.runtime.batch_store import BatchStore
from densegrpo_jax.runtime.communicator import Communicator
from tests.fake_hosts import on_hosts


def test_batches_are_of_their_settings(tmp_path):
    store = BatchStore(tmp_path, {'seed': 1})
    store.put(3, a=np.arange(4), b=np.float32([0.5]))
    assert 3 in store and 2 not in store and store.find(2) is None
    for found in (store.get(3), BatchStore(tmp_path, {'seed': 1}).find(3)):
        np.testing.assert_array_equal(found['a'], np.arange(4))
    assert found['b'].dtype == np.float32
    assert BatchStore(tmp_path, {'seed': 2}).find(3) is None


def test_the_primary_process_gives_them_to_the_others(tmp_path):
    """The other one sees another disk."""

    def work(hosts):
        store = BatchStore(tmp_path / str(hosts.index), {}, Communicator(hosts))
        store.put(0, a=np.arange(3))
        return store.find(0)['a'].tolist(), store.find(1)

    assert on_hosts(work) == [([0, 1, 2], None)] * 2
    assert not (tmp_path / '1').exists()


def test_a_damaged_batch_is_named(tmp_path):
    store = BatchStore(tmp_path, {})
    store.put(0, a=np.arange(3))
    (path,) = tmp_path.glob('*/batch_*.npz')
    for damage in (path.read_bytes()[:40], b'x'):
        path.write_bytes(damage)
        with pytest.raises(ValueError, match='batch_00000.npz is damaged .*: remove it'):
            store.find(0)
