"""The prompts' conditioning on disk: computed once, found again, never stale, and without text
encoders in memory.
"""

import os
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densegrpo_jax.config import identity
from densegrpo_jax.config.schema import default_config
from densegrpo_jax.pipelines.base import repeat_rows
from densegrpo_jax.pipelines.folder import load_pipeline, open_pipeline
from densegrpo_jax.runtime.communicator import Communicator
from densegrpo_jax.runtime.hosts import Hosts, OtherProcessFailed
from densegrpo_jax.runtime.stop import Preempted, StopRequest
from densegrpo_jax.sampling import conditioning_cache
from densegrpo_jax.sampling.conditioning import place, text_conditioning
from densegrpo_jax.sampling.conditioning_cache import TextCache, fingerprint
from densegrpo_jax.sampling.session import open_base
from tests import compiled, miniature
from tests.fake_hosts import on_hosts
from tests.meshes import one_device

PROMPTS = [f'A neon sign that says "{word}"' for word in ('ONE', 'TWO', 'THREE', 'FOUR', 'FIVE')]


def missing(cache, prompts):
    return [prompt for prompt, says in cache.stored(prompts).items() if not says]


def stored(folder, directory, prompts=PROMPTS, stop=None):
    config = default_config()
    config.model.dtype, config.text_cache = 'float32', str(directory)
    pipeline = open_pipeline(folder, text_length=16)
    mesh = one_device()
    return text_conditioning(config, folder, pipeline, prompts, mesh, stop or StopRequest())


def test_equals_the_encoders_and_needs_them_once(folder, tmp_path, monkeypatch):
    cache = stored(folder, tmp_path)
    pipeline, params = load_pipeline(folder, text_length=16)
    order = [PROMPTS[i] for i in (3, 0, 0, 4)]
    want = jax.jit(pipeline.encode)(params, *pipeline.tokenize(order))
    got = cache(order)
    np.testing.assert_allclose(got['context'], want['context'], atol=1e-5)
    np.testing.assert_allclose(got['pooled'], want['pooled'], atol=1e-5)
    monkeypatch.setattr(
        'densegrpo_jax.sampling.conditioning.load_params',
        lambda *a, **k: pytest.fail('the encoders were loaded again'),
    )
    again = stored(folder, tmp_path)
    np.testing.assert_array_equal(again(order)['context'], got['context'])
    with pytest.raises(KeyError, match='SIX'):
        again(['A neon sign that says "SIX"'])


def test_another_length_tokenizer_model_or_dtype_is_another_key(folder, tmp_path):
    key = lambda folder, length=16, dtype=jnp.float32: fingerprint(
        folder, open_pipeline(folder, text_length=length), dtype
    )
    shutil.copytree(folder, tmp_path / 'same')
    shutil.copytree(folder, tmp_path / 'tokenizer')
    file = tmp_path / 'tokenizer' / 'tokenizer_2' / 'tokenizer_config.json'
    file.write_text(file.read_text() + ' ')
    other = miniature.random_flux(tmp_path / 'other', seed=5)
    keys = [
        key(folder),
        key(folder, 12),
        key(folder, dtype=jnp.bfloat16),
        key(tmp_path / 'tokenizer'),
        key(other),
    ]
    assert len(set(keys)) == 5 and key(tmp_path / 'same') == keys[0]
    first, second = (TextCache(tmp_path / 'cache', k, _rows(1)) for k in keys[:2])
    first.fill(PROMPTS[:1], lambda part: _rows(len(part)), 1, lambda n: None)
    assert missing(first, PROMPTS[:2]) == PROMPTS[1:2]
    assert missing(second, PROMPTS[:2]) == PROMPTS[:2]


def _rows(count):
    return {'context': jnp.ones((count, 2, 3)), 'pooled': jnp.ones((count, 3))}


def test_the_keys_that_decide_are_those_of_the_table(folder, tmp_path, monkeypatch):
    """Of the keys of the model, besides those that choose the files."""
    used = {}
    monkeypatch.setattr(
        'densegrpo_jax.sampling.conditioning.fingerprint',
        lambda *arguments: used.setdefault('key', fingerprint(*arguments)),
    )
    base = default_config()
    base.model.update(path=str(folder), t5_length=16, dtype='float32')

    def key(**changes):
        config = base.copy_and_resolve_references()
        config.model.update(changes)
        used.clear()
        mesh = one_device()
        text_conditioning(config, *open_base(config, mesh), [], mesh, StopRequest(), tmp_path)
        return used['key']

    changes = {'t5_length': 12, 'dtype': 'bfloat16', 'scan': False, 'remat': 'none'}
    changes |= {'height': 64, 'guidance': 2.0, 'quantize': 'int8'}
    for name, value in changes.items():
        assert (key(**{name: value}) != key()) == identity.decides('text', f'model.{name}'), name


