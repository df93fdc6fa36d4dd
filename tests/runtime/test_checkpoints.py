"""Checkpoints: bit-exact, atomic, verified, and clear about what does not fit."""

import asyncio
import errno
import gc
import json
import os
import resource
import shutil
import signal
import string
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from densegrpo_jax.runtime import checkpoint_store
from densegrpo_jax.runtime import checkpoints as checkpoints_module
from densegrpo_jax.runtime import mesh as mesh_lib
from densegrpo_jax.runtime.checkpoint_fit import CheckpointMismatch
from densegrpo_jax.runtime.checkpoint_store import CheckpointUnreadable
from densegrpo_jax.runtime.checkpoints import CheckpointDamaged, Checkpoints
from densegrpo_jax.runtime.flat_state import flatten
from densegrpo_jax.runtime.hosts import OtherProcessFailed
from tests.fake_hosts import on_hosts

ROOT = Path(__file__).parents[2]
FINGERPRINT = {
    'model': {'layers': 2, 'hidden': 256},
    'lora': {'rank': 8, 'targets': ('to_q', 'to_k')},
}


def make_state(seed=0, width=8):
    """Everything a trainer keeps: nested adapters, optimiser state in named tuples, odd dtypes and
    bit patterns.
    """
    rng = np.random.default_rng(seed)
    adapters = {
        'attn': {
            'to_q': {
                'a': jnp.asarray(rng.normal(size=(width, 4)), jnp.float32),
                'b': jnp.zeros((4, width)),
            }
        }
    }
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    return {
        'adapters': adapters,
        'opt': optimiser.init(adapters),
        'ema': jax.tree.map(lambda x: x.astype(jnp.bfloat16), adapters),
        'odd': jnp.asarray([np.nan, -0.0, np.inf, 1e-42], jnp.float32),
        'flags': jnp.asarray([True, False]),
        'psi': np.linspace(0, 1, 5, dtype=np.float32),
        'step': jnp.int32(seed),
    }


def abstract_of(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)


def assert_bits_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def save_steps(folder, steps, **kwargs):
    with Checkpoints(folder, **kwargs) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step), {'step': step})


def data_file(folder, step):
    """The file that holds the arrays' bytes."""
    return max(
        (path for path in (folder / str(step)).rglob('*') if path.is_file()),
        key=lambda path: path.stat().st_size,
    )


def test_round_trip_is_bit_exact(tmp_path):
    state, meta = make_state(3), {'psi': [0.1, 0.2], 'seed': 1, 'prompt': {'position': 7}}
    with Checkpoints(tmp_path / 'ckpt', fingerprint=FINGERPRINT) as checkpoints:
        assert (
            checkpoints.restore_latest(abstract_of(state)) is None
            and checkpoints.latest_step() is None
        )
        checkpoints.save(3, state, meta)
        checkpoints.wait_until_finished()
        restored = checkpoints.restore_latest(abstract_of(state))
    assert_bits_equal(restored.state, state)
    assert restored.meta == meta and restored.step == 3

    # another process, later
    with Checkpoints(tmp_path / 'ckpt', fingerprint=FINGERPRINT, read_only=True) as checkpoints:
        assert checkpoints.meta(3) == meta
        # arrays serve as the template too
        assert_bits_equal(checkpoints.restore_latest(state).state, state)


