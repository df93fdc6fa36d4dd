"""Checkpoints count once they can be read back: at any path, on a full disk, after a kill."""

import gc
import json
import os
import resource
import signal
import string
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densegrpo_jax.runtime import checkpoint_store
from densegrpo_jax.runtime import checkpoints as checkpoints_module
from densegrpo_jax.runtime.checkpoints import Checkpoints
from densegrpo_jax.runtime.flat_state import flatten
from tests.fake_hosts import on_hosts
from tests.runtime.states import abstract_of, assert_bits_equal, make_state, save_steps

ROOT = Path(__file__).parents[2]
ODD = [c for c in string.printable if c not in '/\\' and not c.isalnum()]


@pytest.mark.parametrize(
    'name', [''.join(ODD), '[', ']', '*', '?', 'a[0-9]', '[!x]', '**', '~', 'ü𝔘 名']
)
def test_any_path(tmp_path, name):
    """Characters that elsewhere are patterns, quotes, addresses or blanks are only themselves."""
    folder = tmp_path / name / 'checkpoints'
    save_steps(folder, [1, 2, 3])
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.steps() == [2, 3]
        assert_bits_equal(checkpoints.restore_latest(make_state()).state, make_state(3))
    assert sorted(p.name for p in folder.iterdir()) == ['2', '3']


def test_a_folder_at_the_root_is_no_bucket():
    for name in ('/gs/bucket/run', '/s3/bucket', '/hf/x', '/az/x'):
        path = checkpoint_store._LiteralPath(name)
        assert str(path) == str(path / 'a' / '..').removesuffix('/a/..') == name
        assert not path.exists()


@pytest.mark.parametrize(
    'name, message',
    [('a\\b', 'has a backslash'), (os.fsdecode(b'a\xffb'), 'is not UTF-8')],
    ids=['backslash', 'bytes'],
)
def test_a_path_that_cannot_work_is_refused_and_nothing_is_written(tmp_path, name, message):
    with pytest.raises(ValueError, match=message):
        Checkpoints(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_read_back_does_not_count(tmp_path, monkeypatch, caplog):
    """Here orbax does not find the arrays that it has written, and puts none into the checkpoint;
    it says nothing of it.
    """
    folder = tmp_path / 'ckpt'
    save_steps(folder, [1], max_to_keep=1)
    with Checkpoints(folder, max_to_keep=1) as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint_store._LiteralPath, 'glob', lambda self, pattern: iter(()))
            checkpoints.save(2, make_state(2), {}, score=1.0)
            with pytest.raises(
                OSError,
                match='(?s)of step 2 could not be written.*cannot be read back.*complete one is of '
                'step 1',
            ):
                checkpoints.wait_until_finished()
        assert checkpoints.steps() == [1] and checkpoints.best_step() is None
        assert (tmp_path / 'ckpt_corrupt' / '2.0').is_dir()
        assert_bits_equal(checkpoints.restore_latest(make_state()).state, make_state(1))
        checkpoints.save(2, make_state(2), {'odd': float('nan')})
        checkpoints.wait_until_finished()
        assert checkpoints.steps() == [2]


def test_the_document_is_the_primary_hosts(tmp_path):
    """Every host has its own, with its own seconds; one is written."""
    save_steps(tmp_path, [1])

    def verify(hosts):
        with Checkpoints(tmp_path, hosts=hosts) as checkpoints:
            changed = checkpoints._store.document(1) | {'meta': {'host': hosts.index}}
            document = checkpoint_store.sealed(changed)
            checkpoints.amend(1, document['meta'])
            checkpoints._saving = checkpoints_module._Saving(
                1, None, flatten(abstract_of(make_state())), json.dumps(document)
            )
            checkpoints.wait_until_finished()
            return checkpoints.steps()

    assert on_hosts(verify) == [[1], [1]]


def test_what_one_host_cannot_read_back_counts_for_none(tmp_path, monkeypatch):
    """The first host removes no older checkpoint before the second has opened the new one."""
    save_steps(tmp_path / 'ckpt', [1, 2])
    opened = []

    def verify(hosts):
        with Checkpoints(tmp_path / 'ckpt', max_to_keep=1, hosts=hosts) as checkpoints:
            checkpoints._saving = checkpoints_module._Saving(
                2, None, {'step': jnp.int32(2)}, json.dumps(checkpoints._store.document(2))
            )
            checkpoints._store.open = lambda *_: opened.append(hosts.index) or 1 / hosts.index
            checkpoints.wait_until_finished()

    first, second = on_hosts(verify)
    assert sorted(opened) == [0, 1]
    assert 'cannot be read back: ZeroDivisionError' in str(first)
    assert 'cannot be read back: ValueError: process 0 of the run: Zero' in str(second)
    assert sorted(path.name for path in (tmp_path / 'ckpt').iterdir()) == ['1']


@pytest.mark.parametrize('limit', [200_000, 500])  # of the arrays' files, or of all
def test_full_disk_leaves_the_last_good_checkpoint(tmp_path, caplog, monkeypatch, limit):
    """A limit on the size of files stands in for a full disk: the same writes fail, in the same
    threads. One line says so, however many arrays could not be written.
    """
    noise = np.random.default_rng(0).integers(0, 2**32, (1 << 18,), np.uint32)
    checkpoints = Checkpoints(tmp_path, max_to_keep=1)
    many = {f'y{i}': noise + i for i in range(8)}
    complaints = []
    monkeypatch.setattr(sys, 'unraisablehook', complaints.append)
    checkpoints.save(1, {'x': noise}, {})
    checkpoints.wait_until_finished()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        with pytest.raises(
            OSError,
            match=(
                'checkpoint of step 2 could not be written.*last complete one is of step 1.*Raise '
                r'the limit on the size of files \(ulimit -f\), then'
            ),
        ):
            checkpoints.save(2, {'x': noise + 1, **many}, {})
            checkpoints.wait_until_finished()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    checkpoints.close()  # the failure has been reported
    gc.collect()
    assert 'Traceback' not in caplog.text and 'never retrieved' not in caplog.text
    assert not [str(each.exc_value) for each in complaints]
    with Checkpoints(tmp_path, max_to_keep=1) as checkpoints:
        restored = checkpoints.restore_latest({'x': noise})
        assert restored.step == 1
        np.testing.assert_array_equal(restored.state['x'], noise)
        checkpoints.save(2, {'x': noise + 1}, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ['2']


KILLED = """
import os, signal, sys
import numpy as np
from densegrpo_jax.runtime.checkpoints import Checkpoints
checkpoints = Checkpoints(sys.argv[1])
checkpoints.save(1, {'x': np.arange(10.0, dtype=np.float32)}, {})
checkpoints.wait_until_finished()
checkpoints.save(2, {'x': np.random.default_rng(0).normal(size=20_000_000).astype(np.float32)}, {})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_while_saving(tmp_path, caplog):
    folder = tmp_path / 'ckpt'
    child = subprocess.run(
        [sys.executable, '-c', KILLED, str(folder)],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        timeout=120,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert any(path.name != '1' for path in folder.iterdir())  # it was in the middle of the second
    with Checkpoints(folder) as checkpoints:
        assert 'Removing an incomplete checkpoint' in caplog.text
        restored = checkpoints.restore_latest({'x': jax.ShapeDtypeStruct((10,), jnp.float32)})
        assert restored.step == 1
        np.testing.assert_array_equal(restored.state['x'], np.arange(10))
        checkpoints.save(2, restored.state, {})
        checkpoints.wait_until_finished()
        assert checkpoints.steps() == [1, 2]