def test_a_stop_keeps_what_is_done_and_damage_is_named(folder, tmp_path, monkeypatch):
    stop = StopRequest()
    exchange = stop.communicator.exchange

    def stopping(value=b''):
        if not value:  # the call after a batch
            stop.signal_name = 'SIGTERM'
        return exchange(value)

    stop.communicator.exchange = stopping
    with pytest.raises(Preempted):
        stored(folder, tmp_path, stop=stop)
    assert len(list(tmp_path.rglob('*.safetensors'))) > 0
    cache = stored(folder, tmp_path)
    path = cache.path(PROMPTS[0])
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match=path.name):
        cache(PROMPTS[:1])


@pytest.mark.parametrize('theirs', [PROMPTS[:4], [*PROMPTS[:4], 'A mug']])
def test_processes_with_other_prompts_are_refused(folder, tmp_path, theirs):
    def on_host(hosts):
        prompts, stop = [PROMPTS, theirs][hosts.index], StopRequest(Communicator(hosts))
        stored(folder, tmp_path, prompts, stop)

    for error in on_hosts(on_host):
        assert type(error) is ValueError and 'were given different prompts' in str(error)


def test_processes_with_separate_disks_have_one_encoding_of_a_prompt(folder, tmp_path):
    disks = [tmp_path / 'first', tmp_path / 'second']
    first, second = (stored(folder, disk, PROMPTS[:3]) for disk in disks)
    other = jax.tree.map(lambda a: 1 + a, first(PROMPTS[:1]))
    first.fill(PROMPTS[:1], lambda part: other, 1, lambda n: None, PROMPTS[:1])  # of another mesh
    second.path(PROMPTS[1]).unlink()
    both = [cache.path(PROMPTS[2]) for cache in (first, second)]
    before = [path.stat().st_mtime_ns for path in both]
    on_hosts(
        lambda hosts: stored(folder, disks[hosts.index], stop=StopRequest(Communicator(hosts)))
    )
    for prompt in PROMPTS:
        assert first.path(prompt).read_bytes() == second.path(prompt).read_bytes()
    assert [path.stat().st_mtime_ns for path in both] == before


def written(monkeypatch, write=conditioning_cache.write_file):
    """The names of the files that are written from now on."""
    names = []
    monkeypatch.setattr(
        conditioning_cache,
        'write_file',
        lambda path, *what: (names.append(path.name), write(path, *what)),
    )
    return names


def test_processes_with_one_folder_share_the_work(folder, tmp_path, monkeypatch):
    """Each looks for its part of the prompts and stores its part; all read everything, with the
    bytes of one process. A file that was cut short is found, whoever looks for it.
    """
    alone = stored(folder, tmp_path / 'alone')
    names, asked, ask = written(monkeypatch), [], TextCache.stored

    def one_asks(cache, prompts):
        asked.extend(prompts)
        return ask(cache, prompts)

    monkeypatch.setattr(TextCache, 'stored', one_asks)

    def on_host(hosts):
        cache = stored(folder, tmp_path / 'all', stop=StopRequest(Communicator(hosts)))
        return cache(PROMPTS)['context']

    for damaged in PROMPTS, PROMPTS[1:2], []:
        names.clear(), asked.clear()
        for found in on_hosts(on_host, 3):
            np.testing.assert_array_equal(found, alone(PROMPTS)['context'])
        assert sorted(asked) == sorted(PROMPTS)
        assert sorted(names) == sorted(alone.path(prompt).name for prompt in damaged)
        path = tmp_path / 'all' / alone.path(PROMPTS[1]).relative_to(tmp_path / 'alone')
        assert path.read_bytes() == alone.path(PROMPTS[1]).read_bytes()
        if damaged == PROMPTS:
            path.write_bytes(path.read_bytes()[:-7])
    assert not [*(tmp_path / 'all').glob('.*')]