def test_arrays_may_be_donated_as_soon_as_save_returns(tmp_path):
    update = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    state = {'x': jnp.arange(1 << 20, dtype=jnp.float32)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        state = jax.block_until_ready(update(state))
        checkpoints.wait_until_finished()
        restored = checkpoints.restore_latest(state)
    np.testing.assert_array_equal(restored.state['x'], np.arange(1 << 20))


def test_restores_onto_another_mesh(tmp_path):
    values = np.arange(64, dtype=np.float32).reshape(8, 8)
    mesh = mesh_lib.make_mesh(dict(data=2, fsdp=2, tensor=2))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(
            1, {'w': jax.device_put(values, NamedSharding(mesh, P('fsdp', 'tensor')))}, {}
        )
        checkpoints.wait_until_finished()
        other = mesh_lib.make_mesh(dict(data=1, fsdp=8, tensor=1))
        wanted = jax.ShapeDtypeStruct(
            (8, 8), jnp.float32, sharding=NamedSharding(other, P(None, 'fsdp'))
        )
        found = checkpoints.restore_latest({'w': wanted}).state['w']
    assert found.sharding == wanted.sharding
    np.testing.assert_array_equal(found, values)


def test_keeps_the_newest_and_the_best(tmp_path):
    scores = {1: 0.2, 2: 0.9, 3: None, 4: 0.5, 5: float('nan'), 6: 0.4}
    with Checkpoints(tmp_path, max_to_keep=2) as checkpoints:
        for step, score in scores.items():
            checkpoints.save(step, make_state(step), {}, score=score)
        checkpoints.wait_until_finished()
        assert (
            checkpoints.steps() == [2, 5, 6]
            and checkpoints.best_step() == 2
            and checkpoints.latest_step() == 6
        )
    # scores are known again after a restart
    with Checkpoints(tmp_path, max_to_keep=1) as checkpoints:
        assert checkpoints.best_step() == 2
        checkpoints.save(7, make_state(7), {}, score=0.95)
        checkpoints.wait_until_finished()
        assert checkpoints.steps() == [7] and checkpoints.best_step() == 7
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(8, make_state(8), {}, score=0.99)
        assert checkpoints.best_step() == 7  # not before it is known to be whole
        checkpoints.wait_until_finished()
        assert checkpoints.best_step() == 8


def test_a_score_that_came_later_counts(tmp_path, monkeypatch):
    """The document is written anew, the arrays are not; a write that fails leaves the old one."""
    with Checkpoints(tmp_path, max_to_keep=1) as checkpoints:
        checkpoints.save(1, make_state(1), {'made': [0]})
        checkpoints.amend(1, {'made': [0, 1]}, score=0.9)  # waits for the save
        checkpoints.save(2, make_state(2), {}, score=0.5)
        checkpoints.wait_until_finished()
        assert checkpoints.steps() == [1, 2] and checkpoints.best_step() == 1
    with Checkpoints(tmp_path) as checkpoints:  # after a restart too
        assert checkpoints.best_step() == 1 and checkpoints.meta(1) == {'made': [0, 1]}
        assert_bits_equal(checkpoints.restore(1, make_state()).state, make_state(1))

        def full(path, content):
            raise OSError(errno.ENOSPC, 'No space left on device')

        with monkeypatch.context() as patch:
            patch.setattr(checkpoints_module, 'replace_file', full)
            with pytest.raises(
                OSError, match='(?s)checkpoint of step 2 could not be written.*No space'
            ):
                checkpoints.amend(2, {'made': 'lost'}, score=1.0)
        assert checkpoints.best_step() == 1 and checkpoints.meta(2) == {}
        checkpoints.amend(2, {}, score=float('nan'))
        checkpoints.amend(1, {'made': []}, score=None)
        assert checkpoints.best_step() is None and checkpoints.meta(1) == {'made': []}


def test_one_of_several_hosts_writes_a_later_score(tmp_path, monkeypatch):
    save_steps(tmp_path, [1])
    write, writers = checkpoints_module.replace_file, []
    monkeypatch.setattr(
        checkpoints_module, 'replace_file', lambda *given: (writers.append(1), write(*given))
    )

    def amend(hosts):
        with Checkpoints(tmp_path, hosts=hosts) as checkpoints:
            checkpoints.amend(1, {'by': 'all'}, score=0.5)
            return checkpoints.meta(1), checkpoints.best_step()

    assert on_hosts(amend) == [({'by': 'all'}, 1)] * 2 and len(writers) == 1


def test_all_hosts_rescore_alike_whatever_each_sees(tmp_path, monkeypatch):
    save_steps(tmp_path, [1, 2, 3], max_to_keep=3)

    def rescore(hosts):
        with Checkpoints(tmp_path, hosts=hosts) as checkpoints:
            if not hosts.primary:  # the folder is late to show it the newest
                monkeypatch.setattr(checkpoints, 'steps', lambda: [1, 2])
            checkpoints.rescore({1: 0.1, 2: 0.7, 3: float('nan')}.get)
            return checkpoints.best_step()

    assert on_hosts(rescore) == [2, 2]
    with Checkpoints(tmp_path, read_only=True) as after:
        assert after.best_step() == 2 and after.meta(2) == {'step': 2}


def test_the_first_host_removes_what_it_lists(tmp_path):
    save_steps(tmp_path, [1, 2, 3], max_to_keep=3)
    removers = []

    def remove(hosts):
        with Checkpoints(tmp_path, max_to_keep=1, hosts=hosts) as checkpoints:
            if not hosts.primary:  # the folder is late to show it one
                checkpoints.steps = lambda: [1, 3]
            of_store = checkpoints._store.remove
            checkpoints._store.remove = lambda step: removers.append(hosts.index) or of_store(step)
            checkpoints._remove_old()
            return checkpoints._store.steps()

    assert on_hosts(remove) == [[3], [3]] and removers == [0, 0]


def test_pinned_steps_stay(tmp_path):
    with Checkpoints(tmp_path, max_to_keep=1, pinned=(2, 9)) as checkpoints:
        for step in (1, 2, 3, 4):
            checkpoints.save(step, make_state(step), {})
        checkpoints.wait_until_finished()
        assert checkpoints.steps() == [2, 4]


def test_part_of_a_checkpoint(tmp_path, caplog):
    save_steps(tmp_path, [1])
    caplog.clear()
    wanted = {'adapters': abstract_of(make_state()['adapters'])}
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert_bits_equal(
            checkpoints.restore(1, wanted, partial=True).state,
            {'adapters': make_state(1)['adapters']},
        )
        with pytest.raises(CheckpointMismatch, match='it has .*flags'):
            checkpoints.restore(1, wanted)
    # orbax warns of what is only read
    assert not [record for record in caplog.records if record.levelname != 'INFO']


def test_what_the_document_tells_is_checked_without_arrays(tmp_path):
    save_steps(tmp_path, [1], fingerprint=FINGERPRINT)
    shutil.rmtree(tmp_path / '1' / 'state' / 'd')
    with Checkpoints(tmp_path, read_only=True, fingerprint=FINGERPRINT) as checkpoints:
        assert checkpoints.check(1, make_state()) == json.loads(json.dumps(FINGERPRINT))
        with pytest.raises(CheckpointMismatch, match='lacks extra'):
            checkpoints.check(1, make_state() | {'extra': jnp.zeros(2)})


def test_checkpoint_of_another_model_is_refused_by_name(tmp_path):
    save_steps(tmp_path, [1], fingerprint=FINGERPRINT)
    other = {
        'model': {'layers': 2, 'hidden': 512},
        'lora': {'rank': 8, 'targets': ('to_q',)},
        'new': 1,
    }
    with Checkpoints(tmp_path, fingerprint=other) as checkpoints:
        with pytest.raises(CheckpointMismatch) as caught:
            checkpoints.restore_latest(make_state())
    message = str(caught.value)
    assert (
        'model.hidden: 256 there, 512 here' in message
        and "lora.targets: ['to_q', 'to_k'] there, ['to_q'] here" in message
    )
    assert (
        'new: absent there, 1 here' in message
        and 'layers' not in message
        and '--workdir' in message
    )
    assert (tmp_path / '1').is_dir()  # not treated as damaged


def test_the_owner_says_what_differs(tmp_path):
    save_steps(tmp_path, [1], fingerprint=FINGERPRINT)
    ours = {**FINGERPRINT, 'full': True}

    def nothing(old, new):
        assert (old, new) == tuple(json.loads(json.dumps(tree)) for tree in (FINGERPRINT, ours))
        return []

    with Checkpoints(tmp_path, fingerprint=ours, differences=nothing) as checkpoints:
        assert checkpoints.restore_latest(make_state()).step == 1
    something = lambda old, new: [('full', False, True)]
    with Checkpoints(tmp_path, fingerprint=ours, differences=something) as checkpoints:
        with pytest.raises(CheckpointMismatch, match='full: False there, True here'):
            checkpoints.restore_latest(make_state())


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda s: s['adapters']['attn'].update(to_k=jnp.zeros(2)), 'it lacks adapters/attn/to_k'),
        (lambda s: s.pop('odd'), 'it has odd, which this model lacks'),
        (
            lambda s: s.update(psi=np.zeros(6, np.float32)),
            r'it has psi as float32\[5\], here float32\[6\]',
        ),
        (lambda s: s.update(step=jnp.float32(0)), r'it has step as int32\[\], here float32\[\]'),
    ],
)
def test_state_of_another_shape_is_refused_by_name(tmp_path, change, message):
    save_steps(tmp_path, [1])
    state = make_state()
    change(state)
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(CheckpointMismatch, match=message):
        checkpoints.restore_latest(state)


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


@pytest.mark.parametrize(
    'state, message',
    [
        ({'key': jax.random.key(0)}, "'key' is a typed PRNG key"),
        ({'n': 3}, "'n' is a int"),
        ({'a': {'b': np.zeros(1)}, 'a/b': np.zeros(1)}, "same path 'a/b'"),
    ],
)
def test_what_cannot_be_stored_is_refused(tmp_path, state, message):
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(ValueError, match=message):
        checkpoints.save(1, state, {})


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match='max_to_keep must be at least 1, found 0'):
        Checkpoints(tmp_path, max_to_keep=0)
    with pytest.raises(FileNotFoundError, match='No checkpoint folder .*absent'):
        Checkpoints(tmp_path / 'absent', read_only=True)
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(TypeError, match='JSON'):
        checkpoints.save(1, {'x': np.zeros(1)}, {'bad': object()})
