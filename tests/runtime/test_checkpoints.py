"""Checkpoints: bit-exact, on any mesh, kept as asked, and clear about what does not fit."""

import errno
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from densegrpo_jax.runtime import checkpoints as checkpoints_module
from densegrpo_jax.runtime import mesh as mesh_lib
from densegrpo_jax.runtime.checkpoint_errors import CheckpointMismatch
from densegrpo_jax.runtime.checkpoints import Checkpoints
from tests.fake_hosts import on_hosts
from tests.runtime.states import abstract_of, assert_bits_equal, make_state, save_steps

FINGERPRINT = {
    'model': {'layers': 2, 'hidden': 256},
    'lora': {'rank': 8, 'targets': ('to_q', 'to_k')},
}


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
