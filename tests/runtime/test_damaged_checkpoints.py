"""Checkpoints that are damaged, or that cannot be read now: told apart, named, and passed over by
all processes alike.
"""

import asyncio
import errno
import gc
import json
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.experimental import multihost_utils

from densegrpo_jax.runtime import checkpoint_store
from densegrpo_jax.runtime.checkpoint_errors import CheckpointDamaged, CheckpointUnreadable
from densegrpo_jax.runtime.checkpoints import Checkpoints
from densegrpo_jax.runtime.hosts import OtherProcessFailed
from tests.fake_hosts import on_hosts
from tests.runtime.states import assert_bits_equal, data_file, make_state, save_steps


def flip_a_bit(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 0x10
    path.write_bytes(raw)


def another_number(path):
    """Whole JSON, with another score than was saved."""
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {'score': 0.25}))


DAMAGE = {
    'flipped bit': lambda folder: flip_a_bit(data_file(folder, 2)),
    'truncated': lambda folder: data_file(folder, 2).write_bytes(
        data_file(folder, 2).read_bytes()[:100]
    ),
    'no meta': lambda folder: shutil.rmtree(folder / '2' / 'meta'),
    'no arrays': lambda folder: shutil.rmtree(folder / '2' / 'state'),
    'empty folder': lambda folder: [shutil.rmtree(folder / '2'), (folder / '2').mkdir()],
    'another number in the meta': lambda folder: another_number(folder / '2' / 'meta' / 'metadata'),
    'torn meta': lambda folder: (folder / '2' / 'meta' / 'metadata').write_text('{"meta": {'),
}


@pytest.mark.parametrize('kind', DAMAGE)
def test_damaged_checkpoint_is_reported_and_the_one_before_it_used(tmp_path, caplog, kind):
    folder = tmp_path / 'ckpt'
    save_steps(folder, [1, 2])
    DAMAGE[kind](folder)
    with Checkpoints(folder) as checkpoints:
        restored = checkpoints.restore_latest(make_state())
        assert restored.step == 1
        assert_bits_equal(restored.state, make_state(1))
        assert 'CHECKPOINT OF STEP 2 IS DAMAGED' in caplog.text
        # kept for whoever wants to look, and out of the way
        assert (tmp_path / 'ckpt_corrupt' / '2.0').is_dir()
        checkpoints.save(2, make_state(2), {})
        checkpoints.wait_until_finished()
        assert_bits_equal(checkpoints.restore_latest(make_state()).state, make_state(2))


def test_a_read_that_fails_waits_for_the_others():
    """Otherwise each of them complains to a closed event loop. Other loops do not wait."""
    ended = []

    async def fail():
        raise ValueError('damaged')

    async def read():
        for _ in range(100):
            await asyncio.sleep(0)
        ended.append(1)

    async def reads():
        await asyncio.gather(fail(), read())

    checkpoint_store._report_once()
    loop = asyncio.new_event_loop()
    assert type(loop) is asyncio.SelectorEventLoop
    loop.close()
    by_orbax = compile('asyncio.new_event_loop()', 'orbax/checkpoint/asyncio_utils.py', 'eval')
    loop = eval(by_orbax, {'asyncio': asyncio})
    with pytest.raises(ValueError, match='damaged'):
        loop.run_until_complete(reads())
    loop.close()
    assert ended and loop.is_closed()


def _without_state(folder):
    shutil.rmtree(folder / '1' / 'state')


def _renamed(folder):
    (folder / '1').rename(folder / '2')


def _of_another_form(folder):
    (folder / '1' / 'meta' / 'metadata').write_text('{"meta": {}}')


def _a_list(folder):
    (folder / '1' / 'meta' / 'metadata').write_text('[]')


@pytest.mark.parametrize(
    'spoil, step, message',
    [
        (_without_state, 1, 'The checkpoint of step 1 .* is damaged: .*state'),
        (_renamed, 2, 'is damaged: ValueError: it was saved as step 1, and its folder renamed'),
        (_of_another_form, 1, 'its metadata lacks fingerprint, score, arrays, digests'),
        (_a_list, 1, 'its metadata is no object'),
    ],
)
def test_damage_to_the_one_that_is_asked_for_is_named(tmp_path, spoil, step, message):
    save_steps(tmp_path, [1])
    spoil(tmp_path)
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        with pytest.raises(CheckpointDamaged, match=message):
            checkpoints.restore(step, make_state())


@pytest.mark.filterwarnings('error')
def test_damage_to_many_arrays_is_said_in_three_lines(tmp_path, caplog, capfd):
    """Their reads fail together, each in a thread of its own."""
    noise = np.random.default_rng(0)
    state = {f'block_{i}': noise.normal(size=(64, 16)).astype('f') for i in range(240)}
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state, {})
    for file in (tmp_path / '2' / 'state').glob('**/d/*'):
        file.write_bytes(b'')
    caplog.clear(), capfd.readouterr()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore_latest(state).step == 1
    gc.collect()  # what was dropped would complain now
    shown = [record for record in caplog.records if record.levelname != 'INFO']
    lines = [text for record in shown for text in record.getMessage().splitlines()]
    assert len(lines) <= 3 and not any(record.exc_info for record in shown), lines
    assert 'Traceback' not in capfd.readouterr().err