def test_nobody_waits_for_what_another_process_could_not_store(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(Hosts, 'LOOK_SECONDS', 0.01)
    here, write = threading.local(), conditioning_cache.write_file

    def full(path, *what):
        if here.index == 1:
            raise OSError(f'could not write {path}: disk full')
        write(path, *what)

    written(monkeypatch, full)

    def on_host(hosts):
        here.index = hosts.index
        try:
            stored(folder, tmp_path, stop=StopRequest(Communicator(hosts)))
        except OSError as error:  # as `execution.execute` does
            hosts.fail(error)
            hosts.end()
            raise

    other, own, third = on_hosts(on_host, 3)
    assert type(own) is OSError
    for error in (other, third):
        assert isinstance(error, OtherProcessFailed) and 'disk full' in str(error)
    monkeypatch.undo()
    assert len(stored(folder, tmp_path)(PROMPTS)['context']) == len(PROMPTS)


def test_a_file_of_another_process_that_appears_late_is_waited_for(tmp_path, monkeypatch):
    rows = lambda part: _rows(len(part))
    one, two = (TextCache(tmp_path, 'key', _rows(1)) for _ in range(2))
    one.fill(PROMPTS, rows, 2, lambda n: None, writer=(0, 2))
    late = lambda _: two.fill(PROMPTS, rows, 2, lambda n: None, writer=(1, 2))
    monkeypatch.setattr(conditioning_cache.time, 'sleep', late)
    assert one(PROMPTS)['context'].shape == (5, 2, 3)
    two.path(PROMPTS[0]).unlink()
    monkeypatch.setattr(conditioning_cache, 'APPEAR_SECONDS', 0.0)
    with pytest.raises(KeyError, match='ONE'):  # not for ever
        two(PROMPTS[:1])


def test_a_file_of_another_prompt_or_encoder_is_not_used(tmp_path, caplog):
    """Exchanged files are encoded anew, changed values end the run; both were trained on."""
    shapes, prompts = _rows(1), PROMPTS[:2]
    value = lambda text: len(text) + (text == PROMPTS[1])
    rows = lambda part: {
        'context': jnp.stack([jnp.full((2, 3), value(p), jnp.float32) for p in part]),
        'pooled': jnp.ones((len(part), 3)),
    }
    fill = lambda cache: cache.fill(missing(cache, prompts), rows, 2, lambda n: None)
    other, cache = (TextCache(tmp_path, key, shapes) for key in ('other', 'key'))
    fill(other), fill(cache)
    paths = [cache.path(p) for p in prompts]
    contents = [path.read_bytes() for path in paths]
    for path, content in zip(paths, contents[::-1]):
        path.write_bytes(content)
    assert missing(TextCache(tmp_path, 'key', shapes), prompts) == prompts
    assert 'is the file of another prompt; its prompt is encoded anew' in caplog.text
    fill(cache)
    assert [path.read_bytes() for path in paths] == contents
    paths[0].write_bytes(other.path(prompts[0]).read_bytes())
    assert missing(TextCache(tmp_path, 'key', shapes), prompts) == prompts[:1]
    fill(cache)
    paths[1].write_bytes(contents[1][:-1] + b'\x41')
    changed = TextCache(tmp_path, 'key', shapes)
    assert missing(changed, prompts) == []
    with pytest.raises(ValueError, match=f'{paths[1].name} is damaged .its content is not'):
        changed(prompts)
    paths[0].unlink()
    os.mkfifo(paths[0])
    with pytest.raises(FileNotFoundError, match='is a pipe'):
        missing(changed, prompts)


def test_arrays_are_those_that_the_pipeline_declares(tmp_path):
    """A mask is stored, read, placed and repeated with the context it belongs to; a file that lacks
    it is not of this pipeline.
    """
    shapes = {
        'context': jax.ShapeDtypeStruct((1, 4, 3), jnp.bfloat16),
        'mask': jax.ShapeDtypeStruct((1, 4), jnp.bool_),
    }
    given = {
        'context': np.arange(24, dtype=np.float32).reshape(2, 4, 3),
        'mask': np.array([[True, True, False, False], [True, False, False, False]]),
    }
    cache = TextCache(tmp_path, 'key', shapes)
    cache.fill(PROMPTS[:2], lambda part: given, 2, lambda n: None)
    mesh = one_device()
    placed = place(TextCache(tmp_path, 'key', shapes), PROMPTS[1::-1], mesh)
    assert {name: a.dtype for name, a in placed.items()} == {n: a.dtype for n, a in shapes.items()}
    for name, rows in repeat_rows(placed, 2).items():
        np.testing.assert_array_equal(np.asarray(rows, np.float32), given[name][[1, 1, 0, 0]])
    one = {name: leaf for name, leaf in shapes.items() if name == 'context'}
    TextCache(tmp_path, 'other', one).fill(PROMPTS[:1], lambda part: given, 1, lambda n: None)
    with pytest.raises(ValueError, match='damaged .*tensor mask'):
        TextCache(tmp_path, 'other', shapes)(PROMPTS[:1])


@pytest.mark.parametrize('family', ['flux', 'klein', 'zimage', 'sd3', 'sd15'])
def test_declared_shapes_are_those_of_the_encoders(family, tmp_path):
    folder = getattr(miniature, f'random_{family}')(tmp_path)
    pipeline, params = load_pipeline(folder, text_length=16)
    found = compiled.encode(pipeline, params, PROMPTS[:2])
    shape = lambda tree: {name: (a.shape, a.dtype) for name, a in tree.items()}
    assert shape(found) == shape(pipeline.conditioning_shapes(2))


def test_a_disk_that_cannot_hold_the_cache_is_named_before_anything_is_encoded(
    folder, tmp_path, monkeypatch
):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage)
    with pytest.raises(ValueError, match='the conditioning of 5 prompts .text_cache. takes'):
        stored(folder, tmp_path)
    assert not [*tmp_path.rglob('*.safetensors')]


def test_host_memory_is_bounded(tmp_path):
    cache = TextCache(tmp_path, 'key', _rows(1), max_bytes=3 * (24 + 12))
    cache.fill(PROMPTS, lambda part: _rows(len(part)), 2, lambda n: None)
    for prompt in PROMPTS:
        cache([prompt])
    assert list(cache._held) == PROMPTS[-3:]