def test_all_damaged_is_an_error_and_nothing_is_moved(tmp_path):
    save_steps(tmp_path, [1, 2])
    for step in (1, 2):
        flip_a_bit(data_file(tmp_path, step))
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(ValueError, match='(?s)All checkpoints in .* damaged:.*step 2:.*step 1:'),
    ):
        checkpoints.restore_latest(make_state())
    assert (tmp_path / '1').is_dir() and (tmp_path / '2').is_dir()


@pytest.mark.parametrize('kind', ['truncated', 'flipped bit'])
def test_what_one_host_cannot_read_no_host_uses(tmp_path, caplog, kind):
    """Each host has a folder of its own here, so that the bytes of one of them alone can be
    damaged.
    """
    folders = [tmp_path / 'first' / 'ckpt', tmp_path / 'second' / 'ckpt']
    save_steps(folders[0], [1, 2])
    shutil.copytree(folders[0], folders[1])
    DAMAGE[kind](folders[1])

    def restore(hosts):
        with Checkpoints(folders[hosts.index], hosts=hosts) as checkpoints:
            return checkpoints.restore_latest(make_state())

    for restored in on_hosts(restore):
        assert restored.step == 1
        assert_bits_equal(restored.state, make_state(1))
    assert (
        'CHECKPOINT OF STEP 2 IS DAMAGED and is skipped: ValueError: process 1 of the run: '
        in caplog.text
    )
    # moved by the first host, whose folder is everybody's in a real run
    assert (tmp_path / 'first' / 'ckpt_corrupt' / '2.0').is_dir()


def test_an_error_that_is_no_damage_ends_all_hosts(tmp_path):
    save_steps(tmp_path, [1, 2])

    def refuse(*args, **kwargs):
        raise PermissionError('not yours')

    def restore(hosts):
        with Checkpoints(tmp_path, hosts=hosts) as checkpoints:
            if hosts.index == 1:
                checkpoints._store.document = refuse
            return checkpoints.restore_latest(make_state())

    first, second = on_hosts(restore)
    assert isinstance(second, PermissionError)
    assert (
        isinstance(first, OtherProcessFailed)
        and str(first) == 'process 1 of the run: PermissionError: not yours'
    )
    assert (tmp_path / '2').is_dir()


def test_one_of_several_processes_reads_without_the_others(tmp_path, monkeypatch):
    """By default orbax lets all of them meet on their devices."""
    save_steps(tmp_path, [1])
    meet = lambda *_, **__: pytest.fail('it waits for the others')
    monkeypatch.setattr(multihost_utils, 'sync_global_devices', meet)
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        checkpoints.check(1, make_state())
        assert checkpoints.meta(1) == {'step': 1}


def failing_reads(monkeypatch, step, count, error):
    """The next `count` reads of a step's checkpoint raise `error`."""
    read, failures = ocp.Checkpointer.restore, iter(range(count))

    def restore(self, path, *args, **kwargs):
        if path.name == str(step) and next(failures, None) is not None:
            raise error
        return read(self, path, *args, **kwargs)

    monkeypatch.setattr(ocp.Checkpointer, 'restore', restore)
    monkeypatch.setattr(checkpoint_store, 'PAUSE', 0.0)


IO_ERRORS = [
    OSError(errno.EIO, 'Input/output error'),
    ValueError(
        'UNKNOWN: Error opening "zarr" driver: Error reading local file "/runs/2/manifest.ocdbt": '
        'Stale file handle [source ...'
    ),
]


@pytest.mark.parametrize('error', IO_ERRORS, ids=['json', 'arrays'])
def test_a_read_that_fails_is_tried_again_and_is_no_damage(tmp_path, monkeypatch, caplog, error):
    folder = tmp_path / 'ckpt'
    save_steps(folder, [1, 2])
    with Checkpoints(folder) as checkpoints:
        failing_reads(monkeypatch, 2, 1, error)
        assert checkpoints.restore_latest(make_state()).step == 2 and 'next try in' in caplog.text
        failing_reads(monkeypatch, 2, 2, error)
        with pytest.raises(
            CheckpointUnreadable,
            match='(?s)ckpt/2 could not be read: .*stays in place.*run the same command again',
        ):
            checkpoints.restore_latest(make_state())
    assert (folder / '2').is_dir() and not (tmp_path / 'ckpt_corrupt').exists()


def test_a_checkpoint_whose_score_could_not_be_read_is_kept(tmp_path, monkeypatch, caplog):
    with Checkpoints(tmp_path, max_to_keep=1) as checkpoints:
        for step, score in ((1, 0.9), (2, 0.1)):
            checkpoints.save(step, make_state(step), {}, score=score)
    failing_reads(monkeypatch, 1, 2, OSError(errno.EIO, 'Input/output error'))
    with Checkpoints(tmp_path, max_to_keep=1) as checkpoints:
        checkpoints.save(3, make_state(3), {}, score=0.2)
    assert (
        'score of the checkpoint of step 1 is unknown, so it is kept: CheckpointUnreadable'
        in caplog.text
    )
    with Checkpoints(tmp_path, max_to_keep=1) as checkpoints:
        assert checkpoints.steps() == [1, 3] and checkpoints.best_step() == 1
        # now that the scores are known, nothing is kept for want of them
        checkpoints.save(4, make_state(4), {}, score=0.95)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['4']
